//! Where the command line writes: nothing is replaced that was read, and words keep out of files.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

#[path = "common/bench.rs"]
mod bench;

use std::io::Read;
use std::process::Stdio;

use bench::{Bench, CALIB, IMAGES, VIT, with};

#[test]
fn outputs_are_checked_before_any_work() {
    let b = Bench::new();
    b.write("in.onnx", &std::fs::read(VIT).unwrap());
    let to = |out| b.fails(&with(&["compile", "@/in.onnx", "--calib", CALIB, "-o", out], &IMAGES));
    let text = [to("@/in.onnx"), to("@/none/out.onnx"), to("@")].concat();
    insta::with_settings!({
        snapshot_path => concat!(env!("CARGO_MANIFEST_DIR"), "/snapshots/cli"), prepend_module_to_snapshot => false, omit_expression => true,
    }, {
        insta::assert_snapshot!("outputs", text);
    });
    assert_eq!(b.bytes("in.onnx"), std::fs::read(VIT).unwrap());
}

#[test]
fn the_data_of_an_input_are_not_replaced() {
    let b = Bench::new();
    b.ok(&["canon", VIT, "--external-data", "-o", "@/a.onnx"]);
    std::fs::rename(b.path("a.onnx"), b.path("float.onnx")).unwrap();
    let data = b.bytes("a.onnx.data");
    for args in [&["canon", "@/float.onnx"][..], &with(&["compile", "@/float.onnx", "--calib", CALIB], &IMAGES)] {
        let error = b.fails(&with(args, &["--external-data", "-o", "@/a.onnx"]));
        assert!(error.contains("a.onnx.data is an input"), "{error}");
        let error = b.fails(&with(args, &["-o", "@/a.onnx.data"]));
        assert!(error.contains("a.onnx.data is an input"), "{error}");
    }
    let error = b.fails(&["roundtrip", "@/float.onnx", "@/a.onnx", "--external-data"]);
    assert!(error.contains("a.onnx.data is an input"), "{error}");
    assert_eq!(b.bytes("a.onnx.data"), data);
}

#[test]
fn a_configuration_is_an_input_and_two_spellings_are_one_output() {
    let b = Bench::new();
    b.write("c.yaml", b"default: {bit_type: {bits: 8}}\n");
    let compile = with(&["compile", VIT, "--calib", CALIB, "--calib-limit", "2", "--config", "@/c.yaml"], &IMAGES);
    let error = b.fails(&with(&compile, &["-o", "@/x.onnx", "--save-plan", "@/c.yaml"]));
    assert!(error.contains("c.yaml is an input"), "{error}");
    let error = b.misused(&with(&compile, &["-o", "@/x.onnx", "--save-plan", "@/./x.onnx"]));
    assert!(error.contains("two outputs"), "{error}");
    let error = b.misused(&with(&compile, &["-o", "@/p.constants.npz", "--save-plan", "@/p"]));
    assert!(error.contains("two outputs"), "{error}");
}

#[test]
fn a_reader_that_goes_away_is_no_error() {
    let b = Bench::new();
    let mut child = b.command(&["inspect", VIT, "--text"]).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let mut said = String::new();
    child.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    assert!(child.wait().unwrap().success());
    assert_eq!(said, "");
}

/// No temporary file, no renaming.
#[cfg(unix)]
#[test]
fn an_output_may_be_a_device() {
    let b = Bench::new();
    let args = ["compile", VIT, "--calib", CALIB, "--calib-limit", "2", "--quiet", "-o", "/dev/null"];
    assert_eq!(b.ok(&with(&args, &IMAGES)), "");
}

/// A pipe, or a file to which a shell has led standard output: the model alone, what is said of it goes to standard error.
#[cfg(unix)]
#[test]
fn standard_output_takes_a_file_and_no_words() {
    let b = Bench::new();
    b.ok(&["canon", VIT, "-o", "@/a.onnx"]);
    let out = b.run(&["canon", VIT, "-o", "/dev/stdout"]);
    assert!(out.status.success() && out.stdout == b.bytes("a.onnx"));
    assert!(String::from_utf8(out.stderr).unwrap().contains("written to /dev/stdout"));
    let file = std::fs::File::create(b.path("redirected")).unwrap();
    assert!(b.command(&["canon", VIT, "-o", "/dev/stdout"]).stdout(file).status().unwrap().success());
    assert_eq!(b.bytes("redirected"), b.bytes("a.onnx"));
}

/// What a link leads to is replaced, not the link.
#[cfg(unix)]
#[test]
fn an_output_may_be_a_link() {
    let b = Bench::new();
    b.write("there/old.onnx", b"old");
    std::os::unix::fs::symlink(b.path("there/old.onnx"), b.path("link.onnx")).unwrap();
    b.ok(&["canon", VIT, "-o", "@/link.onnx"]);
    assert!(b.path("link.onnx").is_symlink() && b.bytes("there/old.onnx").len() > 1000);
}

/// `nohup` ignores SIGHUP for what it starts, a script's shell ignores SIGINT for its background jobs.
#[cfg(target_os = "linux")]
#[test]
fn a_signal_that_was_ignored_stays_ignored() {
    let b = Bench::new();
    let vitq = b.command(&[]).get_program().to_owned();
    let script = format!(
        "trap '' HUP; '{}' calibrate {VIT} --calib {CALIB} --preprocess inception --crop-pct 1 -o '{}' & \
         until grep -q SigCgt:.*[1-9a-f] /proc/$!/status; do :; done; for i in 1 2 3; do kill -HUP $!; sleep 0.05; done; wait $!",
        vitq.to_str().unwrap(),
        b.path("stats").display()
    );
    let status = std::process::Command::new("sh").args(["-c", &script]).current_dir(env!("CARGO_MANIFEST_DIR")).status().unwrap();
    assert!(status.success() && b.path("stats").is_file(), "{status}");
}
