//! What is signed, byte for byte: statements that say what they are for, between whom, and in which
//! direction.
//!
//! Plain data. Each begins with a line that no other has, and is longer than any challenge, so that a
//! signature for one thing is never good for another.

use crate::locator::PublicKey;
use crate::record::CHALLENGE_BYTES;

/// Random bytes that make each statement of its kind the only one.
pub(crate) type Nonce = [u8; 32];

/// What a peer signs to register with a server, where both speak the extension: a signature for one server is
/// of no use with another.
pub(crate) fn registration(
    server: &PublicKey,
    peer: &PublicKey,
    peers_challenge: &[u8; CHALLENGE_BYTES],
    servers_challenge: &[u8; CHALLENGE_BYTES],
) -> Vec<u8> {
    let line = b"sendright registration 1\n".as_slice();
    [line, &server.0, &peer.0, peers_challenge, servers_challenge].concat()
}

/// What two peers prove to each other.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Between {
    /// Who has asked for the introduction.
    pub(crate) asker: PublicKey,
    /// Who was asked for.
    pub(crate) answerer: PublicKey,
    /// The server that both were introduced by.
    pub(crate) server: PublicKey,
}

/// What the two of one connection have told each other.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Told {
    /// The asker's.
    pub(crate) asker: Nonce,
    /// The kernel's number of the far end of the pair that the introduction passed on.
    pub(crate) far: u64,
    /// The answerer's.
    pub(crate) answerer: Nonce,
    /// The kernel's number of the end that the answerer has sent.
    pub(crate) fresh: u64,
}

impl Between {
    fn begin(&self, line: &[u8]) -> Vec<u8> {
        [line, &self.asker.0, &self.answerer.0, &self.server.0].concat()
    }

    /// The asker's first: it has made the pair, and this is what it says of itself.
    pub(crate) fn hello(&self, told: &Told, locator: &[u8]) -> Vec<u8> {
        let mut statement = self.begin(b"sendright hello 1\n");
        statement.extend(told.asker);
        statement.extend(told.far.to_le_bytes());
        statement.extend(locator);
        statement
    }

    /// The answerer's: it has got the far end of that pair, and sends an end of another.
    pub(crate) fn answer(&self, told: &Told) -> Vec<u8> {
        self.all(b"sendright answer 1\n", told)
    }

    /// The asker's last, over the other pair: it has got that end.
    pub(crate) fn finish(&self, told: &Told) -> Vec<u8> {
        self.all(b"sendright finish 1\n", told)
    }

    fn all(&self, line: &[u8], told: &Told) -> Vec<u8> {
        let mut statement = self.begin(line);
        statement.extend(told.asker);
        statement.extend(told.far.to_le_bytes());
        statement.extend(told.answerer);
        statement.extend(told.fresh.to_le_bytes());
        statement
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_statement_can_pass_for_a_challenge_or_for_another() {
        let key = |n| PublicKey([n; 32]);
        let between = Between { asker: key(1), answerer: key(2), server: key(3) };
        let told = Told { asker: [4; 32], far: 5, answerer: [6; 32], fresh: 7 };
        let statements = [
            registration(&key(3), &key(1), &[4; 64], &[5; 64]),
            between.hello(&told, b""),
            between.answer(&told),
            between.finish(&told),
        ];
        // As PROTOCOL.md has them.
        assert_eq!(statements.each_ref().map(Vec::len), [217, 154, 195, 195]);
        for (index, statement) in statements.iter().enumerate() {
            assert!(statement.len() > CHALLENGE_BYTES);
            for other in &statements[index + 1..] {
                assert_ne!(statement[..12], other[..12]);
            }
        }
    }
}
