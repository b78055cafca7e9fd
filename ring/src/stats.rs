//! Plain counters of what a reactor has done.

/// What one reactor has counted since it was made. A snapshot.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stats {
    /// Turns taken.
    pub turns: u64,
    /// Looks before sleeping: see [`WaitPolicy`](crate::WaitPolicy).
    pub spins: u64,
    /// Looks that found something, so that the sleep could be saved.
    pub spins_hit: u64,
    /// Messages the kernel took.
    pub messages_sent: u64,
    /// Descriptors the kernel took.
    pub descriptors_sent: u64,
    /// Posts that joined a packet already waiting.
    pub posts_joined: u64,
    /// Messages that arrived whole.
    pub messages_received: u64,
    /// Descriptors that arrived.
    pub descriptors_received: u64,
    /// Empty packets, dropped: a violation, since they look like the end of file.
    pub empty_packets: u64,
    /// Messages whose end was cut off.
    pub messages_truncated: u64,
    /// Messages some of whose descriptors were lost.
    pub descriptors_lost: u64,
    /// Posted or last messages that could not be sent.
    pub posts_lost: u64,
}
