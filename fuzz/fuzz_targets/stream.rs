//! A fuzzer's bytes for [`Decoder::Stream`].
#![no_main]

use hostile::Decoder;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| throwing::at_decoder(Decoder::Stream, bytes));
