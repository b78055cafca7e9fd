//! What the kernel says about a file, and the times it can be told, as they travel.
//!
//! Plain numbers, without input or output. It does not know what any of them is good for.

use super::{Kind, Malformed, Reader};

/// What is said about a file is so long.
const ATTRIBUTES_BYTES: usize = 101;

/// More nanoseconds than these make a second.
const NANOSECONDS_MAX: u32 = 999_999_999;

/// What the kernel says about a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Attributes {
    pub kind: Kind,
    /// Permission bits, set-user-id and its relatives included.
    pub mode: u32,
    pub links: u64,
    pub uid: u32,
    pub gid: u32,
    pub size_bytes: u64,
    /// Of 512 bytes each.
    pub blocks: u64,
    pub block_bytes: u32,
    /// Which file system it is on.
    pub device: u64,
    pub inode: u64,
    /// Which device it is, if it is one.
    pub special: u64,
    pub accessed: Moment,
    pub modified: Moment,
    pub changed: Moment,
}

impl Attributes {
    pub(super) fn write(&self, bytes: &mut Vec<u8>) {
        let before = bytes.len();
        bytes.push(self.kind.byte());
        bytes.extend_from_slice(&self.mode.to_le_bytes());
        bytes.extend_from_slice(&self.links.to_le_bytes());
        bytes.extend_from_slice(&self.uid.to_le_bytes());
        bytes.extend_from_slice(&self.gid.to_le_bytes());
        bytes.extend_from_slice(&self.size_bytes.to_le_bytes());
        bytes.extend_from_slice(&self.blocks.to_le_bytes());
        bytes.extend_from_slice(&self.block_bytes.to_le_bytes());
        bytes.extend_from_slice(&self.device.to_le_bytes());
        bytes.extend_from_slice(&self.inode.to_le_bytes());
        bytes.extend_from_slice(&self.special.to_le_bytes());
        for moment in [self.accessed, self.modified, self.changed] {
            moment.write(bytes);
        }
        assert_eq!(bytes.len() - before, ATTRIBUTES_BYTES);
    }

    pub(super) fn read(bytes: &[u8]) -> Result<Attributes, Malformed> {
        if bytes.len() != ATTRIBUTES_BYTES {
            return Err(Malformed::Length);
        }
        let mut reader = Reader(bytes);
        Ok(Attributes {
            kind: Kind::from_byte(reader.u8()?)?,
            mode: reader.mode()?,
            links: reader.u64()?,
            uid: reader.u32()?,
            gid: reader.u32()?,
            size_bytes: reader.u64()?,
            blocks: reader.u64()?,
            block_bytes: reader.u32()?,
            device: reader.u64()?,
            inode: reader.u64()?,
            special: reader.u64()?,
            accessed: Moment::read(&mut reader)?,
            modified: Moment::read(&mut reader)?,
            changed: Moment::read(&mut reader)?,
        })
    }
}

/// A moment since 1970, or before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Moment {
    pub seconds: i64,
    /// Always less than a second, and always later.
    pub nanoseconds: u32,
}

impl Moment {
    /// A moment.
    pub fn new(seconds: i64, nanoseconds: u32) -> Moment {
        Moment { seconds, nanoseconds: nanoseconds.min(NANOSECONDS_MAX) }
    }

    fn write(&self, bytes: &mut Vec<u8>) {
        bytes.extend_from_slice(&self.seconds.to_le_bytes());
        bytes.extend_from_slice(&self.nanoseconds.to_le_bytes());
    }

    fn read(reader: &mut Reader<'_>) -> Result<Moment, Malformed> {
        let seconds = reader.take().map(i64::from_le_bytes)?;
        match reader.u32()? {
            nanoseconds @ ..=NANOSECONDS_MAX => Ok(Moment { seconds, nanoseconds }),
            _ => Err(Malformed::Time),
        }
    }
}

/// What a time is to become.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NewTime {
    /// What it is.
    Unchanged,
    /// The service's now.
    Now,
    /// This.
    At(Moment),
}

/// What both times of a file are to become.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NewTimes {
    pub accessed: NewTime,
    pub modified: NewTime,
}

impl NewTimes {
    pub(super) fn write(&self, bytes: &mut Vec<u8>) {
        for time in [self.accessed, self.modified] {
            let (tag, moment) = match time {
                NewTime::Unchanged => (0, Moment::new(0, 0)),
                NewTime::Now => (1, Moment::new(0, 0)),
                NewTime::At(moment) => (2, moment),
            };
            bytes.push(tag);
            moment.write(bytes);
        }
    }

    pub(super) fn read(reader: &mut Reader<'_>) -> Result<NewTimes, Malformed> {
        let mut time = || {
            let (tag, moment) = (reader.u8()?, Moment::read(reader)?);
            match (tag, moment) {
                (0, Moment { seconds: 0, nanoseconds: 0 }) => Ok(NewTime::Unchanged),
                (1, Moment { seconds: 0, nanoseconds: 0 }) => Ok(NewTime::Now),
                (2, moment) => Ok(NewTime::At(moment)),
                _ => Err(Malformed::Time),
            }
        };
        Ok(NewTimes { accessed: time()?, modified: time()? })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn attributes_are_read_as_they_were_written() {
        let moment = |seconds| Moment::new(seconds, NANOSECONDS_MAX);
        let attributes = Attributes {
            kind: Kind::BlockDevice,
            mode: 0o7777,
            links: u64::MAX,
            uid: 1,
            gid: u32::MAX,
            size_bytes: 3,
            blocks: 4,
            block_bytes: 5,
            device: 6,
            inode: 7,
            special: 8,
            accessed: moment(i64::MIN),
            modified: moment(0),
            changed: moment(i64::MAX),
        };
        let mut bytes = Vec::new();
        attributes.write(&mut bytes);
        assert_eq!(Attributes::read(&bytes), Ok(attributes));
        assert_eq!(Attributes::read(&bytes[1..]), Err(Malformed::Length));
        bytes.push(0);
        assert_eq!(Attributes::read(&bytes), Err(Malformed::Length));
    }

    #[test]
    fn a_second_has_no_more_nanoseconds_than_it_has() {
        let mut bytes = vec![2];
        bytes.extend_from_slice(&0_i64.to_le_bytes());
        bytes.extend_from_slice(&(NANOSECONDS_MAX + 1).to_le_bytes());
        assert_eq!(NewTimes::read(&mut Reader(&bytes)), Err(Malformed::Time));
    }
}
