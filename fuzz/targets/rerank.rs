#![no_main]

use carpool_sidecar::hostile::{MODELS, rerank};
use carpool_testkit::hostile::{Allocator, allocator, check};
use libfuzzer_sys::fuzz_target;

#[global_allocator]
static ALLOCATOR: Allocator = allocator();

fuzz_target!(|input: &[u8]| check(&ALLOCATOR, input, MODELS, rerank));
