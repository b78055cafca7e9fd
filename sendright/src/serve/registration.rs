//! Staying registered with introduction servers, whatever becomes of them.
//!
//! It owns the connections to them and how long it waits before it tries again. It does not know what is
//! served.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use introduction::{
    AddServerError, Disconnected, Expect, Keyring, Locator, Netlayer, PublicKey, SERVER_NAME_BYTES_MAX,
};
use ring::{Reactor, Spawner};

use crate::output::{printable, remark};
use crate::reach;

/// The first pause before a server is tried again; each that follows is twice as long.
const PAUSE_MIN: Duration = Duration::from_millis(100);

/// The longest pause: so soon after a server is back everybody can be found again.
const PAUSE_MAX: Duration = Duration::from_secs(5);

/// How long a server may take to let a connection in. Until each has been tried nobody is told a locator.
const CONNECT_TIME_MAX: Duration = Duration::from_secs(5);

/// What registering leads to: where we are to be found.
pub struct Registration {
    netlayer: Rc<Netlayer>,
    keyring: RefCell<Option<Keyring>>,
    vias: Vec<PathBuf>,
    /// The key of each server when it was last met, now or in an earlier life.
    keys: RefCell<BTreeMap<PathBuf, PublicKey>>,
    /// Servers that have been tried at least once.
    tried: Cell<usize>,
    changed: Box<dyn Fn()>,
}

impl Registration {
    /// With these servers, once it is [started](Registration::start). `changed` is called when each has been
    /// tried, and after that each time one was met.
    pub fn new(
        netlayer: Rc<Netlayer>,
        keyring: Option<Keyring>,
        vias: Vec<PathBuf>,
        changed: impl Fn() + 'static,
    ) -> Rc<Registration> {
        let known = |via: &PathBuf| {
            let key = keyring.as_ref().and_then(|keyring| keyring.server(&name(via)));
            key.map(|key| (via.clone(), key))
        };
        let keys = RefCell::new(vias.iter().filter_map(known).collect());
        let changed = Box::new(changed);
        let (keyring, tried) = (RefCell::new(keyring), Cell::new(0));
        Rc::new(Registration { netlayer, keyring, vias, keys, tried, changed })
    }

    /// Registers with each server, and stays so.
    pub fn start(self: &Rc<Self>, spawner: &Spawner, reactor: &Reactor) {
        for via in &self.vias {
            let (registration, via, reactor) = (Rc::clone(self), via.clone(), reactor.clone());
            spawner.spawn(async move { registration.stay(&via, &reactor).await });
        }
    }

    /// Where we are to be found: with the servers we are registered with, and with those that we knew before
    /// and that may come back. `None` while there are none.
    pub fn location(&self) -> Option<Locator> {
        let (mut locator, keys) = (self.netlayer.our_location(), self.keys.borrow());
        // In the order in which they were said: that is the one in which they are asked.
        locator.hints.servers = self.vias.iter().filter_map(|via| keys.get(via).copied()).collect();
        (!locator.hints.servers.is_empty() && self.has_tried_all()).then_some(locator)
    }

    fn has_tried_all(&self) -> bool {
        self.tried.get() >= self.vias.len()
    }

    async fn stay(&self, via: &Path, reactor: &Reactor) {
        let (mut pause, mut is_first, mut has_complained) = (PAUSE_MIN, true, false);
        loop {
            let registered = register(&self.netlayer, via, reactor).await;
            if std::mem::take(&mut is_first) {
                self.tried.set(self.tried.get() + 1);
                if registered.is_err() && self.has_tried_all() {
                    (self.changed)();
                }
            }
            match registered {
                Ok(disconnected) => {
                    let since = reactor.now();
                    has_complained = false;
                    self.met(via, disconnected.server());
                    disconnected.await;
                    // A server that lets us in and turns us out again is asked less and less often.
                    if reactor.now().saturating_duration_since(since) > PAUSE_MAX {
                        pause = PAUSE_MIN;
                    }
                    remark(format_args!("{}: the server is gone; waiting for it", shown(via)));
                }
                Err(sentence) if !has_complained => {
                    has_complained = true;
                    remark(format_args!("{}: {sentence}; trying again", shown(via)));
                }
                Err(_) => {}
            }
            reactor.sleep(pause).await;
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }

    fn met(&self, via: &Path, key: PublicKey) {
        let before = self.keys.borrow_mut().insert(via.to_owned(), key);
        if before != Some(key) {
            if before.is_some() {
                remark(format_args!("{}: this is another server than before: {key}", shown(via)));
            }
            if let Some(keyring) = &mut *self.keyring.borrow_mut()
                && let Err(error) = keyring.remember(&name(via), key)
            {
                remark(format_args!("the server's key could not be remembered: {error}"));
            }
        }
        if self.has_tried_all() {
            (self.changed)();
        }
    }
}

async fn register(netlayer: &Netlayer, via: &Path, reactor: &Reactor) -> Result<Disconnected, String> {
    let fd = reach::connect(reactor, via, CONNECT_TIME_MAX).await.map_err(|error| match error.kind() {
        io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused => "no server is there".to_owned(),
        _ => error.to_string(),
    })?;
    // Whose key it is does not matter: everybody who comes has to prove who they are, past any server.
    netlayer.add_server(fd, Expect::default()).await.map_err(|error: AddServerError| error.to_string())
}

/// Under which a keyring remembers a server: its path, or as much of it as there is room for.
fn name(via: &Path) -> String {
    let shown = shown(via);
    let start = shown.len().saturating_sub(SERVER_NAME_BYTES_MAX);
    let start = (start..shown.len()).find(|&start| shown.is_char_boundary(start)).unwrap_or(shown.len());
    shown[start..].to_owned()
}

fn shown(via: &Path) -> String {
    printable(via.as_os_str().as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_path_is_remembered_by_its_end() {
        assert_eq!(name(Path::new("/run/introduce")), "/run/introduce");
        let long = format!("/{}/socket", "\u{e9}".repeat(SERVER_NAME_BYTES_MAX));
        let short = name(Path::new(&long));
        assert!(short.len() <= SERVER_NAME_BYTES_MAX && short.ends_with("/socket"));
    }
}
