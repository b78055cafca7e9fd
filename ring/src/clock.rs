//! The clock a reactor reads: the machine's, or one that only moves when everybody is idle.
//!
//! Every moment of this crate is asked for here, so that a simulated world is late when its seed says so and
//! never because the machine was busy. It knows no timer.

#[cfg(feature = "script")]
use std::cell::Cell;
#[cfg(feature = "script")]
use std::rc::Rc;
use std::time::Instant;

/// Whoever holds a clone reads the same time.
#[derive(Clone, Default)]
pub(crate) enum Clock {
    /// The machine's.
    #[default]
    Real,
    /// Of a simulated world, which moves it.
    #[cfg(feature = "script")]
    Scripted(Rc<Cell<Instant>>),
}

impl Clock {
    pub(crate) fn now(&self) -> Instant {
        match self {
            Clock::Real => Instant::now(),
            #[cfg(feature = "script")]
            Clock::Scripted(now) => now.get(),
        }
    }
}
