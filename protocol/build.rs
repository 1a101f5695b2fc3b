//! Compiles `proto/inference.proto` into Rust, without a `protoc` on the machine.

use std::path::PathBuf;

use prost::Message;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed=proto");
    let descriptors = protox::compile(["inference.proto"], ["proto"])?;
    // gRPC's reflection tells clients of them.
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    std::fs::write(out.join("inference.bin"), descriptors.encode_to_vec())?;
    prost_build::Config::new()
        // Tensor contents are slices of the message they came in.
        .bytes(["."])
        // Equal messages encode to equal bytes.
        .btree_map(["."])
        .compile_fds(descriptors)?;
    Ok(())
}
