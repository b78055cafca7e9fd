//! Syrup, the canonical binary form in which OCapN programs write data.
//!
//! Two readers and one writer, without I/O: [`Scanner`] finds the end of a value in bytes that arrive in any
//! pieces, and refuses what is too long or too deep before anything is allocated for it; [`Value::read`]
//! takes a whole value apart without copying; [`Value::write`] writes the one canonical form. It does not
//! know what any record means.

use std::fmt;

use thiserror::Error;

/// How deep values may lie in each other. Records of introductions need four.
pub const DEPTH_MAX: usize = 16;

/// How many digits a number may have. Enough for any integer of 64 bits with room to spare; a length has
/// fewer anyway, or it is longer than anything that is accepted.
pub const DIGITS_MAX: usize = 32;

/// One value. What has bytes borrows them.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Value<'a> {
    /// `t` or `f`.
    Boolean(bool),
    /// `7+` or `7-`, of any size: the sign and the digits, without leading zeros.
    Integer {
        /// Below zero.
        negative: bool,
        /// Decimal digits.
        digits: &'a str,
    },
    /// `F` and four bytes, kept as they came: nothing here calculates.
    Single([u8; 4]),
    /// `D` and eight bytes.
    Double([u8; 8]),
    /// `3:abc`.
    Bytes(&'a [u8]),
    /// `3"abc`.
    String(&'a str),
    /// `3'abc`.
    Symbol(&'a str),
    /// `[…]`.
    List(Vec<Value<'a>>),
    /// `{…}`: keys and values. Written in the order of the written keys.
    Dictionary(Vec<(Value<'a>, Value<'a>)>),
    /// `#…$`. Written in the order of what is written.
    Set(Vec<Value<'a>>),
    /// `<…>`: the label first.
    Record(Vec<Value<'a>>),
}

/// Bytes that are no Syrup, or more of it than is accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum Malformed {
    /// A byte that cannot stand where it stands.
    #[error("a byte that cannot stand there")]
    Byte,
    /// A value, or a length that announces one, longer than is accepted.
    #[error("longer than is accepted")]
    Long,
    /// Values lie deeper in each other than [`DEPTH_MAX`].
    #[error("deeper than is accepted")]
    Deep,
    /// A number with a leading zero, of no digits or of more than [`DIGITS_MAX`].
    #[error("a number that is not in its shortest form, or too long")]
    Number,
    /// A string or a symbol that is not UTF-8.
    #[error("text that is not UTF-8")]
    Text,
    /// A dictionary with the same key twice or a key without a value, or a set with the same value twice.
    #[error("a key that stands twice, or without a value")]
    Key,
    /// The bytes end within the value.
    #[error("ends within a value")]
    Short,
    /// Something follows the value.
    #[error("something follows the value")]
    Trailing,
}

// -- finding the end -------------------------------------------------------------------------------------

/// Finds the end of one value in bytes that come in pieces, looking at each byte once.
///
/// ```
/// use introduction::syrup::Scanner;
/// let mut scanner = Scanner::new(100);
/// assert_eq!(scanner.scan(b"[3:ab"), Ok(None));
/// assert_eq!(scanner.scan(b"c]rest"), Ok(Some(2)));
/// ```
#[derive(Debug)]
pub struct Scanner {
    bytes_max: usize,
    seen: usize,
    open: Vec<u8>,
    state: State,
}

#[derive(Clone, Copy, Debug)]
enum State {
    /// Before an item, or the end of what is open.
    Between,
    /// In a number: what it amounts to, and how many digits there were.
    Number { amount: usize, digits: usize },
    /// So many bytes belong to the item.
    Within(usize),
}

impl Scanner {
    /// For a value of so many bytes at most.
    pub fn new(bytes_max: usize) -> Scanner {
        Scanner { bytes_max, seen: 0, open: Vec::new(), state: State::Between }
    }

    /// Whether part of a value has been seen, and not its end.
    pub fn is_within(&self) -> bool {
        self.seen > 0
    }

    /// Looks at the next bytes. With the end of the value among them: how many of them belong to it; the
    /// scanner is then ready for the next value.
    ///
    /// # Errors
    /// [`Malformed`], as soon as it can be seen: a length that is too long is refused at its last digit, not
    /// when so many bytes have come. The scanner is of no use after that.
    pub fn scan(&mut self, bytes: &[u8]) -> Result<Option<usize>, Malformed> {
        let mut at = 0;
        while let Some(&byte) = bytes.get(at) {
            // Of no bytes at all: otherwise it is seen below, as soon as the value cannot end in time.
            if self.bytes_max == 0 {
                return Err(Malformed::Long);
            }
            let (taken, is_item) = match self.state {
                State::Within(left) => {
                    let taken = left.min(bytes.len() - at);
                    self.state = State::Within(left - taken);
                    (taken, left == taken)
                }
                State::Between => (1, self.begin(byte)?),
                State::Number { amount, digits } => (1, self.number(byte, amount, digits)?),
            };
            at += taken;
            self.seen += taken;
            if is_item {
                self.state = State::Between;
                if self.open.is_empty() {
                    self.seen = 0;
                    return Ok(Some(at));
                }
            }
            if self.seen >= self.bytes_max {
                return Err(Malformed::Long);
            }
        }
        Ok(None)
    }

    /// The first byte of an item, or the end of what is open. Says whether an item ends with it.
    fn begin(&mut self, byte: u8) -> Result<bool, Malformed> {
        match byte {
            b't' | b'f' => Ok(true),
            b'F' => self.within(4),
            b'D' => self.within(8),
            b'0'..=b'9' => {
                self.state = State::Number { amount: usize::from(byte - b'0'), digits: 1 };
                Ok(false)
            }
            _ if closer(byte).is_some() => {
                if self.open.len() == DEPTH_MAX {
                    return Err(Malformed::Deep);
                }
                self.open.extend(closer(byte));
                Ok(false)
            }
            _ if self.open.last() == Some(&byte) => {
                self.open.pop();
                Ok(true)
            }
            _ => Err(Malformed::Byte),
        }
    }

    fn number(&mut self, byte: u8, amount: usize, digits: usize) -> Result<bool, Malformed> {
        match byte {
            b'0'..=b'9' if digits == DIGITS_MAX || (digits == 1 && amount == 0) => Err(Malformed::Number),
            b'0'..=b'9' => {
                let amount = amount.saturating_mul(10).saturating_add(usize::from(byte - b'0'));
                self.state = State::Number { amount, digits: digits + 1 };
                Ok(false)
            }
            b'+' | b'-' => Ok(true),
            b':' | b'"' | b'\'' => self.within(amount),
            _ => Err(Malformed::Byte),
        }
    }

    fn within(&mut self, length: usize) -> Result<bool, Malformed> {
        // The byte that said so is not counted yet, and what is open still has to be closed.
        let room = self.bytes_max.saturating_sub(self.seen + 1 + self.open.len());
        if length > room {
            return Err(Malformed::Long);
        }
        self.state = State::Within(length);
        Ok(length == 0)
    }
}

fn closer(byte: u8) -> Option<u8> {
    match byte {
        b'[' => Some(b']'),
        b'{' => Some(b'}'),
        b'<' => Some(b'>'),
        b'#' => Some(b'$'),
        _ => None,
    }
}

// -- reading ---------------------------------------------------------------------------------------------

impl<'a> Value<'a> {
    /// Takes a whole value apart.
    ///
    /// ```
    /// use introduction::syrup::Value;
    /// let value = Value::read(b"<5'point1+2->").unwrap();
    /// assert_eq!(value.record("point").map(<[_]>::len), Some(2));
    /// ```
    ///
    /// # Errors
    /// [`Malformed`]. Order in dictionaries and sets is not insisted on, but nothing may stand twice.
    pub fn read(bytes: &'a [u8]) -> Result<Value<'a>, Malformed> {
        let mut reader = Reader { rest: bytes };
        let value = reader.value(0)?;
        if reader.rest.is_empty() { Ok(value) } else { Err(Malformed::Trailing) }
    }

    /// The fields of a record with this label.
    pub fn record(&self, label: &str) -> Option<&[Value<'a>]> {
        match self {
            Value::Record(items) => match items.split_first() {
                Some((Value::Symbol(found), fields)) if *found == label => Some(fields),
                _ => None,
            },
            _ => None,
        }
    }

    /// The bytes of a byte string.
    pub fn bytes(&self) -> Option<&'a [u8]> {
        match self {
            Value::Bytes(bytes) => Some(bytes),
            _ => None,
        }
    }

    /// The text of a string or a symbol, which some writers confuse.
    pub fn text(&self) -> Option<&'a str> {
        match self {
            Value::String(text) | Value::Symbol(text) => Some(text),
            _ => None,
        }
    }

    /// The amount of an integer that is not negative and fits.
    pub fn amount(&self) -> Option<u64> {
        match self {
            Value::Integer { negative: false, digits } => digits.parse().ok(),
            _ => None,
        }
    }

    /// Writes the value in its canonical form.
    pub fn write(&self, into: &mut Vec<u8>) {
        match self {
            Value::Boolean(true) => into.push(b't'),
            Value::Boolean(false) => into.push(b'f'),
            Value::Integer { negative, digits } => {
                into.extend_from_slice(digits.as_bytes());
                into.push(if *negative { b'-' } else { b'+' });
            }
            Value::Single(bytes) => {
                into.push(b'F');
                into.extend_from_slice(bytes);
            }
            Value::Double(bytes) => {
                into.push(b'D');
                into.extend_from_slice(bytes);
            }
            Value::Bytes(bytes) => write_counted(into, b':', bytes),
            Value::String(text) => write_counted(into, b'"', text.as_bytes()),
            Value::Symbol(text) => write_counted(into, b'\'', text.as_bytes()),
            Value::List(items) => write_items(into, b"[]", items.iter().map(Value::to_bytes)),
            Value::Record(items) => write_items(into, b"<>", items.iter().map(Value::to_bytes)),
            Value::Set(items) => {
                let mut written: Vec<Vec<u8>> = items.iter().map(Value::to_bytes).collect();
                written.sort();
                write_items(into, b"#$", written);
            }
            Value::Dictionary(pairs) => {
                let mut written: Vec<(Vec<u8>, Vec<u8>)> =
                    pairs.iter().map(|(key, value)| (key.to_bytes(), value.to_bytes())).collect();
                written.sort();
                write_items(into, b"{}", written.into_iter().flat_map(|(key, value)| [key, value]));
            }
        }
    }

    /// The canonical form.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        self.write(&mut bytes);
        bytes
    }
}

fn write_counted(into: &mut Vec<u8>, kind: u8, bytes: &[u8]) {
    into.extend_from_slice(bytes.len().to_string().as_bytes());
    into.push(kind);
    into.extend_from_slice(bytes);
}

fn write_items(into: &mut Vec<u8>, around: &[u8; 2], items: impl IntoIterator<Item = Vec<u8>>) {
    into.push(around[0]);
    items.into_iter().for_each(|item| into.extend(item));
    into.push(around[1]);
}

struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    fn take(&mut self, count: usize) -> Result<&'a [u8], Malformed> {
        let (taken, rest) = self.rest.split_at_checked(count).ok_or(Malformed::Short)?;
        self.rest = rest;
        Ok(taken)
    }

    fn value(&mut self, depth: usize) -> Result<Value<'a>, Malformed> {
        let first = *self.rest.first().ok_or(Malformed::Short)?;
        if first.is_ascii_digit() {
            return self.counted();
        }
        self.take(1)?;
        match first {
            b't' => Ok(Value::Boolean(true)),
            b'f' => Ok(Value::Boolean(false)),
            b'F' => Ok(Value::Single(self.array()?)),
            b'D' => Ok(Value::Double(self.array()?)),
            b'[' => self.items(depth, b']').map(Value::List),
            b'<' => self.items(depth, b'>').map(Value::Record),
            b'#' => {
                let items = self.items(depth, b'$')?;
                is_without_doubles(items.iter())?;
                Ok(Value::Set(items))
            }
            b'{' => {
                let items = self.items(depth, b'}')?;
                if items.len() % 2 != 0 {
                    return Err(Malformed::Key);
                }
                is_without_doubles(items.iter().step_by(2))?;
                let mut pairs = Vec::with_capacity(items.len() / 2);
                let mut items = items.into_iter();
                while let (Some(key), Some(value)) = (items.next(), items.next()) {
                    pairs.push((key, value));
                }
                Ok(Value::Dictionary(pairs))
            }
            _ => Err(Malformed::Byte),
        }
    }

    fn items(&mut self, depth: usize, end: u8) -> Result<Vec<Value<'a>>, Malformed> {
        if depth == DEPTH_MAX {
            return Err(Malformed::Deep);
        }
        let mut items = Vec::new();
        while *self.rest.first().ok_or(Malformed::Short)? != end {
            items.push(self.value(depth + 1)?);
        }
        self.take(1)?;
        Ok(items)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        self.take(N)?.try_into().map_err(|_| Malformed::Short)
    }

    /// What begins with a number.
    fn counted(&mut self) -> Result<Value<'a>, Malformed> {
        let count = self.rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
        let digits = self.take(count)?;
        if count > DIGITS_MAX || (count > 1 && digits[0] == b'0') {
            return Err(Malformed::Number);
        }
        let digits = std::str::from_utf8(digits).map_err(|_| Malformed::Number)?;
        let kind = self.take(1)?[0];
        if matches!(kind, b'+' | b'-') {
            return Ok(Value::Integer { negative: kind == b'-', digits });
        }
        let length = digits.parse().map_err(|_| Malformed::Long)?;
        match kind {
            b':' => Ok(Value::Bytes(self.take(length)?)),
            b'"' => Ok(Value::String(self.text(length)?)),
            b'\'' => Ok(Value::Symbol(self.text(length)?)),
            _ => Err(Malformed::Byte),
        }
    }

    fn text(&mut self, length: usize) -> Result<&'a str, Malformed> {
        std::str::from_utf8(self.take(length)?).map_err(|_| Malformed::Text)
    }
}

fn is_without_doubles<'v, 'a: 'v>(values: impl Iterator<Item = &'v Value<'a>>) -> Result<(), Malformed> {
    let mut written: Vec<Vec<u8>> = values.map(Value::to_bytes).collect();
    written.sort();
    if written.windows(2).any(|pair| pair[0] == pair[1]) { Err(Malformed::Key) } else { Ok(()) }
}

impl fmt::Display for Value<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.to_bytes().escape_ascii())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use proptest::prelude::*;

    use super::*;

    /// Feeds the bytes one at a time; where the value ends, or why it does not.
    fn scan_bytewise(bytes: &[u8], bytes_max: usize) -> Result<Option<usize>, Malformed> {
        let mut scanner = Scanner::new(bytes_max);
        for (index, byte) in bytes.iter().enumerate() {
            if scanner.scan(std::slice::from_ref(byte))?.is_some() {
                return Ok(Some(index + 1));
            }
        }
        Ok(None)
    }

    #[test]
    fn each_kind_is_read_and_written() {
        let whole: &[&[u8]] = &[
            b"t",
            b"f",
            b"0+",
            b"12345678901234567890+",
            b"7-",
            b"F\x3f\x80\0\0",
            b"D\x3f\xf0\0\0\0\0\0\0",
            b"0:",
            b"3:a\xffc",
            b"3\"abc",
            b"3'abc",
            b"[]",
            b"[1+[2+]]",
            b"{1'a1+1'bf}",
            b"#1+2+$",
            b"<1'r{}>",
        ];
        for bytes in whole {
            assert_eq!(Value::read(bytes).unwrap().to_bytes(), *bytes);
            assert_eq!(Scanner::new(100).scan(bytes), Ok(Some(bytes.len())), "{}", bytes.escape_ascii());
            assert_eq!(scan_bytewise(bytes, 100), Ok(Some(bytes.len())), "{}", bytes.escape_ascii());
        }
    }

    #[test]
    fn what_cannot_stand_is_refused_by_both_readers() {
        let wrong: &[(&[u8], Malformed)] = &[
            (b"x", Malformed::Byte),
            (b"]", Malformed::Byte),
            (b"[}", Malformed::Byte),
            (b"-1", Malformed::Byte),
            (b"3x", Malformed::Byte),
            (b"01+", Malformed::Number),
            (b"00:", Malformed::Number),
            (b"123456789012345678901234567890123+", Malformed::Number),
        ];
        for (bytes, why) in wrong {
            assert_eq!(Value::read(bytes).unwrap_err(), *why, "{}", bytes.escape_ascii());
            assert_eq!(scan_bytewise(bytes, 100), Err(*why), "{}", bytes.escape_ascii());
        }
    }

    #[test]
    fn what_only_the_whole_shows_is_refused_by_the_reader() {
        assert_eq!(Value::read(b"{1'a}"), Err(Malformed::Key));
        assert_eq!(Value::read(b"{1'at1'af}"), Err(Malformed::Key));
        assert_eq!(Value::read(b"#tt$"), Err(Malformed::Key));
        assert_eq!(Value::read(b"1\"\xff"), Err(Malformed::Text));
        assert_eq!(Value::read(b"tf"), Err(Malformed::Trailing));
        assert_eq!(Value::read(b"[t"), Err(Malformed::Short));
        assert_eq!(Value::read(b""), Err(Malformed::Short));
    }

    #[test]
    fn dictionaries_and_sets_are_written_in_order() {
        assert_eq!(Value::read(b"{1'b1+1'a2+}").unwrap().to_bytes(), b"{1'a2+1'b1+}");
        assert_eq!(Value::read(b"#2+1+$").unwrap().to_bytes(), b"#1+2+$");
    }

    #[test]
    fn a_length_is_refused_at_once() {
        assert_eq!(scan_bytewise(b"300000000:", 4096), Err(Malformed::Long));
        assert_eq!(scan_bytewise(b"99999999999999999999999:", 4096), Err(Malformed::Long));
        assert_eq!(Scanner::new(9).scan(b"8:"), Err(Malformed::Long));
    }

    #[test]
    fn a_value_may_be_just_as_long_as_is_accepted() {
        assert_eq!(Scanner::new(9).scan(b"7:1234567"), Ok(Some(9)));
        assert_eq!(scan_bytewise(b"7:1234567", 9), Ok(Some(9)));
        assert_eq!(Scanner::new(11).scan(b"[7:1234567]"), Ok(Some(11)));
        assert_eq!(Scanner::new(10).scan(b"[7:1234567]"), Err(Malformed::Long));
        assert_eq!(Scanner::new(4).scan(b"[tttt"), Err(Malformed::Long));
    }

    #[test]
    fn a_value_may_be_just_as_deep_as_is_accepted() {
        let deep = |depth: usize| [vec![b'['; depth], vec![b']'; depth]].concat();
        assert!(Value::read(&deep(DEPTH_MAX)).is_ok());
        assert_eq!(Scanner::new(100).scan(&deep(DEPTH_MAX)), Ok(Some(2 * DEPTH_MAX)));
        assert_eq!(Value::read(&deep(DEPTH_MAX + 1)), Err(Malformed::Deep));
        assert_eq!(Scanner::new(100).scan(&deep(DEPTH_MAX + 1)), Err(Malformed::Deep));
    }

    #[test]
    fn values_follow_each_other_without_anything_between() {
        let mut scanner = Scanner::new(10);
        let mut rest: &[u8] = b"t[1+]3:abcf";
        let mut lengths = Vec::new();
        while let Ok(Some(length)) = scanner.scan(rest) {
            lengths.push(length);
            rest = &rest[length..];
        }
        assert_eq!(lengths, [1, 4, 5, 1]);
        assert!(!scanner.is_within());
    }

    proptest! {
        #[test]
        fn readers_agree_on_anything(bytes in prop::collection::vec(
            prop_oneof![4 => prop::sample::select(b"0123459+-:\"'tfFD[]{}<>#$a".to_vec()), 1 => any::<u8>()],
            0..40,
        )) {
            let whole = Scanner::new(64).scan(&bytes);
            prop_assert_eq!(scan_bytewise(&bytes, 64), whole);
            match Value::read(&bytes) {
                // What is read is one whole value to the scanner, and written again it is the same value.
                Ok(value) => {
                    prop_assert_eq!(whole, Ok(Some(bytes.len())));
                    let written = value.to_bytes();
                    prop_assert_eq!(written.len(), bytes.len());
                    prop_assert_eq!(Value::read(&written).unwrap().to_bytes(), written);
                }
                Err(Malformed::Text | Malformed::Key) => {}
                Err(Malformed::Trailing) => prop_assert!(matches!(whole, Ok(Some(_)))),
                Err(_) => prop_assert!(!matches!(whole, Ok(Some(length)) if length == bytes.len())),
            }
        }
    }
}
