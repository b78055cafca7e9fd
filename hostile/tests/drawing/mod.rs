//! Drawing strings of bytes: from a seed, and from a corpus.
//!
//! It does not know what they are thrown at.
#![allow(dead_code)]

use std::fs;
use std::path::Path;

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::test_runner::{Config, RngAlgorithm, TestCaseError, TestRng, TestRunner};

/// Draws from another seed than 0: a number.
const SEED: &str = "SENDRIGHT_FUZZ_SEED";

/// Draws so many times as many cases as usual.
const TIMES: &str = "SENDRIGHT_FUZZ_TIMES";

fn number(name: &str, otherwise: u64) -> u64 {
    std::env::var(name).ok().and_then(|number| number.parse().ok()).unwrap_or(otherwise)
}

/// What is done about bytes that fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Then {
    /// Others like them are tried, and the shortest that fail are told.
    Shorten,
    /// They are told as they are: what has failed once fails with everything that follows.
    End,
}

/// Runs `check` for so many draws. A panic in it is reported with the seed and the bytes.
#[track_caller]
pub fn draw(cases: u32, bytes: impl Strategy<Value = Vec<u8>>, then: Then, check: impl Fn(&[u8])) {
    let seed = number(SEED, 0);
    let cases = cases * number(TIMES, 1) as u32;
    println!("{cases} cases, {SEED}={seed}");
    let mut seed_bytes = [0; 32];
    seed_bytes[..8].copy_from_slice(&seed.to_le_bytes());
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &seed_bytes);
    let max_shrink_iters = match then {
        Then::Shorten => 2_000,
        Then::End => 0,
    };
    let config = Config { cases, failure_persistence: None, max_shrink_iters, ..Config::default() };
    let drawn = TestRunner::new_with_rng(config, rng).run(&bytes, |bytes| {
        let _told = Told(&bytes);
        check(&bytes);
        Ok::<(), TestCaseError>(())
    });
    if let Err(error) = drawn {
        panic!("{SEED}={seed}: {error}");
    }
}

/// Prints the bytes that made its thread panic: the process may be killed before anybody has counted.
struct Told<'a>(&'a [u8]);

impl Drop for Told<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            println!(
                "failing bytes: {}",
                self.0.iter().map(|byte| format!("{byte:02x}")).collect::<String>()
            );
        }
    }
}

/// The files of a corpus, in the order of their names.
pub fn corpus(name: &str) -> Vec<Vec<u8>> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus").join(name);
    let mut files: Vec<_> = fs::read_dir(&directory)
        .unwrap_or_else(|error| panic!("{}: {error}", directory.display()))
        .map(|entry| entry.unwrap().path())
        .collect();
    files.sort();
    files.iter().map(|file| fs::read(file).unwrap()).collect()
}

/// Anything at all; and as often what is in the corpus, with a few bytes changed, cut off at the end, or with
/// another of it behind.
pub fn nearly(corpus: Vec<Vec<u8>>) -> impl Strategy<Value = Vec<u8>> {
    assert!(!corpus.is_empty(), "a corpus has something in it");
    let one = prop::sample::select(corpus);
    let changes = vec((any::<prop::sample::Index>(), any::<u8>()), 0..4);
    let changed = (one.clone(), changes, any::<prop::sample::Index>(), 0..4_u8, one).prop_map(
        |(mut bytes, changes, end, how, other)| {
            for (place, byte) in changes {
                if !bytes.is_empty() {
                    let place = place.index(bytes.len());
                    bytes[place] = byte;
                }
            }
            match how {
                0 => bytes.truncate(end.index(bytes.len() + 1)),
                1 => bytes.extend(other),
                _ => {}
            }
            bytes
        },
    );
    prop_oneof![1 => vec(any::<u8>(), 0..300), 3 => changed]
}
