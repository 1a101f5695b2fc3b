//! The corpora of the fuzzers' targets for requests, given to the worker. The queue takes what a proxy has looked at, and what
//! else has the proxies' password.

use std::path::Path;

use bytes::Bytes;
use carpool_testkit::hostile::{Allocator, allocator, check, corpus, read_corpus};
use carpool_worker::assemble::Assembler;
use proptest::{
    collection::vec,
    prelude::*,
    sample::{Index, select},
    test_runner::TestRunner,
};

#[global_allocator]
static ALLOCATOR: Allocator = allocator();

const MODELS: [&str; 2] = [
    r#"{"uri": "file://m",
        "inputs": [
            {"name": "x", "datatype": "FP32", "shape": [2], "minimum": -9, "maximum": 9},
            {"name": "ids", "datatype": "INT64", "shape": ["n"]},
            {"name": "mask", "datatype": "BOOL", "shape": ["n"]}
        ],
        "outputs": [{"name": "y", "datatype": "FP32", "shape": [2]}]}"#,
    r#"{"uri": "file://m",
        "inputs": [{"name": "x", "datatype": "FP64", "shape": [-1, 2]}],
        "outputs": [{"name": "y", "datatype": "FP64", "shape": [2]}]}"#,
];

/// Has the worker of one of the models read a message. The error is what its client is told.
fn read(assemblers: &[Assembler], model: usize, message: &[u8]) -> Result<(), String> {
    match assemblers[model].item(Bytes::copy_from_slice(message)) {
        Ok(item) => {
            assert!(item.rows > 0, "a request has rows");
            Ok(())
        }
        Err(failure) => Err(failure.message),
    }
}

#[test]
fn messages() {
    let assemblers = MODELS.map(|model| {
        let model = serde_json::from_str(model).unwrap();
        Assembler::load("m", "r1", &model, Path::new(".")).unwrap()
    });
    let read = |model: usize, message: &[u8]| read(&assemblers, model, message);
    read_corpus(&ALLOCATOR, "grpc", MODELS.len(), read);

    // No fuzzer is given the worker, which is linked with libtorch: here is a little of what one does.
    let edit = (any::<Index>(), any::<Index>(), vec(any::<u8>(), 0..4));
    let edited = (select(corpus("grpc")), vec(edit, 1..4));
    TestRunner::new(ProptestConfig::with_cases(2000))
        .run(&edited, |(mut message, edits)| {
            for (at, length, bytes) in edits {
                let start = at.index(message.len() + 1);
                let end = start + length.index((message.len() - start + 1).min(8));
                message.splice(start..end, bytes);
            }
            check(&ALLOCATOR, &message, MODELS.len(), read);
            Ok(())
        })
        .unwrap();
}
