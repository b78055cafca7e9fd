//! Strangers who have proved who they are, and have yet to say what they may have.
//!
//! It owns what a stranger may cost before that: how many at a time, how many of one key, how long. A secret
//! that is wrong and one that is nobody's are answered alike. It does not know what is granted.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use imc::ConnectedSocket;
use introduction::{Connection, Netlayer, PublicKey};
use ring::{Message, Reactor, Spawner};

use super::desk::Desk;
use crate::files::wire::{Admission, Entrance, NotAdmitted};
use crate::permits::{Permit, Permits};
use crate::reactor::within;

/// Strangers at a time. Others wait with the netlayer, which refuses them when their time is over.
pub const STRANGERS_MAX: usize = 32;

/// Of these, those of one key. The next is turned away at once.
pub const STRANGERS_OF_KEY_MAX: usize = 4;

/// How long a stranger may take to present a secret.
pub const ENTRANCE_TIME_MAX: Duration = Duration::from_secs(5);

/// Lets in whoever is introduced and knows a secret, for ever.
pub async fn receive(netlayer: Rc<Netlayer>, spawner: Spawner, desk: Rc<Desk>, reactor: Reactor) {
    let strangers = Permits::new(STRANGERS_MAX);
    let of_keys = OfKeys::default();
    loop {
        let permit = strangers.take().await;
        let incoming = netlayer.incoming().await;
        let Some(place) = of_keys.take(incoming.from().key) else {
            incoming.refuse();
            continue;
        };
        // Whoever asks for a directory has to be able to receive its descriptor.
        let Connection::SeqPacket(connection) = incoming.accept() else { continue };
        let (desk, reactor) = (desk.clone(), reactor.clone());
        spawner.spawn(async move {
            admit(&reactor, connection, &desk).await;
            let all: (Permit, Place) = (permit, place);
            drop(all);
        });
    }
}

async fn admit(reactor: &Reactor, connection: ConnectedSocket, desk: &Desk) {
    // No descriptor belongs to a secret.
    connection.set_descriptors_max(0);
    let Some(Ok(first)) = within(reactor, ENTRANCE_TIME_MAX, connection.receive()).await else { return };
    let (admission, address) = match Entrance::parse(first.bytes()) {
        Ok(entrance) => desk.admit(entrance.swiss),
        Err(_) => (Admission::No(NotAdmitted::Unknown), None),
    };
    let mut answer = Message::new(admission.encode());
    address.into_iter().for_each(|address| answer.push_descriptor(address));
    // If it cannot be sent, whoever asked sees the end.
    let _ = connection.finish(answer);
}

/// How many strangers there are of each key.
#[derive(Clone, Default)]
struct OfKeys(Rc<RefCell<BTreeMap<PublicKey, usize>>>);

/// A stranger's place among those of its key.
struct Place {
    of_keys: OfKeys,
    key: PublicKey,
}

impl OfKeys {
    fn take(&self, key: PublicKey) -> Option<Place> {
        let mut counts = self.0.borrow_mut();
        let count = counts.entry(key).or_default();
        if *count == STRANGERS_OF_KEY_MAX {
            return None;
        }
        *count += 1;
        Some(Place { of_keys: self.clone(), key })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut counts = self.of_keys.0.borrow_mut();
        let left = counts.get(&self.key).map_or(0, |count| count - 1);
        match left {
            0 => counts.remove(&self.key),
            left => counts.insert(self.key, left),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_key_leaves_places_to_others() {
        let of_keys = OfKeys::default();
        let (anne, bert) = (PublicKey([1; 32]), PublicKey([2; 32]));
        let places: Vec<_> = (0..STRANGERS_OF_KEY_MAX).map(|_| of_keys.take(anne)).collect();
        assert!(places.iter().all(Option::is_some));
        assert!(of_keys.take(anne).is_none());
        assert!(of_keys.take(bert).is_some());
        drop(places);
        assert!(of_keys.take(anne).is_some());
        assert!(of_keys.0.borrow().is_empty(), "what nobody needs is forgotten");
    }
}
