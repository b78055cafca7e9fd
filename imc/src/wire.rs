//! Typed messages, byte for byte: sixteen bytes in front of the data that say what each descriptor is.
//!
//! Owns the layout, reads and writes it, and judges its form. It does no I/O and holds no descriptor; whether
//! a descriptor is what it is said to be is asked elsewhere.

/// What a message of this version begins with.
pub(crate) const VERSION: u8 = 1;

/// The bytes in front of the data.
pub(crate) const HEADER_BYTES: usize = 16;

/// How many descriptors, or places for them, one message has at most.
pub(crate) const PLACES_MAX: usize = 8;

/// The most bytes of data.
pub(crate) const DATA_BYTES_MAX: usize = 131_072;

/// Where the kinds begin, one byte each.
const KINDS: usize = 8;

/// What a descriptor is declared to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// No descriptor: a place that is left free.
    Nothing = 0,
    SocketAddress = 1,
    DataOnlySocket = 2,
    SharedMemory = 3,
    FrozenMemory = 4,
    File = 5,
}

impl Kind {
    fn from_byte(byte: u8) -> Option<Kind> {
        const ALL: [Kind; 6] = [
            Kind::Nothing,
            Kind::SocketAddress,
            Kind::DataOnlySocket,
            Kind::SharedMemory,
            Kind::FrozenMemory,
            Kind::File,
        ];
        ALL.get(usize::from(byte)).copied()
    }

    /// Whether a descriptor comes with it.
    pub(crate) fn has_descriptor(self) -> bool {
        self != Kind::Nothing
    }
}

/// What stands in front of the data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    kinds: [Kind; PLACES_MAX],
    places: usize,
    data_bytes: u32,
}

/// Why a packet is no typed message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Malformed {
    Short,
    Version,
    TooManyPlaces,
    UnknownKind,
    /// Something else than zero where nothing is yet.
    Reserved,
    /// Not as many bytes of data as announced, or more than there may be.
    Length,
}

impl Header {
    /// Of a message that keeps to the limits; the caller has seen to that.
    pub(crate) fn new(kinds: &[Kind], data_bytes: usize) -> Header {
        assert!(kinds.len() <= PLACES_MAX);
        assert!(data_bytes <= DATA_BYTES_MAX);
        let mut header = Header { kinds: [Kind::Nothing; PLACES_MAX], places: kinds.len(), data_bytes: 0 };
        header.kinds[..kinds.len()].copy_from_slice(kinds);
        header.data_bytes = data_bytes as u32;
        header
    }

    pub(crate) fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        bytes[0] = VERSION;
        bytes[1] = self.places as u8;
        bytes[4..KINDS].copy_from_slice(&self.data_bytes.to_le_bytes());
        for (byte, kind) in bytes[KINDS..].iter_mut().zip(self.kinds()) {
            *byte = *kind as u8;
        }
        bytes
    }

    /// The header and the data of a packet.
    pub(crate) fn decode(packet: &[u8]) -> Result<(Header, &[u8]), Malformed> {
        let Some((head, data)) = packet.split_first_chunk::<HEADER_BYTES>() else {
            return Err(Malformed::Short);
        };
        let [version, places, reserved @ .., b4, b5, b6, b7, _, _, _, _, _, _, _, _] = *head;
        if version != VERSION {
            return Err(Malformed::Version);
        }
        let places = usize::from(places);
        if places > PLACES_MAX {
            return Err(Malformed::TooManyPlaces);
        }
        let (declared, behind) = head[KINDS..].split_at(places);
        if reserved.iter().chain(behind).any(|byte| *byte != 0) {
            return Err(Malformed::Reserved);
        }
        let data_bytes = u32::from_le_bytes([b4, b5, b6, b7]);
        if data.len() > DATA_BYTES_MAX || data.len() != data_bytes as usize {
            return Err(Malformed::Length);
        }
        let mut kinds = [Kind::Nothing; PLACES_MAX];
        for (kind, byte) in kinds.iter_mut().zip(declared) {
            *kind = Kind::from_byte(*byte).ok_or(Malformed::UnknownKind)?;
        }
        Ok((Header { kinds, places, data_bytes }, data))
    }

    /// What is at each place, in order.
    pub(crate) fn kinds(&self) -> &[Kind] {
        &self.kinds[..self.places]
    }

    /// How many descriptors come with it.
    pub(crate) fn descriptors(&self) -> usize {
        self.kinds().iter().filter(|kind| kind.has_descriptor()).count()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use proptest::prelude::*;

    use super::*;

    const PROTOCOL: &str = include_str!("../../PROTOCOL.md");

    /// The packets of PROTOCOL.md by name, with the number of descriptors that come with each.
    fn documented() -> Vec<(String, usize, Vec<u8>)> {
        let mut found = Vec::new();
        let mut rest = PROTOCOL;
        while let Some((_, block)) = rest.split_once("```typed ") {
            let (block, after) = block.split_once("```").unwrap();
            rest = after;
            let mut lines = block.lines();
            let name = lines.next().unwrap().trim().to_owned();
            let mut descriptors = None;
            let mut bytes = Vec::new();
            for line in lines {
                let line = line.split('#').next().unwrap().trim();
                if let Some(count) = line.strip_prefix("descriptors:") {
                    descriptors = Some(count.trim().parse().unwrap());
                    continue;
                }
                let hex = line.strip_prefix("hex:").unwrap_or(line);
                bytes.extend(hex.split_whitespace().map(|byte| u8::from_str_radix(byte, 16).unwrap()));
            }
            found.push((name, descriptors.unwrap(), bytes));
        }
        found
    }

    fn packet(kinds: &[Kind], data: &[u8]) -> Vec<u8> {
        [&Header::new(kinds, data.len()).encode()[..], data].concat()
    }

    #[test]
    fn the_examples_of_the_protocol_are_what_is_written_and_understood() {
        let examples = documented();
        assert_eq!(examples.len(), 4);
        for (name, descriptors, bytes) in examples {
            let (kinds, data): (&[Kind], &[u8]) = match name.as_str() {
                "hello" => (&[], b"hello"),
                "two places, one free" => (&[Kind::Nothing, Kind::SocketAddress], b"here"),
                "memory and a file" => (&[Kind::SharedMemory, Kind::FrozenMemory, Kind::File], b""),
                "eight" => (&[Kind::DataOnlySocket; 8], b"!"),
                other => panic!("no such example: {other}"),
            };
            assert_eq!(packet(kinds, data), bytes, "{name}");
            let (header, found) = Header::decode(&bytes).unwrap();
            assert_eq!((header.kinds(), found, header.descriptors()), (kinds, data, descriptors), "{name}");
        }
    }

    #[test]
    fn each_thing_that_can_be_wrong_is_refused() {
        let good = packet(&[Kind::File, Kind::Nothing], b"data");
        assert!(Header::decode(&good).is_ok());
        let spoilt = |place: usize, byte: u8| {
            let mut bytes = good.clone();
            bytes[place] = byte;
            Header::decode(&bytes).unwrap_err()
        };
        assert_eq!(spoilt(0, 0), Malformed::Version);
        assert_eq!(spoilt(0, 2), Malformed::Version);
        assert_eq!(spoilt(1, 9), Malformed::TooManyPlaces);
        assert_eq!(spoilt(2, 1), Malformed::Reserved);
        assert_eq!(spoilt(3, 1), Malformed::Reserved);
        assert_eq!(spoilt(4, 3), Malformed::Length);
        assert_eq!(spoilt(7, 1), Malformed::Length);
        assert_eq!(spoilt(8, 6), Malformed::UnknownKind);
        assert_eq!(spoilt(10, 1), Malformed::Reserved);
        assert_eq!(Header::decode(&good[..15]).unwrap_err(), Malformed::Short);
        assert_eq!(Header::decode(b"").unwrap_err(), Malformed::Short);
    }

    #[test]
    fn data_has_a_limit_on_both_sides() {
        assert!(Header::decode(&packet(&[], &vec![0; DATA_BYTES_MAX])).is_ok());
        let mut longer = packet(&[], &vec![0; DATA_BYTES_MAX]);
        longer.push(0);
        longer[4..8].copy_from_slice(&(DATA_BYTES_MAX as u32 + 1).to_le_bytes());
        assert_eq!(Header::decode(&longer).unwrap_err(), Malformed::Length);
    }

    fn any_kind() -> impl Strategy<Value = Kind> {
        (0..6_u8).prop_map(|byte| Kind::from_byte(byte).unwrap())
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(
            kinds in prop::collection::vec(any_kind(), 0..=PLACES_MAX),
            data in prop::collection::vec(any::<u8>(), 0..100),
        ) {
            let bytes = packet(&kinds, &data);
            let (header, found) = Header::decode(&bytes).unwrap();
            prop_assert_eq!(header.kinds(), &kinds[..]);
            prop_assert_eq!(found, &data[..]);
        }

        /// And there is one way only to write each message.
        #[test]
        fn what_is_read_is_written(bytes in prop::collection::vec(any::<u8>(), 0..64)) {
            if let Ok((header, data)) = Header::decode(&bytes) {
                prop_assert_eq!(packet(header.kinds(), data), bytes);
            }
        }

        /// As before, for bytes that are nearly right.
        #[test]
        fn what_is_nearly_right_is_read_or_refused(
            kinds in prop::collection::vec(any_kind(), 0..=PLACES_MAX),
            place in 0..HEADER_BYTES,
            byte in any::<u8>(),
        ) {
            let mut bytes = packet(&kinds, b"data");
            bytes[place] = byte;
            if let Ok((header, data)) = Header::decode(&bytes) {
                prop_assert_eq!(packet(header.kinds(), data), bytes);
            }
        }
    }
}
