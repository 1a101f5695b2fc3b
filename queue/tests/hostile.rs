//! The corpus of the fuzzers' target for what is read from Redis.

use carpool_queue::hostile::{WAYS, queue};
use carpool_testkit::hostile::{Allocator, allocator, read_corpus};

#[global_allocator]
static ALLOCATOR: Allocator = allocator();

#[test]
fn entries_and_answers() {
    read_corpus(&ALLOCATOR, "queue", WAYS, queue);
}
