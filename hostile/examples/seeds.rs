//! Writes what a fuzzer begins with into `fuzz/corpus`, a directory for each target: what real peers say to
//! each other, and scripts for hostile ones.
//!
//! `cargo run -p sendright-hostile --example seeds`. Files that a fuzzer has added stay.

use std::error::Error;
use std::fs;
use std::path::Path;

use ring::Reactor;

fn main() -> Result<(), Box<dyn Error>> {
    let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus");
    let reactor = Reactor::new()?;
    for (name, seeds) in hostile::seeds(&reactor) {
        let directory = corpus.join(name);
        fs::create_dir_all(&directory)?;
        for (number, seed) in seeds.iter().enumerate() {
            fs::write(directory.join(format!("seed-{number:02}")), seed)?;
        }
        let bytes: usize = seeds.iter().map(Vec::len).sum();
        println!("{name}: {} seeds of {bytes} bytes", seeds.len());
    }
    Ok(())
}
