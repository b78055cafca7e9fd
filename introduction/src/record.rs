//! The records that peers and servers say to each other, as bytes and as types that cannot be wrong.
//!
//! No I/O and no keys but as data: whether a signature is good is for others. Of each record both spoken
//! forms are read, that of Goblins and that of the draft; which one is written is said by whoever writes.

use thiserror::Error;

use crate::locator::{Locator, LocatorError, PublicKey};
use crate::syrup::{Malformed, Scanner, Value};

/// The longest record, in bytes: two locators with as many servers as they may name.
pub const RECORD_BYTES_MAX: usize = 4096;

/// Bytes of a challenge as it is made here.
pub const CHALLENGE_BYTES: usize = 64;

/// The shortest challenge of somebody else's that is signed.
pub const CHALLENGE_BYTES_MIN: usize = 32;

/// Which of two ways to write the same thing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Form {
    /// As Spritely Goblins 0.17 and 0.18 have it: a server's signature is bare, a peer's is 64 raw bytes.
    #[default]
    Goblins,
    /// As the draft specification has it: a server's signature is wrapped in a `uds:signature`, a peer's is a
    /// list.
    Draft,
}

/// An Ed25519 signature, as bytes.
pub(crate) type SignatureBytes = [u8; 64];

/// What peers and servers say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Record {
    /// Peer to server, first.
    Register { locator: Locator, challenge: Challenge },
    /// Server to peer, second.
    ServerResponse {
        key: PublicKey,
        challenge: Challenge,
        signature: SignatureBytes,
        form: Form,
        version: u64,
    },
    /// Peer to server, third.
    Signature { payload: Challenge, signature: SignatureBytes },
    /// Peer to server and server to peer. The number is the extension's.
    NewConnection { from: Locator, to: Locator, number: Option<u64> },
    /// Peer to server: whether the connection of this number was taken. Extension.
    Verdict { number: u64, accepted: bool },
    /// Server to peer: what became of the peer's introduction of this number. Extension.
    Outcome { number: u64, outcome: Outcome },
}

/// What a server says of an introduction, where it says anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub(crate) enum Outcome {
    /// The peer has taken the connection.
    Accepted,
    /// The peer has refused it, or policy does not allow it. Said only where policy lets those who ask know.
    Refused,
    /// Nobody of that key is registered. Said only where policy lets those who ask know.
    Unknown,
    /// The time is over, and nothing more is said.
    Unanswered,
}

impl Outcome {
    const ALL: [(Outcome, &'static str); 4] = [
        (Outcome::Accepted, "accepted"),
        (Outcome::Refused, "refused"),
        (Outcome::Unknown, "unknown"),
        (Outcome::Unanswered, "unanswered"),
    ];

    fn name(self) -> &'static str {
        Outcome::ALL.iter().find(|(outcome, _)| *outcome == self).map_or("", |(_, name)| name)
    }
}

/// Bytes to be signed: 32 to 64. A statement of ours is always longer, so that a signature for a challenge
/// that somebody else has made up can never pass for one under a statement.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Challenge(Vec<u8>);

impl Challenge {
    pub(crate) fn new(bytes: &[u8]) -> Result<Challenge, RecordError> {
        match bytes.len() {
            CHALLENGE_BYTES_MIN..=CHALLENGE_BYTES => Ok(Challenge(bytes.to_vec())),
            _ => Err(RecordError::Challenge),
        }
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        &self.0
    }
}

/// Why bytes are no record of this protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub(crate) enum RecordError {
    /// No Syrup.
    #[error(transparent)]
    Malformed(#[from] Malformed),
    /// No record that is known, or one with other fields than it has.
    #[error("no record of this protocol")]
    Unknown,
    /// A locator that could not be read.
    #[error(transparent)]
    Locator(#[from] LocatorError),
    /// A challenge of less than [`CHALLENGE_BYTES_MIN`] or more than [`CHALLENGE_BYTES`] bytes.
    #[error("a challenge too short or too long to be signed")]
    Challenge,
    /// No Ed25519 public key in any form that is known.
    #[error("no Ed25519 public key")]
    Key,
    /// No Ed25519 signature in any form that is known.
    #[error("no Ed25519 signature")]
    Signature,
}

impl Record {
    /// Reads one whole record.
    pub(crate) fn read(bytes: &[u8]) -> Result<Record, RecordError> {
        let value = Value::read(bytes)?;
        let Value::Record(items) = &value else { return Err(RecordError::Unknown) };
        let Some((Value::Symbol(label), fields)) = items.split_first() else {
            return Err(RecordError::Unknown);
        };
        match (*label, fields) {
            ("uds:register", [locator, challenge]) => Ok(Record::Register {
                locator: Locator::from_value(locator)?,
                challenge: read_challenge(challenge)?,
            }),
            ("uds:server-response", [key, challenge, signature]) => {
                read_response(key, challenge, signature, 0)
            }
            ("uds:server-response", [key, challenge, signature, version]) => {
                let version = version.amount().ok_or(RecordError::Unknown)?;
                read_response(key, challenge, signature, version)
            }
            ("uds:signature", [payload, signature]) => Ok(Record::Signature {
                payload: read_challenge(payload)?,
                signature: read_signature(signature)?,
            }),
            ("uds:new-connection", [from, to, rest @ ..]) if rest.len() <= 1 => {
                let number = match rest.first() {
                    Some(number) => Some(number.amount().ok_or(RecordError::Unknown)?),
                    None => None,
                };
                let (from, to) = (Locator::from_value(from)?, Locator::from_value(to)?);
                Ok(Record::NewConnection { from, to, number })
            }
            ("sendright:verdict", [number, Value::Boolean(accepted)]) => Ok(Record::Verdict {
                number: number.amount().ok_or(RecordError::Unknown)?,
                accepted: *accepted,
            }),
            ("sendright:outcome", [number, Value::Symbol(name)]) => {
                let known = Outcome::ALL.iter().find(|(_, known)| known == name);
                let (outcome, _) = known.ok_or(RecordError::Unknown)?;
                Ok(Record::Outcome {
                    number: number.amount().ok_or(RecordError::Unknown)?,
                    outcome: *outcome,
                })
            }
            _ => Err(RecordError::Unknown),
        }
    }

    /// Writes the record. `form` decides where forms differ.
    pub(crate) fn to_bytes(&self, form: Form) -> Vec<u8> {
        let mut bytes = Vec::new();
        match self {
            Record::Register { locator, challenge } => {
                begin(&mut bytes, "uds:register");
                locator.write(&mut bytes);
                Value::Bytes(challenge.bytes()).write(&mut bytes);
            }
            Record::ServerResponse { key, challenge, signature, version, .. } => {
                begin(&mut bytes, "uds:server-response");
                public_key(key).write(&mut bytes);
                Value::Bytes(challenge.bytes()).write(&mut bytes);
                signature_list(signature).write(&mut bytes);
                if *version > 0 {
                    write_number(*version, &mut bytes);
                }
            }
            Record::Signature { payload, signature } => {
                begin(&mut bytes, "uds:signature");
                Value::Bytes(payload.bytes()).write(&mut bytes);
                match form {
                    Form::Goblins => Value::Bytes(signature).write(&mut bytes),
                    Form::Draft => signature_list(signature).write(&mut bytes),
                }
            }
            Record::NewConnection { from, to, number } => {
                begin(&mut bytes, "uds:new-connection");
                from.write(&mut bytes);
                to.write(&mut bytes);
                if let Some(number) = number {
                    write_number(*number, &mut bytes);
                }
            }
            Record::Verdict { number, accepted } => {
                begin(&mut bytes, "sendright:verdict");
                write_number(*number, &mut bytes);
                Value::Boolean(*accepted).write(&mut bytes);
            }
            Record::Outcome { number, outcome } => {
                begin(&mut bytes, "sendright:outcome");
                write_number(*number, &mut bytes);
                Value::Symbol(outcome.name()).write(&mut bytes);
            }
        }
        bytes.push(b'>');
        assert!(bytes.len() <= RECORD_BYTES_MAX, "locators keep to their limits, so records do");
        bytes
    }

    /// A server's response in the draft's form, which repeats what was signed.
    pub(crate) fn draft_response(
        key: &PublicKey,
        challenge: &Challenge,
        signed: &Challenge,
        signature: &SignatureBytes,
        version: u64,
    ) -> Vec<u8> {
        let mut bytes = Vec::new();
        begin(&mut bytes, "uds:server-response");
        public_key(key).write(&mut bytes);
        Value::Bytes(challenge.bytes()).write(&mut bytes);
        let fields =
            vec![Value::Symbol("uds:signature"), Value::Bytes(signed.bytes()), signature_list(signature)];
        Value::Record(fields).write(&mut bytes);
        if version > 0 {
            write_number(version, &mut bytes);
        }
        bytes.push(b'>');
        bytes
    }
}

/// The same `uds:new-connection` with a number behind it.
pub(crate) fn with_number(record: &[u8], number: u64) -> Vec<u8> {
    let mut bytes = record.to_vec();
    let end = bytes.pop();
    assert_eq!(end, Some(b'>'), "a record was read here before");
    write_number(number, &mut bytes);
    bytes.push(b'>');
    bytes
}

/// What whoever asks says of itself, as it stands in a `uds:new-connection`: hints that are not known here
/// included.
pub(crate) fn asker(record: &[u8]) -> &[u8] {
    const BEFORE: usize = b"<18'uds:new-connection".len();
    let rest = record.get(BEFORE..).unwrap_or_default();
    let length = Scanner::new(RECORD_BYTES_MAX).scan(rest).ok().flatten();
    &rest[..length.expect("a record was read here before")]
}

fn begin(into: &mut Vec<u8>, label: &str) {
    into.push(b'<');
    Value::Symbol(label).write(into);
}

fn write_number(number: u64, into: &mut Vec<u8>) {
    Value::Integer { negative: false, digits: &number.to_string() }.write(into);
}

fn public_key(key: &PublicKey) -> Value<'_> {
    let named = |name, value| Value::List(vec![Value::Symbol(name), value]);
    Value::List(vec![
        Value::Symbol("public-key"),
        Value::List(vec![
            Value::Symbol("ecc"),
            named("curve", Value::Symbol("Ed25519")),
            named("flags", Value::Symbol("eddsa")),
            named("q", Value::Bytes(&key.0)),
        ]),
    ])
}

fn signature_list(signature: &SignatureBytes) -> Value<'_> {
    let (r, s) = signature.split_at(32);
    let named = |name, value| Value::List(vec![Value::Symbol(name), Value::Bytes(value)]);
    Value::List(vec![
        Value::Symbol("sig-val"),
        Value::List(vec![Value::Symbol("eddsa"), named("r", r), named("s", s)]),
    ])
}

fn read_response(
    key: &Value<'_>,
    challenge: &Value<'_>,
    signature: &Value<'_>,
    version: u64,
) -> Result<Record, RecordError> {
    let (signature, form) = match signature.record("uds:signature") {
        Some([_, signature]) => (signature, Form::Draft),
        Some(_) => return Err(RecordError::Signature),
        None => (signature, Form::Goblins),
    };
    Ok(Record::ServerResponse {
        key: read_key(key).ok_or(RecordError::Key)?,
        challenge: read_challenge(challenge)?,
        signature: read_signature(signature)?,
        form,
        version,
    })
}

fn read_challenge(value: &Value<'_>) -> Result<Challenge, RecordError> {
    Challenge::new(value.bytes().ok_or(RecordError::Challenge)?)
}

/// The items of `[label items…]`.
fn list<'v, 'a>(value: &'v Value<'a>, label: &str) -> Option<&'v [Value<'a>]> {
    match value {
        Value::List(items) => match items.split_first()? {
            (Value::Symbol(found), rest) if *found == label => Some(rest),
            _ => None,
        },
        _ => None,
    }
}

/// The bytes of `[label bytes]`.
fn named<const N: usize>(value: &Value<'_>, label: &str) -> Option<[u8; N]> {
    match list(value, label)? {
        [bytes] => bytes.bytes()?.try_into().ok(),
        _ => None,
    }
}

fn read_key(value: &Value<'_>) -> Option<PublicKey> {
    let [inside] = list(value, "public-key")? else { return None };
    let [curve, flags, q] = list(inside, "ecc")? else { return None };
    let is =
        |value, label, name| matches!(list(value, label), Some([Value::Symbol(found)]) if *found == name);
    if is(curve, "curve", "Ed25519") && is(flags, "flags", "eddsa") {
        named(q, "q").map(PublicKey)
    } else {
        None
    }
}

/// 64 raw bytes, or the list.
fn read_signature(value: &Value<'_>) -> Result<SignatureBytes, RecordError> {
    if let Some(raw) = value.bytes() {
        return raw.try_into().map_err(|_| RecordError::Signature);
    }
    let read = || {
        let [inside] = list(value, "sig-val")? else { return None };
        let [r, s] = list(inside, "eddsa")? else { return None };
        let (r, s): ([u8; 32], [u8; 32]) = (named(r, "r")?, named(s, "s")?);
        let mut signature = [0; 64];
        signature[..32].copy_from_slice(&r);
        signature[32..].copy_from_slice(&s);
        Some(signature)
    };
    read().ok_or(RecordError::Signature)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use proptest::prelude::*;

    use super::*;
    use crate::locator::Proof;

    // What follows is put together by hand from the table of the protocol, not by what it tests.
    const KEY: &str = "25njqamcweflpvkl73j4szahhihoc4xt3ktcgjnpaingr5yhkena";
    const KEY_BYTES: [u8; 32] = [
        0xd7, 0x5a, 0x98, 0x01, 0x82, 0xb1, 0x0a, 0xb7, 0xd5, 0x4b, 0xfe, 0xd3, 0xc9, 0x64, 0x07, 0x3a, 0x0e,
        0xe1, 0x72, 0xf3, 0xda, 0xa6, 0x23, 0x25, 0xaf, 0x02, 0x1a, 0x68, 0xf7, 0x07, 0x51, 0x1a,
    ];
    const ZERO: &str = "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa";
    const HALF: &str = "0123456789abcdef0123456789abcdef";
    const OTHER_HALF: &str = "ABCDEFGHIJKLMNOPQRSTUVWXYZ!?.,;:";

    fn locator_bytes(designator: &str) -> String {
        format!("<10'ocapn-peer18'unix-domain-socket52\"{designator}f>")
    }

    fn key_bytes() -> Vec<u8> {
        let mut bytes = b"[10'public-key[3'ecc[5'curve7'Ed25519][5'flags5'eddsa][1'q32:".to_vec();
        bytes.extend(KEY_BYTES);
        bytes.extend(b"]]]");
        bytes
    }

    fn signature_list_bytes() -> String {
        format!("[7'sig-val[5'eddsa[1'r32:{HALF}][1's32:{OTHER_HALF}]]]")
    }

    fn signature() -> SignatureBytes {
        format!("{HALF}{OTHER_HALF}").into_bytes().try_into().unwrap()
    }

    fn challenge(text: &str) -> Challenge {
        Challenge::new(text.as_bytes()).unwrap()
    }

    fn key() -> PublicKey {
        PublicKey(KEY_BYTES)
    }

    #[test]
    fn a_registration_is_176_bytes() {
        let text = format!("<12'uds:register{}64:{HALF}{OTHER_HALF}>", locator_bytes(KEY));
        assert_eq!(text.len(), 176);
        let record = Record::read(text.as_bytes()).unwrap();
        let expected = Record::Register {
            locator: Locator::new(key()),
            challenge: challenge(&format!("{HALF}{OTHER_HALF}")),
        };
        assert_eq!(record, expected);
        assert_eq!(record.to_bytes(Form::Goblins), text.as_bytes());
        assert_eq!(record.to_bytes(Form::Draft), text.as_bytes());
    }

    fn response_bytes(signature: &str, version: &str) -> Vec<u8> {
        let mut bytes = b"<19'uds:server-response".to_vec();
        bytes.extend(key_bytes());
        bytes.extend(format!("64:{OTHER_HALF}{HALF}{signature}{version}>").bytes());
        bytes
    }

    #[test]
    fn a_response_is_read_in_both_forms() {
        let wrapped = format!("<13'uds:signature64:{HALF}{OTHER_HALF}{}>", signature_list_bytes());
        let challenge = challenge(&format!("{OTHER_HALF}{HALF}"));
        for (bare, form) in [(signature_list_bytes(), Form::Goblins), (wrapped, Form::Draft)] {
            for (text, version) in [("", 0), ("1+", 1)] {
                let bytes = response_bytes(&bare, text);
                let expected = Record::ServerResponse {
                    key: key(),
                    challenge: challenge.clone(),
                    signature: signature(),
                    form,
                    version,
                };
                assert_eq!(Record::read(&bytes).unwrap(), expected);
                let written = match form {
                    Form::Goblins => expected.to_bytes(form),
                    Form::Draft => {
                        let signed = Challenge::new(&signature()).unwrap();
                        Record::draft_response(&key(), &challenge, &signed, &signature(), version)
                    }
                };
                assert_eq!(written, bytes);
            }
        }
    }

    #[test]
    fn a_peers_signature_is_read_and_written_in_both_forms() {
        let raw = format!("<13'uds:signature64:{OTHER_HALF}{HALF}64:{HALF}{OTHER_HALF}>");
        let list = format!("<13'uds:signature64:{OTHER_HALF}{HALF}{}>", signature_list_bytes());
        let expected =
            Record::Signature { payload: challenge(&format!("{OTHER_HALF}{HALF}")), signature: signature() };
        for (bytes, form) in [(raw, Form::Goblins), (list, Form::Draft)] {
            assert_eq!(Record::read(bytes.as_bytes()).unwrap(), expected);
            assert_eq!(expected.to_bytes(form), bytes.as_bytes());
        }
    }

    #[test]
    fn an_introduction_is_read_with_and_without_a_number() {
        let start = format!("<18'uds:new-connection{}{}", locator_bytes(KEY), locator_bytes(ZERO));
        let (from, to) = (Locator::new(key()), Locator::new(PublicKey([0; 32])));
        for (text, number) in [(">", None), ("7+>", Some(7)), ("18446744073709551615+>", Some(u64::MAX))] {
            let bytes = format!("{start}{text}");
            let expected = Record::NewConnection { from: from.clone(), to: to.clone(), number };
            assert_eq!(Record::read(bytes.as_bytes()).unwrap(), expected);
            assert_eq!(expected.to_bytes(Form::Goblins), bytes.as_bytes());
        }
        assert_eq!(asker(format!("{start}7+>").as_bytes()), locator_bytes(KEY).as_bytes());
        assert_eq!(with_number(format!("{start}>").as_bytes(), 7), format!("{start}7+>").as_bytes());
        for wrong in ["7->", "t>", "7+7+>", "18446744073709551616+>"] {
            let read = Record::read(format!("{start}{wrong}").as_bytes());
            assert_eq!(read, Err(RecordError::Unknown), "{wrong}");
        }
    }

    #[test]
    fn the_extensions_records_are_read_and_written() {
        let verdict = Record::Verdict { number: 3, accepted: true };
        assert_eq!(verdict.to_bytes(Form::Goblins), b"<17'sendright:verdict3+t>");
        assert_eq!(Record::read(b"<17'sendright:verdict3+t>"), Ok(verdict));
        for (outcome, name) in Outcome::ALL {
            let bytes = format!("<17'sendright:outcome0+{}'{name}>", name.len());
            let record = Record::Outcome { number: 0, outcome };
            assert_eq!(record.to_bytes(Form::Goblins), bytes.as_bytes());
            assert_eq!(Record::read(bytes.as_bytes()), Ok(record));
        }
        assert_eq!(Record::read(b"<17'sendright:outcome0+2'no>"), Err(RecordError::Unknown));
    }

    /// The blocks of PROTOCOL.md that say ```syrup, by name.
    fn documented() -> Vec<(String, Vec<u8>)> {
        let document = include_str!("../../PROTOCOL.md");
        let blocks = document.split("```syrup ").skip(1);
        let lines = |block: &str| -> Vec<u8> {
            let lines = block.lines().skip(1).take_while(|line| *line != "```");
            lines.flat_map(|line| line.split("  #").next().unwrap_or_default().bytes()).collect()
        };
        blocks.map(|block| (block.lines().next().unwrap().to_owned(), lines(block))).collect()
    }

    #[test]
    fn what_is_documented_is_what_is_read_and_written() {
        let mut names = Vec::new();
        for (name, bytes) in documented() {
            let record = Record::read(&bytes).unwrap_or_else(|error| panic!("{name}: {error}"));
            let written = match &record {
                Record::ServerResponse { key, challenge, signature, form: Form::Draft, version } => {
                    let signed = challenge_of(b"0123456789abcdef0123456789abcdef", 2);
                    Record::draft_response(key, challenge, &signed, signature, *version)
                }
                record => record.to_bytes(Form::Goblins),
            };
            assert_eq!(written.escape_ascii().to_string(), bytes.escape_ascii().to_string(), "{name}");
            names.push(name);
        }
        assert_eq!(names.len(), 8, "{names:?}");
    }

    fn challenge_of(part: &[u8], times: usize) -> Challenge {
        Challenge::new(&part.repeat(times)).unwrap()
    }

    #[test]
    fn a_challenge_is_long_enough_to_be_one_and_too_short_for_a_statement() {
        for (length, is_good) in [(0, false), (31, false), (32, true), (64, true), (65, false)] {
            let bytes = format!("<12'uds:register{}{length}:{}>", locator_bytes(KEY), "x".repeat(length));
            assert_eq!(Record::read(bytes.as_bytes()).is_ok(), is_good, "{length}");
        }
    }

    #[test]
    fn other_keys_and_signatures_are_refused() {
        let good = response_bytes(&signature_list_bytes(), "");
        let replaced = |from: &str, to: &str| {
            let at = good.windows(from.len()).position(|part| part == from.as_bytes()).unwrap();
            Record::read(&[&good[..at], to.as_bytes(), &good[at + from.len()..]].concat())
        };
        assert_eq!(replaced("7'Ed25519", "5'Ed448"), Err(RecordError::Key));
        assert_eq!(replaced("5'eddsa]", "5'ecdsa]"), Err(RecordError::Key));
        assert_eq!(replaced("10'public-key", "11'private-key"), Err(RecordError::Key));
        assert_eq!(replaced("7'sig-val", "7'sig-var"), Err(RecordError::Signature));
        assert_eq!(replaced("1'r", "1's"), Err(RecordError::Signature));
        assert_eq!(replaced("19'uds:server-response", "3'uds"), Err(RecordError::Unknown));
        assert_eq!(Record::read(b"t"), Err(RecordError::Unknown));
        assert_eq!(Record::read(b"<>"), Err(RecordError::Unknown));
    }

    #[test]
    fn two_locators_with_all_the_servers_they_may_name_fit_into_a_record() {
        let mut from = Locator::new(key());
        from.hints.servers = (0..crate::locator::SERVERS_MAX).map(|n| PublicKey([n as u8; 32])).collect();
        from.hints.proof = crate::locator::Proof::Required;
        from.hints.seqpacket = true;
        let record = Record::NewConnection { from: from.clone(), to: from, number: Some(u64::MAX) };
        let bytes = record.to_bytes(Form::Goblins);
        assert!(bytes.len() <= RECORD_BYTES_MAX);
        assert_eq!(Record::read(&bytes), Ok(record));
    }

    fn locators() -> impl Strategy<Value = Locator> {
        (any::<[u8; 32]>(), prop::collection::btree_set(any::<[u8; 32]>(), 0..4), any::<[bool; 3]>())
            .prop_map(|(key, servers, [seqpacket, proof, extension])| {
                let mut locator = Locator::new(PublicKey(key));
                locator.hints.servers = servers.into_iter().map(PublicKey).collect();
                (locator.hints.seqpacket, locator.hints.extension) = (seqpacket, extension);
                locator.hints.proof = if proof { Proof::Required } else { Proof::None };
                locator
            })
    }

    fn challenges() -> impl Strategy<Value = Challenge> {
        prop::collection::vec(any::<u8>(), CHALLENGE_BYTES_MIN..=CHALLENGE_BYTES)
            .prop_map(|bytes| Challenge::new(&bytes).unwrap())
    }

    fn signatures() -> impl Strategy<Value = SignatureBytes> {
        prop::collection::vec(any::<u8>(), 64).prop_map(|bytes| bytes.try_into().unwrap())
    }

    /// Any record but a server's response, whose form is part of it.
    fn records() -> impl Strategy<Value = Record> {
        let outcomes = Outcome::ALL.map(|(outcome, _)| outcome).to_vec();
        prop_oneof![
            (locators(), challenges())
                .prop_map(|(locator, challenge)| Record::Register { locator, challenge }),
            (challenges(), signatures())
                .prop_map(|(payload, signature)| Record::Signature { payload, signature }),
            (locators(), locators(), any::<Option<u64>>())
                .prop_map(|(from, to, number)| Record::NewConnection { from, to, number }),
            any::<(u64, bool)>().prop_map(|(number, accepted)| Record::Verdict { number, accepted }),
            (any::<u64>(), prop::sample::select(outcomes))
                .prop_map(|(number, outcome)| Record::Outcome { number, outcome }),
        ]
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(record in records()) {
            for form in [Form::Goblins, Form::Draft] {
                prop_assert_eq!(Record::read(&record.to_bytes(form)).unwrap(), record.clone());
            }
        }

        #[test]
        fn a_written_response_is_read(
            key in any::<[u8; 32]>(),
            challenge in challenges(),
            signed in challenges(),
            signature in signatures(),
            version in 0_u64..3,
        ) {
            let key = PublicKey(key);
            let said = |form| Record::ServerResponse {
                key, challenge: challenge.clone(), signature, form, version,
            };
            let bare = said(Form::Goblins);
            prop_assert_eq!(Record::read(&bare.to_bytes(Form::Goblins)).unwrap(), bare);
            let wrapped = Record::draft_response(&key, &challenge, &signed, &signature, version);
            prop_assert_eq!(Record::read(&wrapped).unwrap(), said(Form::Draft));
        }

        #[test]
        fn any_bytes_are_read_or_refused(
            before in 0_usize..300,
            instead in prop::collection::vec(any::<u8>(), 0..8),
        ) {
            let text = response_bytes(&signature_list_bytes(), "1+");
            let at = before.min(text.len());
            let after = (at + instead.len()).min(text.len());
            let bytes = [&text[..at], &instead, &text[after..]].concat();
            let _ = Record::read(&bytes);
        }
    }
}
