//! Compiles the ONNX schema to Rust types, in Rust: no protoc is needed.

fn main() -> Result<(), Box<dyn std::error::Error>> {
    println!("cargo:rerun-if-changed=proto/onnx.proto3");
    let descriptors = protox::compile(["proto/onnx.proto3"], ["proto"])?;
    prost_build::Config::new()
        // Tensor contents stay slices of the mapped file.
        .bytes(["."])
        .disable_comments(["."])
        .compile_fds(descriptors)?;
    Ok(())
}
