//! Where the two processes run, and how they wait: one CPU for both, where everybody sleeps, or one each,
//! where everybody looks for a while first.
//!
//! It owns which CPUs this process was allowed when it began. It does not know what is measured.

use std::fmt;
use std::io;

use ring::WaitPolicy;
use rustix::thread::CpuSet;
use thiserror::Error;

/// How both sides wait for what is to come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Wait {
    /// Asleep at once.
    #[default]
    Sleep,
    /// Looking for [`ring::SPIN_DEFAULT`] at most, then asleep.
    Spin,
}

impl Wait {
    /// What the libraries are told.
    pub fn policy(self) -> WaitPolicy {
        match self {
            Wait::Sleep => WaitPolicy::Sleep,
            Wait::Spin => WaitPolicy::spin(),
        }
    }
}

impl fmt::Display for Wait {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Wait::Sleep => "sleep",
            Wait::Spin => "spin",
        })
    }
}

/// The CPU of the client and that of the server, which may be the same.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Cpus {
    /// Of the client, which is this process.
    pub client: usize,
    /// Of the server.
    pub server: usize,
    allowed: Vec<usize>,
}

/// Why CPUs cannot be had.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum CpusError {
    /// Neither `N` nor `N,M`.
    #[error("{0:?} names no CPUs: give one (0) or two different ones (0,1)")]
    Malformed(String),
    /// This process may not run there.
    #[error("this process may not run on CPU {cpu}, only on {}", list(allowed))]
    NotAllowed {
        /// What was asked for.
        cpu: usize,
        /// Where it may run.
        allowed: Vec<usize>,
    },
    /// Two were asked for.
    #[error("there is one CPU only for this process, where two cannot look for each other")]
    OnlyOne,
    /// The kernel's.
    #[error("the CPUs of this process cannot be asked for or set: {0}")]
    Kernel(#[from] io::Error),
}

impl Cpus {
    /// The first CPU this process may run on, for both.
    ///
    /// # Errors
    /// The kernel's.
    pub fn one() -> Result<Cpus, CpusError> {
        let allowed = allowed()?;
        Cpus::chosen(allowed[0], allowed[0], allowed)
    }

    /// The first two, one for each side.
    ///
    /// # Errors
    /// [`CpusError::OnlyOne`]; the kernel's.
    pub fn apart() -> Result<Cpus, CpusError> {
        let allowed = allowed()?;
        match *allowed.as_slice() {
            [client, server, ..] => Cpus::chosen(client, server, allowed),
            _ => Err(CpusError::OnlyOne),
        }
    }

    /// `0` is CPU 0 for both sides, `0,1` is CPU 0 for the client and CPU 1 for the server.
    ///
    /// # Errors
    /// See [`CpusError`].
    pub fn named(text: &str) -> Result<Cpus, CpusError> {
        let malformed = || CpusError::Malformed(text.to_owned());
        let numbers = text.split(',').map(|number| number.trim().parse());
        let numbers: Vec<usize> = numbers.collect::<Result<_, _>>().map_err(|_| malformed())?;
        let (client, server) = match *numbers.as_slice() {
            [one] => (one, one),
            [client, server] if client != server => (client, server),
            _ => return Err(malformed()),
        };
        Cpus::chosen(client, server, allowed()?)
    }

    fn chosen(client: usize, server: usize, allowed: Vec<usize>) -> Result<Cpus, CpusError> {
        if client != server && allowed.len() < 2 {
            return Err(CpusError::OnlyOne);
        }
        for cpu in [client, server] {
            if !allowed.contains(&cpu) {
                return Err(CpusError::NotAllowed { cpu, allowed });
            }
        }
        Ok(Cpus { client, server, allowed })
    }

    /// Whether each side has one for itself.
    pub fn are_apart(&self) -> bool {
        self.client != self.server
    }

    /// How both sides wait: asleep where they share a CPU, since whoever looks keeps it from whom it waits
    /// for; looking where each has one.
    pub fn wait(&self) -> Wait {
        if self.are_apart() { Wait::Spin } else { Wait::Sleep }
    }

    /// This thread keeps to the client's CPU from now on.
    ///
    /// # Errors
    /// The kernel's.
    pub fn pin_client(&self) -> io::Result<()> {
        pin(&[self.client])
    }

    /// This thread may run wherever it could when the CPUs were chosen. To be called before a reactor is made
    /// that is to look: CPUs are counted then, for the thread that makes it.
    ///
    /// # Errors
    /// The kernel's.
    pub fn unpin(&self) -> io::Result<()> {
        pin(&self.allowed)
    }
}

impl fmt::Display for Cpus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.are_apart() {
            false => write!(f, "{}", self.client),
            true => write!(f, "{},{}", self.client, self.server),
        }
    }
}

fn list(cpus: &[usize]) -> String {
    cpus.iter().map(usize::to_string).collect::<Vec<_>>().join(", ")
}

/// The CPUs this thread may run on: at least one.
pub(crate) fn allowed() -> io::Result<Vec<usize>> {
    let set = rustix::thread::sched_getaffinity(None)?;
    let cpus: Vec<usize> = (0..CpuSet::MAX_CPU).filter(|cpu| set.is_set(*cpu)).collect();
    if cpus.is_empty() { Err(io::Error::other("no CPU to run on")) } else { Ok(cpus) }
}

/// This thread keeps to these CPUs from now on.
pub(crate) fn pin(cpus: &[usize]) -> io::Result<()> {
    let mut set = CpuSet::new();
    cpus.iter().filter(|cpu| **cpu < CpuSet::MAX_CPU).for_each(|cpu| set.set(*cpu));
    Ok(rustix::thread::sched_setaffinity(None, &set)?)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn one_number_is_a_cpu_for_both() {
        let first = allowed().unwrap()[0];
        let cpus = Cpus::named(&first.to_string()).unwrap();
        assert_eq!((cpus.client, cpus.server, cpus.wait()), (first, first, Wait::Sleep));
        assert_eq!(cpus.to_string(), first.to_string());
    }

    #[test]
    fn what_names_no_cpus_is_told() {
        for text in ["", "zero", "0,", "0,0", "0,1,2", "-1", "0-1"] {
            assert!(matches!(Cpus::named(text), Err(CpusError::Malformed(_))), "{text:?}");
        }
    }

    #[test]
    fn two_on_a_machine_with_one_are_told() {
        assert!(matches!(Cpus::chosen(0, 1, vec![0]), Err(CpusError::OnlyOne)));
        let apart = Cpus::chosen(3, 5, vec![3, 5]).unwrap();
        assert_eq!((apart.to_string().as_str(), apart.wait()), ("3,5", Wait::Spin));
    }

    #[test]
    fn a_cpu_that_is_not_ours_is_told_with_those_that_are() {
        let error = Cpus::chosen(1, 1, vec![0, 2]).unwrap_err();
        assert_eq!(error.to_string(), "this process may not run on CPU 1, only on 0, 2");
    }
}
