//! The vitq command.

use std::process::ExitCode;

fn main() -> ExitCode {
    let a: Vec<_> = std::env::args().collect();
    let m = vitq::onnx::read(a[1].as_ref()).unwrap();
    vitq::onnx::write(&m, a[2].as_ref(), vitq::onnx::ExternalData::WhenNeeded).unwrap();
    ExitCode::SUCCESS
}
