//! A string of bytes, read as decisions.
//!
//! Whatever the bytes are there is a decision, and when there are none left each is the first of its kind. It
//! does not know what is decided.

/// The longest script that is looked at: 4 KiB. More steps than are taken fit into it.
pub const SCRIPT_BYTES_MAX: usize = 4_096;

/// How many steps of a script are taken: 64, so that each ends soon.
pub const STEPS_MAX: usize = 64;

/// What is left of a script.
#[derive(Clone, Debug)]
pub(crate) struct Script<'a> {
    rest: &'a [u8],
    steps: usize,
}

impl<'a> Script<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Script<'a> {
        Script { rest: &bytes[..bytes.len().min(SCRIPT_BYTES_MAX)], steps: 0 }
    }

    /// The byte that says what the next step is.
    pub(crate) fn step(&mut self) -> Option<u8> {
        if self.rest.is_empty() || self.steps == STEPS_MAX {
            return None;
        }
        self.steps += 1;
        Some(self.byte())
    }

    pub(crate) fn byte(&mut self) -> u8 {
        let Some((first, rest)) = self.rest.split_first() else { return 0 };
        self.rest = rest;
        *first
    }

    pub(crate) fn number(&mut self) -> u32 {
        u32::from_le_bytes([self.byte(), self.byte(), self.byte(), self.byte()])
    }

    /// A number below `end`.
    pub(crate) fn below(&mut self, end: usize) -> usize {
        assert!(end > 0, "there is one at least");
        usize::from(self.byte()) % end
    }

    pub(crate) fn one_of<T: Copy>(&mut self, all: &[T]) -> T {
        all[self.below(all.len())]
    }

    pub(crate) fn flag(&mut self) -> bool {
        self.byte() % 2 == 1
    }

    /// As many bytes as there are, up to that.
    pub(crate) fn take(&mut self, count: usize) -> &'a [u8] {
        let (taken, rest) = self.rest.split_at(count.min(self.rest.len()));
        self.rest = rest;
        taken
    }
}
