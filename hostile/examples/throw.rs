//! Throws files at one thing, one after the other, on either driver: what a fuzzer has found, on any Rust.
//!
//! `cargo run -p sendright-hostile --example throw -- session_server epoll FILE…`; for a decoder, without a
//! driver. It ends with the first that fails, and says how it fails.

use std::error::Error;

use hostile::{Decoder, Memory, Scene};
use peak_alloc::PeakAlloc;
use ring::{Config, DriverChoice, Reactor};

#[global_allocator]
static ALLOCATOR: PeakAlloc = PeakAlloc;

fn main() -> Result<(), Box<dyn Error>> {
    let mut words = std::env::args().skip(1);
    let name = words.next().ok_or("which? a decoder's name, or a scene's")?;
    if let Some(decoder) = Decoder::ALL.into_iter().find(|decoder| decoder.name() == name) {
        for file in words {
            println!("{file}");
            decoder.check(&std::fs::read(file)?, &ALLOCATOR);
        }
        return Ok(());
    }
    let scene =
        Scene::ALL.into_iter().find(|scene| scene.name() == name).ok_or("no such decoder or scene")?;
    let driver = match words.next().as_deref() {
        Some("epoll") => DriverChoice::Epoll,
        Some("uring") => DriverChoice::Uring,
        _ => return Err("on which driver? epoll or uring".into()),
    };
    let reactor = Reactor::with_config(Config { driver, ..Config::default() })?;
    let mut memory = None;
    for file in words {
        println!("{file}");
        scene.play(&reactor, &std::fs::read(file)?);
        memory.get_or_insert_with(|| Memory::count(&ALLOCATOR)).is_bounded();
    }
    Ok(())
}
