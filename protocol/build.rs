//! Compiles `proto/inference.proto` into Rust, without a `protoc` on the machine.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo::rerun-if-changed=proto");
    let descriptors = protox::compile(["inference.proto"], ["proto"])?;
    prost_build::Config::new()
        // Tensor contents are slices of the message they came in.
        .bytes(["."])
        // Equal messages encode to equal bytes.
        .btree_map(["."])
        .compile_fds(descriptors)?;
    Ok(())
}
