//! Calibration in pieces: shards and merging, interruption and resumption, files that cannot be decoded.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

use assert_cmd::cargo::cargo_bin;
use tempfile::TempDir;

const VIT: &str = "models/digits/vit_digits.onnx";
const CNN: &str = "models/digits/cnn_digits.onnx";
const CALIB: &str = "models/digits/calib";
/// A configuration with every observer: MinMax, PTF, percentiles with a moving average, OMSE, KL.
const EVERY_OBSERVER: &str = "
default: {observer_type: OmseObserver}
attn_layer:
  attn_qkv_output: {observer_type: PercentileObserver, percentile_alpha: 0.9999, percentile_sigma: 0.1}
  sv_attn: {observer_type: PercentileObserver}
  mlp_act: {observer_type: KLObserver, kl_bins: 1024}
layers:
  norm1: {observer_type: MinmaxObserver}
residual_layer:
  default: {quantization_method: PTF}
";

struct Bench {
    tmp: TempDir,
}

impl Bench {
    fn new() -> Self {
        let tmp = tempfile::tempdir().unwrap();
        std::fs::write(tmp.path().join("every.yaml"), EVERY_OBSERVER).unwrap();
        Self { tmp }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.tmp.path().join(name)
    }

    fn bytes(&self, name: &str) -> Vec<u8> {
        std::fs::read(self.path(name)).unwrap()
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut c = Command::new(cargo_bin!("vitq"));
        c.current_dir(env!("CARGO_MANIFEST_DIR")).args(args.iter().map(|a| a.replace('@', self.tmp.path().to_str().unwrap())));
        c.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        c
    }

    fn run(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    /// Standard output and standard error of what must succeed.
    fn ok(&self, args: &[&str]) -> (String, String) {
        let out = self.run(args);
        let (stdout, stderr) = (String::from_utf8(out.stdout).unwrap(), String::from_utf8(out.stderr).unwrap());
        assert!(out.status.success(), "{args:?}: {stderr}");
        (stdout, stderr)
    }

    /// Standard error of what must fail without a new file.
    fn fails(&self, args: &[&str]) -> String {
        let before = names(self.tmp.path());
        let out = self.run(args);
        let stderr = String::from_utf8(out.stderr).unwrap();
        assert_eq!(out.status.code(), Some(1), "{args:?}: {stderr}");
        assert_eq!(names(self.tmp.path()), before, "{args:?} left a file behind");
        stderr
    }

    /// A folder of `n` calibration images.
    fn images(&self, name: &str, n: usize) -> String {
        let folder = self.path(name);
        std::fs::create_dir(&folder).unwrap();
        for file in names(Path::new(CALIB)).iter().filter(|f| f.ends_with(".png")).take(n) {
            std::fs::copy(Path::new(CALIB).join(file), folder.join(file)).unwrap();
        }
        format!("@/{name}")
    }
}

fn names(folder: &Path) -> Vec<String> {
    let mut all: Vec<String> =
        std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    all.sort();
    all
}

fn calibrate<'a>(model: &'a str, data: &'a str, output: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    let common = ["calibrate", model, "--calib", data, "--preprocess", "inception", "--crop-pct", "1", "-o", output];
    [&common[..], more].concat()
}

/// The promise: 1, 3 and 16 shards, merged in any order, on one thread and two, are one run, byte for byte, for every
/// observer. The order is drawn from the number of shards.
#[test]
fn shards_in_any_order_on_any_threads_are_one_run() {
    let b = Bench::new();
    let data = b.images("images", 10);
    b.ok(&calibrate(VIT, &data, "@/whole", &["--config", "@/every.yaml", "--threads", "1"]));
    let whole = b.bytes("whole");
    for (of, stride) in [(1, 1), (3, 2), (16, 5)] {
        for threads in ["1", "2"] {
            let mut files = Vec::new();
            for part in 0..of {
                let (shard, file) = (format!("{}/{of}", part + 1), format!("@/{of}-{part}-{threads}.stats"));
                b.ok(&calibrate(VIT, &data, &file, &["--config", "@/every.yaml", "--shard", &shard, "--threads", threads]));
                files.push(file);
            }
            // 16 shards of 10 samples: six are empty.
            for shift in [0, of / 2] {
                let order: Vec<&str> = (0..of).map(|i| files[(i * stride + shift) % of].as_str()).collect();
                b.ok(&[&["merge"], &order[..], &["-o", "@/merged"]].concat());
                assert!(b.bytes("merged") == whole, "{of} shards, {threads} threads, shifted by {shift}");
            }
        }
    }
    // A plan of merged statistics is a plan.
    let plan = ["plan", VIT, "--config", "@/every.yaml", "-o", "@/plan.json", "--stats"];
    b.ok(&[&plan[..], &["@/merged"]].concat());
    let merged = b.bytes("plan.json");
    b.ok(&[&plan[..], &["@/whole"]].concat());
    assert!(b.bytes("plan.json") == merged);
}

#[test]
fn what_does_not_belong_together_is_not_merged() {
    let b = Bench::new();
    let data = b.images("images", 6);
    for (name, shard, more) in [
        ("@/1", "1/3", &[][..]),
        ("@/2", "2/3", &[]),
        ("@/half", "1/2", &[]),
        ("@/config", "2/3", &["--config", "fqvit"]),
        ("@/options", "2/3", &["--config", "w4a4"]),
        ("@/limit", "2/3", &["--calib-limit", "5"]),
    ] {
        b.ok(&calibrate(VIT, &data, name, &[&["--shard", shard, "--quiet"], more].concat()));
    }
    b.ok(&calibrate(CNN, &data, "@/cnn", &["--shard", "2/3"]));
    let says = |files: &[&str], words: &[&str]| {
        let error = b.fails(&[&["merge"], files, &["-o", "@/out"]].concat());
        assert!(words.iter().all(|w| error.contains(w)) && error.lines().count() == 1, "{error}");
    };
    says(&["@/1", "@/half"], &["half", "sample 0 (counted from 0) is in both", "give each shard once"]);
    says(&["@/1", "@/2", "@/1"], &["2 samples are in both"]);
    says(&["@/1", "@/config"], &["config", "is in one only", "one configuration"]);
    says(&["@/1", "@/options"], &["options", "was recorded with other options"]);
    says(&["@/1", "@/limit"], &["limit", "sample lists or preprocessing differ"]);
    says(&["@/1", "@/cnn"], &["cnn", "two models"]);
    says(&["@/1", VIT], &["vit_digits.onnx", "not a readable statistics file"]);
    let error = b.fails(&["merge", "@/1", "@/2", "-o", "@/1"]);
    assert!(error.contains("is an input of this command"), "{error}");
    // Shards that are still missing are told, wherever statistics are used.
    let (_, warning) = b.ok(&["merge", "@/1", "@/2", "-o", "@/part"]);
    assert!(warning.contains("cover 4 of 6 samples"), "{warning}");
    let (_, warning) = b.ok(&["plan", VIT, "--stats", "@/part", "-o", "@/plan.json"]);
    assert!(warning.contains("cover 4 of 6 samples"), "{warning}");
    let error = b.fails(&["plan", VIT, "--stats", "@/part", "--strict", "-o", "@/strict.json"]);
    assert!(error.contains("--strict") && error.contains("cover 4 of 6 samples"), "{error}");
    let out = b.run(&calibrate(VIT, &data, "@/out", &["--shard", "4/3"]));
    assert_eq!(out.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&out.stderr).contains("K/N with K between 1 and N"));
}

#[test]
fn a_corrupt_image_stops_the_run_or_is_skipped() {
    let b = Bench::new();
    let data = b.images("images", 7);
    let files = names(&b.path("images"));
    for (i, cut) in [(1, 40), (5, 300)] {
        let path = b.path("images").join(&files[i]);
        let whole = std::fs::read(&path).unwrap();
        std::fs::write(&path, &whole[..cut.min(whole.len() / 2)]).unwrap();
    }
    let error = b.fails(&calibrate(VIT, &data, "@/out", &["--threads", "2"]));
    assert!(error.contains(&files[1]) && error.contains("cannot be decoded"), "{error}");
    let skip = |output: &str, more: &[&str]| {
        let (out, said) = b.ok(&calibrate(VIT, &data, output, &[&["--skip-corrupt"], more].concat()));
        assert!(out.contains("values observed on") || !more.is_empty(), "{out}");
        said
    };
    let said = skip("@/one", &["--threads", "1"]);
    assert!(said.contains("2 of 7 samples were skipped") && said.contains(&files[1]) && said.contains(&files[5]), "{said}");
    assert_eq!(skip("@/two", &["--threads", "2"]), said);
    assert!(b.bytes("one") == b.bytes("two"));
    // The statistics know what was skipped, so merged shards and resumed runs are the same bytes.
    let stats = vitq::calib::Stats::from_bytes(&b.bytes("one")).unwrap();
    assert_eq!((stats.samples(), stats.skipped(), stats.missing()), (&[0, 2, 3, 4, 6][..], &[1, 5][..], 0));
    for shard in ["1/2", "2/2"] {
        skip(&format!("@/{}", &shard[..1]), &["--shard", shard]);
    }
    b.ok(&["merge", "@/2", "@/1", "-o", "@/merged"]);
    assert!(b.bytes("merged") == b.bytes("one"));
    // The comparison that ends `compile` skips them too.
    let images = ["--preprocess", "inception", "--crop-pct", "1", "--skip-corrupt", "--effort", "fast", "--json"];
    let (json, said) = b.ok(&[&["compile", VIT, "--calib", &data, "-o", "@/q.onnx"], &images[..]].concat());
    assert!(said.contains("2 of 7 samples were skipped") && json.contains("2 of 7 samples were skipped"), "{said}{json}");
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    assert_eq!((&json["calibration_samples"], &json["quality"]["samples"]), (&5.into(), &5.into()));
    // With nothing left there is nothing to calibrate on.
    for file in &files {
        std::fs::write(b.path("images").join(file), b"\x89PNG\r\n\x1a\nno").unwrap();
    }
    let error = b.fails(&calibrate(VIT, &data, "@/out", &["--skip-corrupt"]));
    assert!(error.contains("7 skipped"), "{error}");
}

/// Killed at 20 random moments: never a partial output, every saved file whole, and the end is the same bytes.
#[test]
fn a_killed_run_is_resumed_to_the_same_bytes() {
    let b = Bench::new();
    let start = Instant::now();
    b.ok(&calibrate(VIT, CALIB, "@/whole", &["--threads", "1"]));
    let (whole, time) = (b.bytes("whole"), start.elapsed());
    let args = calibrate(VIT, CALIB, "@/out", &["--resume", "@/saved", "--threads", "2"]);
    let (mut seed, mut finished, mut resumed) = (0x2545_f491_4f6c_dd1du64, 0, 0);
    for _ in 0..20 {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        let mut child = b.command(&args).spawn().unwrap();
        std::thread::sleep(time.mul_f64((seed % 1000) as f64 / 1000.0));
        child.kill().unwrap();
        let done = child.wait_with_output().unwrap();
        assert!(done.status.success() || done.status.code().is_none(), "{}", String::from_utf8_lossy(&done.stderr));
        if let Ok(bytes) = std::fs::read(b.path("out")) {
            assert!(bytes == whole, "a partial or different output");
            finished += 1;
            std::fs::remove_file(b.path("out")).unwrap();
            std::fs::remove_dir_all(b.path("saved")).unwrap();
        } else if b.path("saved/all.stats").exists() {
            let stats = vitq::calib::Stats::from_bytes(&b.bytes("saved/all.stats")).unwrap();
            assert!(stats.samples().len().is_multiple_of(16) && !stats.samples().is_empty());
            resumed += 1;
        }
    }
    let (_, _) = b.ok(&args);
    assert!(b.bytes("out") == whole);
    println!("{finished} of 20 kills came too late, {resumed} left something to resume from");
    // Nothing is left to do: the executor is not even asked.
    let (_, note) = b.ok(&args);
    assert!(note.contains("64 of 64 samples are taken from") && b.bytes("out") == whole, "{note}");
}

#[test]
fn shards_in_the_folder_are_taken_over_and_strangers_refused() {
    let b = Bench::new();
    let data = b.images("images", 9);
    b.ok(&calibrate(VIT, &data, "@/whole", &[]));
    b.ok(&calibrate(VIT, &data, "@/2", &["--shard", "2/3", "--resume", "@/saved"]));
    assert_eq!(names(&b.path("saved")), ["2-of-3.stats"]);
    let (_, note) = b.ok(&calibrate(VIT, &data, "@/out", &["--resume", "@/saved"]));
    assert!(note.contains("3 of 9 samples are taken from"), "{note}");
    assert!(b.bytes("out") == b.bytes("whole"));
    // The folder now holds a shard and a whole that contains it: both still serve.
    for (shard, output) in [("2/3", "@/again"), ("1/1", "@/out")] {
        b.ok(&calibrate(VIT, &data, output, &["--shard", shard, "--resume", "@/saved"]));
    }
    assert!(b.bytes("again") == b.bytes("2") && b.bytes("out") == b.bytes("whole"));
    let says = |more: &[&str], words: &str| {
        let error = b.fails(&calibrate(VIT, &data, "@/new", &[&["--resume", "@/saved"], more].concat()));
        assert!(error.contains("saved/") && error.contains(words), "{error}");
    };
    says(&["--config", "fqvit"], "another configuration");
    says(&["--calib-limit", "8"], "other samples");
    let error = b.fails(&calibrate(CNN, &data, "@/new", &["--resume", "@/saved"]));
    assert!(error.contains("another model"), "{error}");
    std::fs::write(b.path("saved/x.stats"), b"vitqstat").unwrap();
    says(&[], "not a readable statistics file");
}

/// Ctrl-C and SIGTERM: exit code 130 and 143, and no temporary file.
#[cfg(unix)]
#[test]
fn an_interrupted_run_leaves_nothing_half_written() {
    let b = Bench::new();
    let start = Instant::now();
    b.ok(&calibrate(VIT, CALIB, "@/whole", &["--threads", "1"]));
    let time = start.elapsed();
    let (before, mut interrupted) = (names(b.tmp.path()), 0);
    for i in 0..8 {
        let mut child = b.command(&calibrate(VIT, CALIB, "@/out", &["--threads", "1", "--resume", "@/saved"])).spawn().unwrap();
        // Not before the handler is there.
        std::thread::sleep(Duration::from_millis(100) + time.mul_f64(f64::from(i) / 10.0));
        let (signal, expected) = if i % 2 == 0 { ("-INT", 130) } else { ("-TERM", 143) };
        Command::new("kill").args([signal, &child.id().to_string()]).stderr(Stdio::null()).status().unwrap();
        let code = child.wait().unwrap().code();
        assert!(code == Some(0) || code == Some(expected), "{code:?}");
        interrupted += i32::from(code != Some(0));
        let hidden = |folder: &Path| names(folder).into_iter().filter(|n| n.starts_with('.')).count();
        assert_eq!(hidden(b.tmp.path()), 0);
        if b.path("saved").exists() {
            assert_eq!(hidden(&b.path("saved")), 0);
            std::fs::remove_dir_all(b.path("saved")).unwrap();
        }
        if code != Some(0) {
            assert_eq!(names(b.tmp.path()), before);
        } else {
            assert!(b.bytes("out") == b.bytes("whole"));
            std::fs::remove_file(b.path("out")).unwrap();
        }
    }
    assert!(interrupted > 0);
}

#[test]
fn efforts_are_a_closed_list() {
    let b = Bench::new();
    let compile = |effort: &str| {
        b.run(&[
            "compile",
            VIT,
            "--calib",
            CALIB,
            "--calib-limit",
            "2",
            "--preprocess",
            "inception",
            "--effort",
            effort,
            "-o",
            "@/q.onnx",
        ])
    };
    assert!(compile("fast").status.success());
    let fast = b.bytes("q.onnx");
    assert!(compile("default").status.success());
    assert!(b.bytes("q.onnx") != fast, "ranges are searched for");
    assert_eq!(compile("slow").status.code(), Some(2));
}
