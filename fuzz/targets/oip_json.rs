#![no_main]

use carpool_sidecar::hostile::{MODELS, oip_json};
use carpool_testkit::hostile::{Allocator, allocator, check};
use libfuzzer_sys::fuzz_target;

#[global_allocator]
static ALLOCATOR: Allocator = allocator();

fuzz_target!(|input: &[u8]| check(&ALLOCATOR, input, MODELS, oip_json));
