//! The bodies of the fuzz targets. Each reads bytes that anybody may have written, panics only where vitq has a defect, and
//! returns whether vitq took them. `tests/fuzz_smoke.rs` runs them on the seeds.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use std::path::PathBuf;
use std::sync::LazyLock;

use prost::Message;
use prost::bytes::Bytes;
use sha2::{Digest, Sha256};
use vitq::calib::Stats;
use vitq::data::{Channels, Dataset, Options, Preprocess, read_arrays};
use vitq::ir::text::{PrintOptions, parse_model, print_model};
use vitq::onnx::proto::ModelProto;
use vitq::onnx::{NoDataFiles, encode, from_proto};
use vitq::quant::QuantPlan;

/// A model that is read is written and read again to the same bytes.
pub fn onnx_read(data: &[u8]) -> bool {
    let Ok(proto) = ModelProto::decode(data) else { return false };
    let Ok(model) = from_proto(proto, &NoDataFiles) else { return false };
    let once = encode(&model).expect("small enough");
    let proto = ModelProto::decode(Bytes::from(once.clone())).expect("what was written decodes");
    let again = from_proto(proto, &NoDataFiles).expect("what was written is a model");
    assert_eq!(encode(&again).expect("small enough"), once);
    true
}

/// A text that is read is printed and read again to the same text.
pub fn ir_text(data: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(data) else { return false };
    let Ok(model) = parse_model(text) else { return false };
    let once = print_model(&model, &PrintOptions::lossless());
    let again = parse_model(&once).unwrap_or_else(|e| panic!("{e}\n{once}"));
    assert_eq!(print_model(&again, &PrintOptions::lossless()), once);
    true
}

/// A configuration gives an answer for every block and site.
pub fn config_yaml(data: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(data) else { return false };
    let Ok(config) = vitq::config::load::parse("fuzz.yaml", text) else { return false };
    for site in ["attn_qkv", "norm1", "residual2", "mlp_act", "no such site"] {
        for block in [None, Some(0), Some(usize::MAX)] {
            let _ = config.resolve(block, site);
        }
    }
    true
}

/// Statistics that are read are written and read again to the same bytes. The checksum is put right, so that more than it
/// is tried.
pub fn stats_bytes(data: &[u8]) -> bool {
    let _ = Stats::from_bytes(data);
    let mut bytes = data[..data.len().saturating_sub(32)].to_vec();
    let checksum = Sha256::digest(&bytes);
    bytes.extend_from_slice(&checksum);
    let Ok(stats) = Stats::from_bytes(&bytes) else { return false };
    let once = stats.to_bytes().expect("encodable");
    let again = Stats::from_bytes(&once).expect("what was written is readable");
    assert_eq!(again.to_bytes().expect("encodable"), once);
    true
}

/// A plan that is read is written and read again to the same text.
pub fn plan_json(data: &[u8]) -> bool {
    let Ok(text) = std::str::from_utf8(data) else { return false };
    let Ok(plan) = QuantPlan::from_text(text, "fuzz.json") else { return false };
    let once = plan.to_text();
    let again = QuantPlan::from_text(&once, "fuzz.json").unwrap_or_else(|e| panic!("{e}\n{once}"));
    assert_eq!(again.to_text(), once);
    true
}

/// A file that the process's later calls overwrite.
fn file(name: &str, data: &[u8]) -> PathBuf {
    static FOLDER: LazyLock<tempfile::TempDir> = LazyLock::new(|| tempfile::tempdir().expect("a temporary folder"));
    let path = FOLDER.path().join(name);
    std::fs::write(&path, data).expect("a writable temporary folder");
    path
}

/// What is read of an array file is finite.
pub fn arrays(data: &[u8]) -> bool {
    // By the ending, not the content, as users' files are.
    let mut taken = false;
    for name in ["fuzz.npy", "fuzz.npz"] {
        let path = file(name, data);
        if let Ok(arrays) = read_arrays(&path) {
            assert!(arrays.iter().all(|a| a.array.iter().all(|v| v.is_finite())));
        }
        taken |= samples(&path, &Options { limit: Some(2), ..Options::default() });
    }
    taken
}

/// What is decoded of an image has the size that the model takes.
pub fn image(data: &[u8]) -> bool {
    let options = Options { preprocess: Some(Preprocess::none(8)), channels: Channels::default(), ..Options::default() };
    samples(&file("fuzz.png", data), &options)
}

fn samples(path: &std::path::Path, options: &Options) -> bool {
    let Ok(dataset) = Dataset::open(path, options) else { return false };
    let taken = (0..dataset.len()).filter_map(|i| dataset.sample(i).ok());
    taken.inspect(|sample| assert!(!sample.inputs.is_empty())).count() > 0
}
