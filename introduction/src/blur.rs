//! How long exactly something is kept that nobody answers: a little longer each time, and never as long as
//! the last time.
//!
//! Somebody who is not there is let go by the server, and somebody who refuses by whoever refuses, one
//! delivery later. That delivery takes tens of microseconds, and whoever asked could measure it. So both draw
//! what they add from the same distribution, thousands of times as wide. It knows nobody of the two.

use std::time::Duration;

use ring::Reactor;

/// What is added is at most so much of the time: a tenth.
const PART: u32 = 10;

/// So many draws are added up. One alone has sharp ends, and the earliest of some thousand attempts would
/// show where they are; the sum of four hardly ever comes near them.
const DRAWS: u32 = 4;

/// The time, and up to a tenth more.
pub(crate) fn blurred(reactor: &Reactor, time: Duration) -> Duration {
    let mut drawn = [0; 16];
    // Without randomness, which the kernel does not refuse, it is exact.
    let _ = reactor.fill_random(&mut drawn);
    time + added(time, &drawn)
}

fn added(time: Duration, drawn: &[u8; 16]) -> Duration {
    let draws = drawn.chunks_exact(4).map(|draw| u32::from_le_bytes([draw[0], draw[1], draw[2], draw[3]]));
    let sum: f64 = draws.map(|draw| f64::from(draw) / f64::from(u32::MAX)).sum();
    (time / PART).mul_f64(sum / f64::from(DRAWS))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    const TIME: Duration = Duration::from_secs(10);

    #[test]
    fn nothing_is_kept_for_less_than_its_time_or_for_more_than_a_tenth_more() {
        assert_eq!(added(TIME, &[0; 16]), Duration::ZERO);
        assert_eq!(added(TIME, &[255; 16]), TIME / 10);
        let reactor = Reactor::new().unwrap();
        for _ in 0..1000 {
            let blurred = blurred(&reactor, TIME);
            assert!(blurred >= TIME && blurred <= TIME + TIME / 10);
        }
    }

    #[test]
    fn the_ends_are_hardly_ever_drawn_and_the_middle_often() {
        let reactor = Reactor::new().unwrap();
        let drawn: Vec<Duration> = (0..1000).map(|_| blurred(&reactor, TIME) - TIME).collect();
        let within = |from: u64, to: u64| {
            let range = Duration::from_millis(from)..Duration::from_millis(to);
            drawn.iter().filter(|added| range.contains(added)).count()
        };
        // Half of them, and one in twenty thousand.
        assert!(within(400, 600) > 400, "{}", within(400, 600));
        assert!(within(0, 50) < 20, "{}", within(0, 50));
        assert!(within(950, 1001) < 20, "{}", within(950, 1001));
    }
}
