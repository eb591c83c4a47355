//! The command line in a temporary folder.
#![allow(missing_docs, dead_code, clippy::unwrap_used, unreachable_pub)]

use std::path::{Path, PathBuf};
use std::process::Output;

use assert_cmd::cargo::cargo_bin;
use tempfile::TempDir;

pub const VIT: &str = "models/digits/vit_digits.onnx";
pub const CNN: &str = "models/digits/cnn_digits.onnx";
pub const CALIB: &str = "models/digits/calib";
pub const TEST: &str = "models/digits/test";
pub const IMAGES: [&str; 4] = ["--preprocess", "inception", "--crop-pct", "1"];

/// A command in the project's folder, with `@` in an argument standing for the temporary folder.
pub struct Bench {
    pub tmp: TempDir,
}

impl Bench {
    pub fn new() -> Bench {
        Bench { tmp: tempfile::tempdir().unwrap() }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.tmp.path().join(name)
    }

    pub fn bytes(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.path(name)).unwrap()
    }

    pub fn write(&self, name: &str, content: &[u8]) {
        let path = self.path(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content).unwrap();
    }

    pub fn command(&self, args: &[&str]) -> std::process::Command {
        let mut c = std::process::Command::new(cargo_bin!("vitq"));
        c.current_dir(env!("CARGO_MANIFEST_DIR")).args(args.iter().map(|a| a.replace('@', self.tmp.path().to_str().unwrap())));
        c
    }

    pub fn run(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    /// Runs what must succeed; gives standard output.
    pub fn ok(&self, args: &[&str]) -> String {
        let out = self.run(args);
        assert!(out.status.success(), "{args:?}: {}", String::from_utf8_lossy(&out.stderr));
        String::from_utf8(out.stdout).unwrap()
    }

    /// Runs what must fail with exit code 1, one paragraph on standard error, nothing on standard output and no new file.
    pub fn fails(&self, args: &[&str]) -> String {
        self.fails_with(1, args)
    }

    /// The same with exit code 2: options that make no sense together.
    pub fn misused(&self, args: &[&str]) -> String {
        self.fails_with(2, args)
    }

    fn fails_with(&self, code: i32, args: &[&str]) -> String {
        let before = files(self.tmp.path());
        let out = self.run(args);
        let stderr = String::from_utf8(out.stderr).unwrap();
        assert_eq!(out.status.code(), Some(code), "{args:?}: {stderr}");
        assert_eq!(String::from_utf8_lossy(&out.stdout), "", "{args:?}");
        assert_eq!(files(self.tmp.path()), before, "{args:?} left a file behind");
        assert!(stderr.starts_with("error: ") && stderr.lines().count() == 1, "one paragraph expected: {stderr}");
        assert!(!stderr.contains("panicked") && !stderr.contains('\u{1b}'), "{stderr}");
        stderr.replace(self.tmp.path().to_str().unwrap(), "[TMP]")
    }

    /// Compiles for a target on four images into `@/NAME`.
    pub fn compile(&self, target: &str, name: &str, more: &[&str]) -> String {
        self.compile_on("4", target, name, more)
    }

    /// On so many images: what four show of a channel is not what it holds.
    pub fn compile_on(&self, images: &str, target: &str, name: &str, more: &[&str]) -> String {
        let output = format!("@/{name}");
        let mut args = vec!["compile", VIT, "--calib", CALIB, "--calib-limit", images, "--target", target, "-o", &output];
        args.extend(IMAGES);
        args.extend(more);
        self.ok(&args)
    }
}

/// Every file and folder below a folder.
pub fn files(folder: &Path) -> Vec<PathBuf> {
    let mut out = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            out.extend(files(&path));
        }
        out.push(path);
    }
    out.sort();
    out
}

pub fn with<'a>(args: &[&'a str], more: &[&'a str]) -> Vec<&'a str> {
    [args, more].concat()
}
