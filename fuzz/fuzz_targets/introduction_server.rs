//! A fuzzer's scripts for [`Scene::IntroductionServer`].
#![no_main]

use hostile::Scene;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|script: &[u8]| throwing::at_scene(Scene::IntroductionServer, script));
