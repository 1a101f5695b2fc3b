//! The corpora of the fuzzers' targets for requests, given to the worker. The queue takes what a proxy has looked at, and what
//! else has the proxies' password.

use std::path::Path;

use bytes::Bytes;
use carpool_testkit::hostile::{Allocator, allocator, read_corpus};
use carpool_worker::assemble::Assembler;

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

#[test]
fn messages() {
    let assemblers = MODELS.map(|model| {
        let model = serde_json::from_str(model).unwrap();
        Assembler::load("m", "r1", &model, Path::new(".")).unwrap()
    });
    read_corpus(
        &ALLOCATOR,
        "grpc",
        MODELS.len(),
        |model, message| match assemblers[model].item(Bytes::copy_from_slice(message)) {
            Ok(item) => {
                assert!(item.rows > 0, "a request has rows");
                Ok(())
            }
            Err(failure) => Err(failure.message),
        },
    );
}
