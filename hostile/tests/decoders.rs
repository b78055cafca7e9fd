//! Bytes of anybody's, thrown at everything that reads bytes: anything at all, what real peers say with some
//! of it changed, and pieces of that in another order.
//!
//! As many cases each time, from the same seed each time unless told otherwise; a failure says which, and the
//! shortest bytes that were found to fail.
#![allow(clippy::unwrap_used)]

mod drawing;

use std::cell::Cell;
use std::hint::black_box;
use std::thread;

use drawing::Then;
use hostile::{CORPUS_BYTES_MAX, Decoder, Memory, Scene};
use peak_alloc::PeakAlloc;
use testing::in_own_process;

#[global_allocator]
static ALLOCATOR: PeakAlloc = PeakAlloc;

/// How many strings of bytes each decoder is given.
const CASES: u32 = 3_000;

fn keeps_to_its_rules(decoder: Decoder) {
    let corpus = drawing::corpus(decoder.name());
    drawing::draw(CASES, drawing::nearly(corpus), Then::Shorten, |bytes| decoder.check(bytes, &ALLOCATOR));
}

in_own_process! {
    fn packet() {
        keeps_to_its_rules(Decoder::Packet);
    }

    fn parts() {
        keeps_to_its_rules(Decoder::Parts);
    }

    fn large_answer() {
        keeps_to_its_rules(Decoder::LargeAnswer);
    }

    fn typed() {
        keeps_to_its_rules(Decoder::Typed);
    }

    fn syrup() {
        keeps_to_its_rules(Decoder::Syrup);
    }

    fn record() {
        keeps_to_its_rules(Decoder::Record);
    }

    fn stream() {
        keeps_to_its_rules(Decoder::Stream);
    }

    fn uri() {
        keeps_to_its_rules(Decoder::Uri);
    }

    fn proof() {
        keeps_to_its_rules(Decoder::Proof);
    }

    fn file_request() {
        keeps_to_its_rules(Decoder::FileRequest);
    }

    fn file_answer() {
        keeps_to_its_rules(Decoder::FileAnswer);
    }

    fn memory_that_is_taken_each_time_is_found() {
        let taken_bytes = Memory::peak_of(&ALLOCATOR, 0, || drop(black_box(vec![0_u8; 120])));
        assert!(taken_bytes >= 120, "{taken_bytes}");
    }

    fn memory_that_another_thread_takes_meanwhile_is_not_held_against_a_decoder() {
        let others = Cell::new(3);
        let taken_bytes = Memory::peak_of(&ALLOCATOR, 0, || {
            if others.get() > 0 {
                others.set(others.get() - 1);
                thread::spawn(|| drop(black_box(vec![0_u8; 120]))).join().unwrap();
            }
        });
        assert_eq!((taken_bytes, others.get()), (0, 0));
    }

    fn what_was_found_before_stays_found() {
        for decoder in Decoder::ALL {
            for bytes in drawing::corpus(decoder.name()) {
                decoder.check(&bytes, &ALLOCATOR);
            }
        }
    }
}

#[test]
fn what_fuzzers_begin_with_is_little() {
    let all = Decoder::ALL.map(Decoder::name).into_iter().chain(Scene::ALL.map(Scene::name));
    let bytes: usize = all.flat_map(drawing::corpus).map(|file| file.len()).sum();
    assert!(bytes <= CORPUS_BYTES_MAX, "{bytes} bytes");
}

#[test]
fn each_decoder_and_each_scene_has_a_target() {
    let targets = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/fuzz_targets");
    let manifest = std::fs::read_to_string(targets.join("../Cargo.toml")).unwrap();
    let all = Decoder::ALL.map(Decoder::name).into_iter().chain(Scene::ALL.map(Scene::name));
    let count = all
        .map(|name| {
            assert!(targets.join(format!("{name}.rs")).exists(), "{name}");
            assert!(manifest.contains(&format!("path = \"fuzz_targets/{name}.rs\"")), "{name}");
        })
        .count();
    assert_eq!(std::fs::read_dir(targets).unwrap().count(), count, "a target that nobody knows");
}
