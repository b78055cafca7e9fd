//! How much memory is in use, and how much was at most.
//!
//! It asks the allocator of the program it is part of, which has to be [`PeakAlloc`], and the kernel. It does
//! not know who took the memory.

use peak_alloc::PeakAlloc;

/// How much of the machine's memory a process may hold while anything is thrown at it: 1 GiB. What a session
/// may have under way is 128 MiB of large messages, and there are some at a time.
pub const RESIDENT_BYTES_MAX: usize = 1 << 30;

/// What may stay in use that was not before: queues that have grown once, envelopes that are kept.
const KEPT_BYTES_MAX: usize = 1 << 20;

/// How often `work` may take more than it may before it is believed.
const MEASURED_MAX: usize = 100;

/// A count to compare with.
#[derive(Clone, Copy, Debug)]
pub struct Memory {
    allocator: &'static PeakAlloc,
    before_bytes: usize,
}

impl Memory {
    /// What is in use now.
    pub fn count(allocator: &'static PeakAlloc) -> Memory {
        Memory { allocator, before_bytes: allocator.current_usage() }
    }

    /// # Panics
    /// If more is in use than then and than may be kept, or the process has grown beyond
    /// [`RESIDENT_BYTES_MAX`].
    #[track_caller]
    pub fn is_bounded(&self) {
        let now_bytes = self.allocator.current_usage();
        let more_bytes = now_bytes.saturating_sub(self.before_bytes);
        assert!(more_bytes <= KEPT_BYTES_MAX, "{more_bytes} bytes more are in use than before");
        let resident_bytes = resident_bytes();
        assert!(resident_bytes <= RESIDENT_BYTES_MAX, "{resident_bytes} bytes are resident");
    }

    /// How many bytes `work` has in use at most beyond what was in use before it: the least that is seen,
    /// where it runs again while that is more than `bytes_max`.
    ///
    /// Once is not enough: the allocator counts what all threads take, and those of a test program begin,
    /// wait and report when they like (a decoder that takes nothing was seen to take 120 bytes, on a busy
    /// machine). What `work` takes, it takes each time, but for what it makes once and keeps.
    pub fn peak_of(allocator: &'static PeakAlloc, bytes_max: usize, work: impl Fn()) -> usize {
        let mut least_bytes = usize::MAX;
        for _ in 0..MEASURED_MAX {
            let before_bytes = allocator.current_usage();
            allocator.reset_peak_usage();
            work();
            least_bytes = least_bytes.min(allocator.peak_usage().saturating_sub(before_bytes));
            if least_bytes <= bytes_max {
                break;
            }
        }
        least_bytes
    }
}

/// What the kernel has given this process and not got back.
fn resident_bytes() -> usize {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap();
    let pages: usize = statm.split_whitespace().nth(1).unwrap().parse().unwrap();
    pages * rustix::param::page_size()
}
