//! What peers of an introduction server say, by hand: records with keys that are nobody's else.
//!
//! It owns three keys. It sends nothing, and does not know who is registered.

use data_encoding::{Encoding, Specification};
use ed25519_dalek::{Signer, SigningKey};

use crate::script::Script;

/// What the hostile sign themselves.
pub(crate) fn key(number: u8) -> SigningKey {
    SigningKey::from_bytes(&[200 + number % 3; 32])
}

pub(crate) fn designator(key: &[u8; 32]) -> String {
    let mut specification = Specification::new();
    specification.symbols.push_str("abcdefghijklmnopqrstuvwxyz234567");
    let encoding: Encoding = specification.encoding().unwrap();
    encoding.encode(key)
}

fn locator(designator: &str, hints: &str) -> String {
    format!("<10'ocapn-peer18'unix-domain-socket52\"{designator}{hints}>")
}

/// The first thing that a peer says.
pub(crate) fn registration(key: &SigningKey, hints: &str) -> Vec<u8> {
    let own = designator(key.verifying_key().as_bytes());
    format!("<12'uds:register{}64:{}>", locator(&own, hints), "c".repeat(64)).into_bytes()
}

/// The third, given the second: the signature of the server's challenge. `None` if that is no response.
pub(crate) fn signature(key: &SigningKey, response: &[u8]) -> Option<Vec<u8>> {
    const BEFORE_CHALLENGE: usize = 84 + 32 + 6;
    let challenge = response.get(BEFORE_CHALLENGE..BEFORE_CHALLENGE + 64)?;
    let signature = key.sign(challenge).to_bytes();
    Some([b"<13'uds:signature64:".as_slice(), challenge, b"64:", &signature, b">"].concat())
}

/// A server's answer to a registration, given it.
pub(crate) fn response(key: &SigningKey, registration: &[u8]) -> Option<Vec<u8>> {
    let challenge = registration.strip_suffix(b">")?;
    let challenge = &challenge[challenge.len().checked_sub(64)?..];
    let signature = key.sign(challenge).to_bytes();
    let (r, s) = signature.split_at(32);
    let key = key.verifying_key();
    let public =
        [b"[10'public-key[3'ecc[5'curve7'Ed25519][5'flags5'eddsa][1'q32:".as_slice(), key.as_bytes(), b"]]]"];
    let signed = [b"[7'sig-val[5'eddsa[1'r32:".as_slice(), r, b"][1's32:", s, b"]]]"];
    let own = [7; 64];
    let parts = [&public.concat(), b"64:".as_slice(), &own, &signed.concat()];
    Some([b"<19'uds:server-response".as_slice(), &parts.concat(), b">"].concat())
}

pub(crate) fn introduction(from: &str, to: &str, rest: &str) -> Vec<u8> {
    let (from, to) = (locator(from, "f"), locator(to, "f"));
    format!("<18'uds:new-connection{from}{to}{rest}>").into_bytes()
}

/// Some records back to back, most of them as they may be; and between them bytes that are none.
pub(crate) fn stream(script: &mut Script<'_>) -> Vec<u8> {
    let mut bytes = Vec::new();
    for _ in 0..1 + script.below(4) {
        let begin = bytes.len();
        bytes.extend(record(script));
        // One in eight is spoilt.
        if script.below(8) == 7 && bytes.len() > begin {
            let place = begin + (script.number() as usize) % (bytes.len() - begin);
            bytes[place] = script.byte();
        }
    }
    if script.below(8) == 7 {
        bytes.truncate(script.byte().into());
    }
    bytes
}

fn record(script: &mut Script<'_>) -> Vec<u8> {
    let name = |number| designator(key(number).verifying_key().as_bytes());
    match script.below(10) {
        0..=2 => introduction(&name(script.byte()), &name(script.byte()), script.one_of(&["", "0+", "7+"])),
        3 => introduction(&name(script.byte()), &"a".repeat(52), ""),
        4 => registration(
            &key(script.byte()),
            script.one_of(&["f", "{}", "{9\"sendright1\"1}", "{5\"proof1\"1}"]),
        ),
        5 => format!("<17'sendright:verdict{}+t>", script.one_of(&[0_u64, 1, 7, u64::MAX])).into_bytes(),
        6 => {
            format!("<17'sendright:outcome{}+8'accepted>", script.one_of(&[0_u64, 1, u64::MAX])).into_bytes()
        }
        7 => signature(&key(script.byte()), &[script.byte(); 200]).unwrap_or_default(),
        8 => b"\x39\x30\0\0".to_vec(),
        _ => script
            .one_of(&["<300000000:", "[[[[[[[[[[[[[[[[[[", "<>", "99999999999999999999999999999999+", "t"])
            .into(),
    }
}
