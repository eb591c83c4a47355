//! Time and memory of reading, canonicalising and recognising a large model; fails beyond 5 s or 1.5 times the model's size.
//!
//! ```text
//! cargo run --release --example large_model -- make /tmp/large.onnx   # a ViT of ViT-L's size: 24 blocks of width 1024, 1.2 GB
//! cargo run --release --example large_model -- /tmp/large.onnx        # or any other model
//! ```
//!
//! The peak is Linux's `VmHWM`, which counts the pages of the mapped file that were read; elsewhere it is left out.

#![allow(clippy::print_stdout)]

use std::error::Error;
use std::path::Path;
use std::time::Instant;

use vitq::onnx::ExternalData;
use vitq::pipeline::file_bytes;
use vitq::{canon, onnx, vit};

#[path = "../tests/common/vit.rs"]
mod graphs;

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match args.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        ["make", path] => Ok(onnx::write(&graphs::vit(24, 1024), Path::new(path), ExternalData::Always)?),
        [path] => measure(Path::new(path)),
        _ => Err("give a model's path, or 'make' and where to write one".into()),
    }
}

fn measure(path: &Path) -> Result<(), Box<dyn Error>> {
    let start = Instant::now();
    let mut model = onnx::read(path)?;
    let size = file_bytes(path, &model);
    let read = start.elapsed().as_secs_f64();
    canon::canonicalise(&mut model)?;
    let canonical = start.elapsed().as_secs_f64();
    let found = vit::recognise(&model.graph);
    let all = start.elapsed().as_secs_f64();
    println!("{}: {:.2} GB, {} blocks", path.display(), size as f64 / 1e9, found.blocks.len());
    println!(
        "read {read:.2} s, canonicalised {:.2} s, recognised {:.2} s, together {all:.2} s",
        canonical - read,
        all - canonical
    );
    if all > 5.0 {
        return Err("slower than 5 s".into());
    }
    let Some(peak) = peak_bytes() else { return Ok(()) };
    let ratio = peak as f64 / size as f64;
    println!("peak memory {:.2} GB, {ratio:.2} times the model", peak as f64 / 1e9);
    // The program itself takes a few megabytes, which matter for small models only.
    if ratio > 1.5 && size > 100_000_000 { Err("more memory than 1.5 times the model".into()) } else { Ok(()) }
}

/// The highest resident size of this process.
fn peak_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|l| l.strip_prefix("VmHWM:"))?;
    line.trim().strip_suffix(" kB")?.trim().parse::<u64>().ok().map(|kb| kb * 1024)
}
