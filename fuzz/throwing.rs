//! What all targets have in common: the allocator that counts, and reactors that stay.
//!
//! It does not know what is thrown. `FUZZ_DRIVER` says on which driver scenes are played: `epoll`, the
//! default, or `uring`, whose work in the kernel a fuzzer sees less of.
#![forbid(unsafe_code)]

use std::cell::OnceCell;

use hostile::{Decoder, Memory, Scene};
use peak_alloc::PeakAlloc;
use ring::{Config, DriverChoice, Reactor};

#[global_allocator]
static ALLOCATOR: PeakAlloc = PeakAlloc;

/// What a thread has from one script to the next.
struct Stage {
    reactor: Reactor,
    /// Counted when one script has been played.
    memory: OnceCell<Memory>,
}

thread_local! {
    // A fuzzer calls a target again and again on one thread, and gives it nothing to keep.
    static STAGE: Stage = Stage { reactor: reactor(), memory: OnceCell::new() };
}

fn reactor() -> Reactor {
    let driver = match std::env::var("FUZZ_DRIVER").as_deref() {
        Ok("uring") => DriverChoice::Uring,
        Ok("epoll") | Err(_) => DriverChoice::Epoll,
        Ok(other) => panic!("FUZZ_DRIVER={other}: neither uring nor epoll"),
    };
    Reactor::with_config(Config { driver, ..Config::default() }).expect("a reactor")
}

/// Has a decoder read these bytes.
pub fn at_decoder(decoder: Decoder, bytes: &[u8]) {
    decoder.check(bytes, &ALLOCATOR);
}

/// Plays a script.
pub fn at_scene(scene: Scene, script: &[u8]) {
    STAGE.with(|stage| {
        scene.play(&stage.reactor, script);
        stage.memory.get_or_init(|| Memory::count(&ALLOCATOR)).is_bounded();
    });
}
