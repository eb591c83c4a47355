//! Reading and writing ONNX files loses nothing, and damaged files give errors.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::path::{Path, PathBuf};
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use proptest::prelude::*;
use vitq::onnx::{self, ExternalData};

fn models(root: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                // A virtual environment of the training scripts is none of ours.
                if path.file_name().is_none_or(|n| n != ".venv") {
                    folders.push(path);
                }
            } else if path.extension().is_some_and(|e| e == "onnx") {
                found.push(path);
            }
        }
    }
    found.sort();
    assert!(!found.is_empty(), "no model under {}", root.display());
    found
}

fn own_models() -> Vec<PathBuf> {
    models(&Path::new(env!("CARGO_MANIFEST_DIR")).join("models"))
}

/// Those of the project, and of the folder that VITQ_SHARED names.
fn all_models() -> Vec<PathBuf> {
    let mut all = own_models();
    match std::env::var_os("VITQ_SHARED") {
        Some(root) => all.extend(models(Path::new(&root))),
        None => println!("skipped: VITQ_SHARED is not set"),
    }
    all
}

#[test]
fn models_come_back_byte_by_byte() {
    for path in all_models() {
        let model = onnx::read(&path).unwrap();
        let bytes = onnx::encode(&model).unwrap();
        assert!(bytes == std::fs::read(&path).unwrap(), "{} changed", path.display());
    }
}

#[test]
fn external_data_comes_back_equal() {
    let folder = tempfile::tempdir().unwrap();
    for path in all_models() {
        let before = onnx::read(&path).unwrap();
        let out = folder.path().join(path.file_name().unwrap());
        onnx::write(&before, &out, ExternalData::Always).unwrap();
        let data = folder.path().join(format!("{}.data", path.file_name().unwrap().to_str().unwrap()));
        let (small, whole) = (std::fs::metadata(&out).unwrap().len(), std::fs::metadata(&path).unwrap().len());
        assert!(small + std::fs::metadata(&data).unwrap().len() >= whole && small < whole / 2, "{small} of {whole} bytes");
        let after = onnx::read(&out).unwrap();
        assert!(onnx::encode(&after).unwrap() == std::fs::read(&path).unwrap(), "{} changed", path.display());
        std::fs::remove_file(data).unwrap();
        assert!(onnx::read(&out).unwrap_err().to_string().contains(".data"));
    }
}

/// Reads damaged bytes: a model or an error, soon.
fn survives(bytes: &[u8]) -> Result<(), TestCaseError> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("damaged.onnx");
    std::fs::write(&path, bytes).unwrap();
    let start = Instant::now();
    match onnx::read(&path) {
        // What was taken is written and read again, to the same bytes.
        Ok(model) => {
            let once = onnx::encode(&model).unwrap();
            std::fs::write(&path, &once).unwrap();
            let again = onnx::read(&path).map_err(|e| TestCaseError::fail(e.to_string()))?;
            prop_assert!(onnx::encode(&again).unwrap() == once);
        }
        Err(e) => prop_assert!(e.to_string().len() > 20),
    }
    prop_assert!(start.elapsed() < Duration::from_secs(10));
    Ok(())
}

static ORIGINALS: LazyLock<Vec<Vec<u8>>> =
    LazyLock::new(|| own_models().iter().map(|path| std::fs::read(path).unwrap()).collect());

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, ..ProptestConfig::default() })]

    #[test]
    fn truncated_files_give_errors(which in any::<prop::sample::Index>(), at in any::<prop::sample::Index>()) {
        let bytes = which.get(&ORIGINALS);
        survives(&bytes[..at.index(bytes.len())])?;
    }

    #[test]
    fn corrupt_files_give_errors(
        which in any::<prop::sample::Index>(),
        flips in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>(), any::<bool>()), 1..40),
    ) {
        let mut bytes = which.get(&ORIGINALS).clone();
        // Weights are most of a file, and any bits are good weights: most flips go to the structure at the front.
        let front = bytes.len().min(12_000);
        for (at, value, in_front) in flips {
            let at = at.index(if in_front { front } else { bytes.len() });
            bytes[at] = value;
        }
        survives(&bytes)?;
    }

    #[test]
    fn random_bytes_give_errors(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        survives(&bytes)?;
    }
}
