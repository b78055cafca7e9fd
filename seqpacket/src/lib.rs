//! Objects.
#![forbid(unsafe_code)]
pub mod wire;
pub mod credit;
