//! Says whether there is an io_uring driver to be built: the feature asks for one, and the bindings to the
//! kernel's interface are made for this processor.
//!
//! On others, 32 bits wide most of them, the crate `io-uring` does not compile. There the epoll driver is all
//! there is, whatever the features.

use std::env;

/// Those that the manifest has the crate for.
const PROCESSORS: [&str; 5] = ["x86_64", "aarch64", "riscv64", "loongarch64", "powerpc64"];

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    println!("cargo::rustc-check-cfg=cfg(uring)");
    let is_asked = env::var_os("CARGO_FEATURE_URING").is_some();
    let processor = env::var("CARGO_CFG_TARGET_ARCH").unwrap_or_default();
    if is_asked && PROCESSORS.contains(&processor.as_str()) {
        println!("cargo::rustc-cfg=uring");
    }
}
