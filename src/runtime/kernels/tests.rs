#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
use super::*;
use std::path::{Path, PathBuf};

fn sources(folder: &Path, into: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, into);
        } else if path.file_name().is_some_and(|name| name != "tests.rs") {
            into.push(path);
        }
    }
}

/// The code of a source file without its tests and comments.
fn code(source: &str) -> String {
    let code = source.split("#[cfg(test)]").next().unwrap_or_default();
    code.lines().map(|line| line.split("//").next().unwrap_or_default()).collect::<Vec<_>>().join("\n")
}

fn has_float(code: &str) -> bool {
    let literal = code.as_bytes().windows(3).any(|w| w[0].is_ascii_digit() && w[1] == b'.' && w[2].is_ascii_digit());
    literal || ["f16", "f32", "f64"].iter().any(|name| code.contains(name))
}

#[test]
fn no_kernel_names_a_float_and_none_imports_from_the_rest_of_the_crate() {
    let mut files = Vec::new();
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/runtime/kernels");
    sources(&root, &mut files);
    assert!(files.len() >= 6, "{files:?}");
    for file in files {
        let code = code(&std::fs::read_to_string(&file).unwrap());
        assert!(!has_float(&code), "{} uses a float", file.display());
        assert!(!code.contains("crate::"), "{} imports from outside", file.display());
    }
}

#[test]
fn the_search_for_floats_finds_them() {
    assert!(has_float("let a = 1.5;"));
    assert!(has_float("x as f32"));
    assert!(!has_float("for i in 0..3 {}"));
    assert!(code("a // 1.5\n#[cfg(test)] 2.5").trim() == "a");
}

#[test]
fn codes_have_their_bits_and_saturate() {
    assert_eq!((-1i8).bits(), 255);
    assert_eq!((-1i16).bits(), 65535);
    assert_eq!(200u8.bits(), 200);
    assert_eq!(i8::saturating_from(200), 127);
    assert_eq!(u16::saturating_from(-3), 0);
    assert_eq!((i16::LOWEST, i16::HIGHEST), (-32768, 32767));
}
