//! Plain counters of what a reactor has done.

/// What one reactor has counted since it was made. A snapshot, taken by copying numbers.
///
/// ```
/// use ring::{Executor, Kind, Reactor, Socket};
///
/// let reactor = Reactor::new()?;
/// let (near, far) = Socket::pair(&reactor, Kind::SeqPacket)?;
/// let far = Socket::wrap(&reactor, far)?;
/// Executor::new(&reactor).block_on(async {
///     near.send("hello").await?;
///     assert_eq!(far.receive().await?.bytes(), b"hello");
///     Ok::<(), Box<dyn std::error::Error>>(())
/// })?;
/// let stats = reactor.stats();
/// assert_eq!((stats.messages_sent, stats.bytes_sent), (1, 5));
/// assert_eq!((stats.messages_received, stats.bytes_received), (1, 5));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stats {
    /// Turns taken.
    pub turns: u64,
    /// Looks before sleeping: see [`WaitPolicy`](crate::WaitPolicy).
    pub spins: u64,
    /// Looks that found something, so that the sleep could be saved.
    pub spins_hit: u64,
    /// Sleeps in a receive of the one socket that had ended all the last ones: on io_uring, where that costs
    /// less than to be told by the ring.
    pub slept_in_receives: u64,
    /// Messages the kernel took; of a stream, the last piece of each.
    pub messages_sent: u64,
    /// Their bytes.
    pub bytes_sent: u64,
    /// Descriptors the kernel took.
    pub descriptors_sent: u64,
    /// Posts that joined a packet already waiting.
    pub posts_joined: u64,
    /// How often a send found the queue full and had to wait.
    pub sends_blocked: u64,
    /// Messages that arrived whole.
    pub messages_received: u64,
    /// Their bytes.
    pub bytes_received: u64,
    /// Descriptors that arrived.
    pub descriptors_received: u64,
    /// How often a receive found too few descriptors left for what it may bring, and waited.
    pub receives_starved: u64,
    /// Peers that have closed without reading everything (ECONNRESET).
    pub resets: u64,
    /// Empty packets, dropped: a violation, since they look like the end of file. Of a socket that
    /// [has no senders named](crate::Socket::forgo_credentials) the first ones are not counted, until it has
    /// been asked who sends, unless they bring descriptors.
    pub empty_packets: u64,
    /// Messages whose end was cut off.
    pub messages_truncated: u64,
    /// Messages some of whose descriptors were lost.
    pub descriptors_lost: u64,
    /// Messages that came for a socket that was being dropped, and were closed with it.
    pub messages_unwanted: u64,
    /// Posted or last messages that could not be sent, for one of the next four reasons.
    pub posts_lost: u64,
    /// Of those: the other end was gone.
    pub posts_lost_gone: u64,
    /// Of those: the socket was closed, and its peer has not received them in ten seconds.
    pub posts_lost_late: u64,
    /// Of those: the kernel refused them, mostly for their descriptors.
    pub posts_lost_refused: u64,
    /// Of those: something else was sent [instead](crate::Socket::post_or).
    pub posts_replaced: u64,
}
