//! Who somebody is and how to get there: keys, locators, sturdy references, and how they are written as
//! Syrup and as URIs.
//!
//! Plain data without I/O. It does not know who is connected, and it never prints a swiss number unless it is
//! asked for a URI.

use std::fmt;
use std::str::FromStr;

use data_encoding::{BASE64URL_NOPAD, Encoding, Specification};
use thiserror::Error;
use zeroize::Zeroizing;

use crate::syrup::Value;

/// How many servers a locator may name. Two such locators fit into one record.
pub const SERVERS_MAX: usize = 32;

/// The longest swiss number, in bytes.
pub const SWISS_BYTES_MAX: usize = 64;

/// The longest URI that is read, in bytes. The longest that is written has less than half of it.
pub const URI_BYTES_MAX: usize = 4096;

/// Characters of a designator: 32 bytes in base32.
pub const DESIGNATOR_CHARACTERS: usize = 52;

const TRANSPORT: &str = "unix-domain-socket";
const SCHEME: &str = "ocapn://";

/// The value of a hint. It means nothing, but there are readers that expect a string.
const HINT: &str = "t";

/// Hints of ours, beside the keys of servers.
const SEQPACKET: &str = "seqpacket";
const PROOF: &str = "proof";
pub(crate) const EXTENSION: &str = "sendright";
pub(crate) const VERSION: &str = "1";

/// An Ed25519 public key: the identity of a peer or of a server. Printed as its designator.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PublicKey(pub [u8; 32]);

/// Where a peer is to be found.
///
/// Printed and read as a URI:
///
/// ```
/// use introduction::Locator;
/// let key = "25njqamcweflpvkl73j4szahhihoc4xt3ktcgjnpaingr5yhkena";
/// let uri = format!("ocapn://{key}.unix-domain-socket?{key}=t");
/// let locator: Locator = uri.parse()?;
/// assert_eq!(locator.key.to_string(), key);
/// assert_eq!(locator.to_string(), uri);
/// # Ok::<(), introduction::LocatorError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Locator {
    /// Who it is.
    pub key: PublicKey,
    /// How to get there.
    pub hints: Hints,
}

/// How to get to a peer, and what it asks of those who come.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Hints {
    /// The servers it is registered with, [`SERVERS_MAX`] at most.
    pub servers: Servers,
    /// It takes connections over SEQPACKET pairs, and not only over streams.
    pub seqpacket: bool,
    /// Whether both sides must prove who they are on the connection itself.
    pub proof: Proof,
    /// In a registration: whoever registers speaks the extensions of PROTOCOL.md, "Introductions".
    pub(crate) extension: bool,
}

/// Servers in the order in which they are to be asked: it is the first with which both are registered that
/// introduces.
///
/// Each stands there once. A URI keeps the order, a record does not, since it has them as a dictionary, whose
/// keys are sorted; so the same servers are equal in whatever order.
///
/// ```
/// use introduction::{Identity, Locator, Servers};
///
/// let (near, far) = (Identity::generate()?.key(), Identity::generate()?.key());
/// let mut locator = Locator::new(Identity::generate()?.key());
/// locator.hints.servers = Servers::from([near, far]);
/// let read: Locator = locator.to_string().parse()?;
/// assert_eq!(read.hints.servers.first(), Some(&near));
/// assert_eq!(read.hints.servers, Servers::from([far, near]));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, Default)]
pub struct Servers(Vec<PublicKey>);

/// Whether a locator demands a proof of identity.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Proof {
    /// No: the server's word is good enough.
    #[default]
    None,
    /// Yes, and there is no connection without it.
    Required,
    /// Yes, in a version that is not known here. There is no connection.
    Unknown,
}

/// A peer and the secret that names something there. Knowing it is the right to use it.
///
/// Printed (with the secret) and read as a URI, `ocapn://…/s/SWISS?…`.
///
/// ```
/// use introduction::{Identity, Locator, SturdyRef, Swiss};
///
/// let locator = Locator::new(Identity::generate()?.key());
/// let reference = SturdyRef { locator, swiss: Swiss::new(b"whatever was drawn".to_vec())? };
/// let uri = reference.to_string();
/// assert!(uri.contains("/s/"));
/// assert_eq!(uri.parse::<SturdyRef>()?, reference);
/// // A locator is what is left when the secret is taken away, and never read with one.
/// assert!(uri.parse::<Locator>().is_err());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SturdyRef {
    /// Where.
    pub locator: Locator,
    /// What.
    pub swiss: Swiss,
}

/// A swiss number: 1 to [`SWISS_BYTES_MAX`] secret bytes, wiped from memory when dropped and not shown by
/// `Debug`.
#[derive(Clone)]
pub struct Swiss(Zeroizing<Vec<u8>>);

/// What is wrong with a locator.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum LocatorError {
    /// Not a URI of the form `ocapn://DESIGNATOR.TRANSPORT…`, or longer than [`URI_BYTES_MAX`].
    #[error("not an ocapn:// locator")]
    Form,
    /// A locator of another transport than Unix domain sockets.
    #[error("a locator of another transport than unix-domain-socket")]
    Transport,
    /// A designator that is not 52 characters of lower-case base32, in the one form there is for a key.
    #[error("a designator that is no key")]
    Designator,
    /// More than [`SERVERS_MAX`] servers, or hints that are no dictionary.
    #[error("too many hints, or none that could be read")]
    Hints,
    /// A swiss number where there should be none, or the reverse, or one that is empty, too long or not in
    /// base64.
    #[error("no swiss number where one belongs, or one that could not be read")]
    Swiss,
}

/// Lower-case base32 without padding, as OCapN has it.
fn base32() -> Encoding {
    let mut specification = Specification::new();
    specification.symbols.push_str("abcdefghijklmnopqrstuvwxyz234567");
    specification.encoding().expect("thirty-two symbols, and no padding")
}

impl FromStr for PublicKey {
    type Err = LocatorError;

    fn from_str(designator: &str) -> Result<PublicKey, LocatorError> {
        if designator.len() != DESIGNATOR_CHARACTERS {
            return Err(LocatorError::Designator);
        }
        let decoded = base32().decode(designator.as_bytes()).map_err(|_| LocatorError::Designator)?;
        decoded.try_into().map(PublicKey).map_err(|_| LocatorError::Designator)
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&base32().encode(&self.0))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PublicKey({self})")
    }
}

impl Locator {
    /// A locator without hints.
    pub fn new(key: PublicKey) -> Locator {
        Locator { key, hints: Hints::default() }
    }

    /// The `<ocapn-peer …>` record, with `f` for hints where there are none.
    pub(crate) fn write(&self, into: &mut Vec<u8>) {
        let designator = self.key.to_string();
        let servers: Vec<String> = self.hints.servers.iter().map(PublicKey::to_string).collect();
        let mut hints: Vec<(Value<'_>, Value<'_>)> =
            servers.iter().map(|server| (Value::String(server), Value::String(HINT))).collect();
        let ours = self.hints.ours();
        hints.extend(ours.into_iter().map(|(key, value)| (Value::String(key), Value::String(value))));
        let hints = if hints.is_empty() { Value::Boolean(false) } else { Value::Dictionary(hints) };
        let fields =
            vec![Value::Symbol("ocapn-peer"), Value::Symbol(TRANSPORT), Value::String(&designator), hints];
        Value::Record(fields).write(into);
    }

    /// From the `<ocapn-peer …>` record. The values of hints may be anything.
    pub(crate) fn from_value(value: &Value<'_>) -> Result<Locator, LocatorError> {
        let Some([transport, designator, hints]) = value.record("ocapn-peer") else {
            return Err(LocatorError::Form);
        };
        if transport.text() != Some(TRANSPORT) {
            return Err(LocatorError::Transport);
        }
        let key = designator.text().ok_or(LocatorError::Designator)?.parse()?;
        let mut read = Hints::default();
        match hints {
            Value::Boolean(false) => {}
            Value::Dictionary(pairs) => {
                for (key, value) in pairs {
                    read.add(key.text().unwrap_or_default(), value.text().unwrap_or_default())?;
                }
            }
            _ => return Err(LocatorError::Hints),
        }
        Ok(Locator { key, hints: read })
    }

    fn to_uri(&self, swiss: Option<&Swiss>) -> String {
        let mut uri = format!("{SCHEME}{}.{TRANSPORT}", self.key);
        if let Some(swiss) = swiss {
            uri.push_str("/s/");
            uri.push_str(&BASE64URL_NOPAD.encode(swiss.bytes()));
        }
        let servers = self.hints.servers.iter().map(|server| format!("{server}={HINT}"));
        let ours = self.hints.ours().into_iter().map(|(key, value)| format!("{key}={value}"));
        for (index, hint) in servers.chain(ours).enumerate() {
            uri.push(if index == 0 { '?' } else { '&' });
            uri.push_str(&hint);
        }
        uri
    }

    /// The locator, and the path that stands between it and its hints.
    fn from_uri(uri: &str) -> Result<(Locator, &str), LocatorError> {
        if uri.len() > URI_BYTES_MAX {
            return Err(LocatorError::Form);
        }
        let rest = uri.strip_prefix(SCHEME).ok_or(LocatorError::Form)?;
        let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
        let (host, path) = match rest.find('/') {
            Some(slash) => rest.split_at(slash),
            None => (rest, ""),
        };
        let (designator, transport) = host.rsplit_once('.').ok_or(LocatorError::Form)?;
        if transport != TRANSPORT {
            return Err(LocatorError::Transport);
        }
        let mut locator = Locator::new(designator.parse()?);
        for hint in query.split('&').filter(|hint| !hint.is_empty()) {
            let (key, value) = hint.split_once('=').unwrap_or((hint, ""));
            locator.hints.add(key, value)?;
        }
        Ok((locator, path))
    }
}

impl Servers {
    /// Puts one behind the others, unless it stands there. Says whether it did not.
    pub fn insert(&mut self, server: PublicKey) -> bool {
        let is_new = !self.contains(&server);
        if is_new {
            self.0.push(server);
        }
        is_new
    }

    /// Whether this one is among them.
    pub fn contains(&self, server: &PublicKey) -> bool {
        self.0.contains(server)
    }

    /// The one that is to be asked first.
    pub fn first(&self) -> Option<&PublicKey> {
        self.0.first()
    }

    /// All of them, in their order.
    pub fn iter(&self) -> std::slice::Iter<'_, PublicKey> {
        self.0.iter()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl PartialEq for Servers {
    fn eq(&self, other: &Servers) -> bool {
        self.len() == other.len() && self.iter().all(|server| other.contains(server))
    }
}

impl Eq for Servers {}

impl Extend<PublicKey> for Servers {
    fn extend<T: IntoIterator<Item = PublicKey>>(&mut self, servers: T) {
        for server in servers {
            self.insert(server);
        }
    }
}

impl FromIterator<PublicKey> for Servers {
    fn from_iter<T: IntoIterator<Item = PublicKey>>(servers: T) -> Servers {
        let mut all = Servers::default();
        all.extend(servers);
        all
    }
}

impl<const N: usize> From<[PublicKey; N]> for Servers {
    fn from(servers: [PublicKey; N]) -> Servers {
        servers.into_iter().collect()
    }
}

impl<'a> IntoIterator for &'a Servers {
    type Item = &'a PublicKey;
    type IntoIter = std::slice::Iter<'a, PublicKey>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl Hints {
    /// Files one hint. What is neither a server's key nor known here is nobody's business but its maker's.
    fn add(&mut self, key: &str, value: &str) -> Result<(), LocatorError> {
        match key {
            SEQPACKET => self.seqpacket = true,
            PROOF if value == VERSION => self.proof = Proof::Required,
            PROOF => self.proof = Proof::Unknown,
            EXTENSION => self.extension = value == VERSION,
            _ => {
                if let Ok(server) = key.parse() {
                    self.servers.insert(server);
                }
            }
        }
        if self.servers.len() > SERVERS_MAX { Err(LocatorError::Hints) } else { Ok(()) }
    }

    fn ours(&self) -> Vec<(&'static str, &'static str)> {
        let mut ours = Vec::new();
        match self.proof {
            Proof::None => {}
            Proof::Required => ours.push((PROOF, VERSION)),
            Proof::Unknown => ours.push((PROOF, "unknown")),
        }
        if self.extension {
            ours.push((EXTENSION, VERSION));
        }
        if self.seqpacket {
            ours.push((SEQPACKET, HINT));
        }
        ours
    }
}

impl fmt::Display for Locator {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.to_uri(None))
    }
}

impl FromStr for Locator {
    type Err = LocatorError;

    fn from_str(uri: &str) -> Result<Locator, LocatorError> {
        match Locator::from_uri(uri)? {
            (locator, "" | "/") => Ok(locator),
            _ => Err(LocatorError::Swiss),
        }
    }
}

impl fmt::Display for SturdyRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.locator.to_uri(Some(&self.swiss)))
    }
}

impl FromStr for SturdyRef {
    type Err = LocatorError;

    fn from_str(uri: &str) -> Result<SturdyRef, LocatorError> {
        let (locator, path) = Locator::from_uri(uri)?;
        let encoded = path.strip_prefix("/s/").ok_or(LocatorError::Swiss)?;
        let swiss = BASE64URL_NOPAD.decode(encoded.as_bytes()).map_err(|_| LocatorError::Swiss)?;
        Ok(SturdyRef { locator, swiss: Swiss::new(swiss)? })
    }
}

impl Swiss {
    /// From its bytes.
    ///
    /// # Errors
    /// [`LocatorError::Swiss`] if there are none, or more than [`SWISS_BYTES_MAX`].
    pub fn new(bytes: Vec<u8>) -> Result<Swiss, LocatorError> {
        let swiss = Swiss(Zeroizing::new(bytes));
        match swiss.bytes().len() {
            1..=SWISS_BYTES_MAX => Ok(swiss),
            _ => Err(LocatorError::Swiss),
        }
    }

    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }
}

impl PartialEq for Swiss {
    /// Takes the same time wherever they differ.
    fn eq(&self, other: &Swiss) -> bool {
        let (ours, theirs) = (self.bytes(), other.bytes());
        let differing = ours.iter().zip(theirs).fold(0, |differing, (our, their)| differing | (our ^ their));
        ours.len() == theirs.len() && std::hint::black_box(differing) == 0
    }
}

impl Eq for Swiss {}

impl fmt::Debug for Swiss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Swiss(…)")
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use proptest::prelude::*;

    use super::*;

    // The key of RFC 8032's first test, and all zeroes, both encoded elsewhere.
    const KEY: &str = "25njqamcweflpvkl73j4szahhihoc4xt3ktcgjnpaingr5yhkena";
    const ZERO: &str = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";

    fn read(bytes: &[u8]) -> Result<Locator, LocatorError> {
        Locator::from_value(&Value::read(bytes).unwrap())
    }

    fn peer(hints: &str) -> Vec<u8> {
        format!("<10'ocapn-peer18'unix-domain-socket52\"{KEY}{hints}>").into_bytes()
    }

    fn keys() -> impl Strategy<Value = PublicKey> {
        any::<[u8; 32]>().prop_map(PublicKey)
    }

    #[test]
    fn a_designator_has_one_form() {
        assert_eq!(ZERO.parse(), Ok(PublicKey([0; 32])));
        assert_eq!(PublicKey([0; 32]).to_string(), ZERO);
        let last_bits = format!("{}b", &ZERO[..51]);
        for wrong in [&ZERO[..51], &format!("{ZERO}a"), &KEY.to_uppercase(), &last_bits, "", "é"] {
            assert_eq!(wrong.parse::<PublicKey>(), Err(LocatorError::Designator), "{wrong}");
        }
    }

    #[test]
    fn hints_may_have_any_values_and_any_keys() {
        for hints in ["f", "{}"] {
            assert_eq!(read(&peer(hints)).unwrap(), Locator::new(KEY.parse().unwrap()));
        }
        let values = ["1\"t", "1't", "t", "f", "1+", "0:", "[]", "D\0\0\0\0\0\0\0\0", "{1'a1+}"];
        for value in values {
            for key in [format!("52\"{ZERO}"), format!("52'{ZERO}")] {
                let locator = read(&peer(&format!("{{5\"other[]{key}{value}7+t}}"))).unwrap();
                assert_eq!(locator.hints.servers, Servers::from([PublicKey([0; 32])]));
            }
        }
    }

    #[test]
    fn servers_stand_in_their_order_where_that_can_be_written() {
        let (one, two) = (PublicKey([1; 32]), PublicKey([2; 32]));
        for order in [[one, two], [two, one]] {
            let mut locator = Locator::new(KEY.parse().unwrap());
            locator.hints.servers = Servers::from(order);
            assert!(!locator.hints.servers.insert(order[1]), "once each");
            let of_uri: Locator = locator.to_string().parse().unwrap();
            assert!(of_uri.hints.servers.iter().eq(&order));
            // A dictionary has one order, and it is nobody's wish.
            let mut written = Vec::new();
            locator.write(&mut written);
            let sorted = read(&written).unwrap();
            assert!(sorted.hints.servers.iter().map(PublicKey::to_string).is_sorted());
            assert_eq!(sorted, locator);
        }
        assert_ne!(Servers::from([one]), Servers::from([one, two]));
        assert_ne!(Servers::from([one]), Servers::from([two]));
    }

    #[test]
    fn a_locator_is_written_as_others_read_it() {
        let mut locator = Locator::new(KEY.parse().unwrap());
        let written = |locator: &Locator| {
            let mut bytes = Vec::new();
            locator.write(&mut bytes);
            String::from_utf8(bytes).unwrap().into_bytes()
        };
        assert_eq!(written(&locator), peer("f"));
        locator.hints.servers.insert(PublicKey([0; 32]));
        assert_eq!(written(&locator), peer(&format!("{{52\"{ZERO}1\"t}}")));
        locator.hints.proof = Proof::Required;
        locator.hints.seqpacket = true;
        assert_eq!(written(&locator), peer(&format!("{{5\"proof1\"152\"{ZERO}1\"t9\"seqpacket1\"t}}")));
    }

    #[test]
    fn what_is_no_peer_of_this_transport_is_refused() {
        let form = |bytes: &str| read(bytes.as_bytes()).unwrap_err();
        assert_eq!(form("<10'ocapn-peer>"), LocatorError::Form);
        assert_eq!(form("1+"), LocatorError::Form);
        assert_eq!(form(&format!("<10'ocapn-peer5'onion52\"{KEY}f>")), LocatorError::Transport);
        assert_eq!(form("<10'ocapn-peer18'unix-domain-socket2\"aaf>"), LocatorError::Designator);
        assert_eq!(form("<10'ocapn-peer18'unix-domain-socket1+f>"), LocatorError::Designator);
        assert_eq!(read(&peer("t")).unwrap_err(), LocatorError::Hints);
        assert_eq!(read(&peer("[]")).unwrap_err(), LocatorError::Hints);
    }

    #[test]
    fn a_locator_names_so_many_servers_and_no_more() {
        let uri = |count: usize| {
            let hints: Vec<String> = (0..count).map(|n| format!("{}=t", PublicKey([n as u8; 32]))).collect();
            format!("ocapn://{KEY}.unix-domain-socket?{}", hints.join("&"))
        };
        assert_eq!(uri(SERVERS_MAX).parse::<Locator>().unwrap().hints.servers.len(), SERVERS_MAX);
        assert_eq!(uri(SERVERS_MAX + 1).parse::<Locator>(), Err(LocatorError::Hints));
    }

    #[test]
    fn a_sturdy_reference_has_a_swiss_number_and_a_locator_has_none() {
        let sturdy = format!("ocapn://{KEY}.unix-domain-socket/s/-_8?{ZERO}=t");
        let read: SturdyRef = sturdy.parse().unwrap();
        assert_eq!(read.swiss.bytes(), [0xfb, 0xff]);
        assert_eq!(read.to_string(), sturdy);
        assert!(!format!("{read:?}").contains("-_8"));
        assert_eq!(sturdy.parse::<Locator>(), Err(LocatorError::Swiss));
        let plain = format!("ocapn://{KEY}.unix-domain-socket");
        for wrong in ["", "/", "/s/", "/s/-_9", "/s/a b", "/x/-_8", &format!("/s/{}", "A".repeat(88))] {
            assert_eq!(format!("{plain}{wrong}").parse::<SturdyRef>(), Err(LocatorError::Swiss), "{wrong}");
        }
    }

    #[test]
    fn what_is_no_uri_of_ours_is_refused() {
        for wrong in ["", "http://x", "ocapn://", "ocapn://onlyhost", "OCAPN://a.unix-domain-socket"] {
            assert_eq!(wrong.parse::<Locator>(), Err(LocatorError::Form), "{wrong}");
        }
        assert_eq!(format!("ocapn://{KEY}.onion").parse::<Locator>(), Err(LocatorError::Transport));
        let long = format!("ocapn://{KEY}.unix-domain-socket?{}", "x".repeat(URI_BYTES_MAX));
        assert_eq!(long.parse::<Locator>(), Err(LocatorError::Form));
    }

    #[test]
    fn a_proof_of_another_version_is_not_taken_for_none() {
        let uri = format!("ocapn://{KEY}.unix-domain-socket?proof=2");
        assert_eq!(uri.parse::<Locator>().unwrap().hints.proof, Proof::Unknown);
        assert_eq!(read(&peer("{5\"prooft}")).unwrap().hints.proof, Proof::Unknown);
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(
            key in keys(),
            servers in prop::collection::btree_set(keys(), 0..SERVERS_MAX),
            (seqpacket, proof, extension) in any::<(bool, bool, bool)>(),
            swiss in prop::collection::vec(any::<u8>(), 1..SWISS_BYTES_MAX),
        ) {
            let proof = if proof { Proof::Required } else { Proof::None };
            let servers = servers.into_iter().collect();
            let locator = Locator { key, hints: Hints { servers, seqpacket, proof, extension } };
            let mut bytes = Vec::new();
            locator.write(&mut bytes);
            prop_assert_eq!(&read(&bytes).unwrap(), &locator);
            prop_assert_eq!(&locator.to_string().parse::<Locator>().unwrap(), &locator);
            let sturdy = SturdyRef { locator, swiss: Swiss::new(swiss).unwrap() };
            prop_assert_eq!(&sturdy.to_string().parse::<SturdyRef>().unwrap(), &sturdy);
        }

        #[test]
        fn any_text_is_read_or_refused(text in "(ocapn://)?[a-z2-7]{0,60}(.unix-domain-socket)?.{0,40}") {
            let _ = text.parse::<Locator>();
            let _ = text.parse::<SturdyRef>();
        }
    }
}
