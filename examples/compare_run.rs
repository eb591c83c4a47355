//! Compares a run of the reference executor with values that another runtime computed.
//!
//! `compare_run MODEL.onnx DUMP.npz DUMP.txt`: line i of DUMP.txt is `input NAME`, `output NAME` or `tap NAME` for array `i`
//! (float32) of DUMP.npz. Prints the largest difference of every kind, and the time of a call with and without taps.

use std::error::Error;
use std::time::Instant;

use ndarray::ArrayD;
use ndarray_npy::NpzReader;
use vitq::runtime::tract::{Engine, EngineOptions};

fn main() -> Result<(), Box<dyn Error>> {
    let args: Vec<String> = std::env::args().collect();
    let [_, model, npz, list] = args.as_slice() else { return Err("usage: compare_run MODEL.onnx DUMP.npz DUMP.txt".into()) };
    let mut npz = NpzReader::new(std::fs::File::open(npz)?)?;
    let mut arrays: Vec<(String, String, ArrayD<f32>)> = Vec::new();
    for (i, line) in std::fs::read_to_string(list)?.lines().enumerate() {
        let (kind, name) = line.split_once(' ').ok_or("a line without a name")?;
        arrays.push((kind.to_owned(), name.to_owned(), npz.by_name(&format!("{i}.npy"))?));
    }
    let model = vitq::onnx::read(model.as_ref())?;
    let of = |kind: &str| arrays.iter().filter(|a| a.0 == kind).collect::<Vec<_>>();
    let (inputs, outputs, taps) = (of("input"), of("output"), of("tap"));
    let tap_names: Vec<String> = taps.iter().map(|t| t.1.clone()).collect();
    let feed: Vec<_> = inputs.iter().map(|i| (i.1.as_str(), i.2.view())).collect();
    let batch = inputs.first().map_or(1, |i| i.2.shape().first().copied().unwrap_or(1));
    let options = EngineOptions { batch, ..EngineOptions::default() };

    let start = Instant::now();
    let plain = Engine::new(&model, &[], &options)?;
    println!("load {:.0} ms", start.elapsed().as_secs_f64() * 1e3);
    let start = Instant::now();
    let tapped = Engine::new(&model, &tap_names, &options)?;
    println!("load with {} taps {:.0} ms", taps.len(), start.elapsed().as_secs_f64() * 1e3);

    for (title, engine) in [("plain", &plain), ("tapped", &tapped)] {
        let mut seen = vec![0usize; taps.len()];
        let mut rows: Vec<(f64, f64, String)> = Vec::new();
        let mut session = engine.session()?;
        let out = session.run(&feed, &mut |i, shape, v| {
            seen[i] += 1;
            let want = &taps[i].2;
            if shape != want.shape() && !want.is_empty() {
                println!("  shape of {}: {shape:?} here, {:?} there", taps[i].1, want.shape());
            }
            let off = v.iter().zip(want).filter(|(a, b)| (**a - **b).abs() > 1e-4).count();
            rows.push(difference(v.iter(), want.iter(), &format!("{} ({off} of {} differ)", taps[i].1, v.len())));
        })?;
        for (got, want) in out.iter().zip(&outputs) {
            let (max, range, name) = difference(got.1.iter(), want.2.iter(), &want.1);
            let (noise, signal) = got
                .1
                .iter()
                .zip(&want.2)
                .fold((0f64, 0f64), |(n, s), (a, b)| (n + f64::from(a - b).powi(2), s + f64::from(*b).powi(2)));
            println!(
                "{title}: output {name}: max abs difference {max:.3e} of {range:.3e}, SQNR {:.1} dB",
                10.0 * (signal / noise).log10()
            );
        }
        if title == "tapped" {
            println!("taps seen once: {} of {}", seen.iter().filter(|&&n| n == 1).count(), seen.len());
            let large = |r: &&(f64, f64, String)| r.0 > 1e-3 * r.1;
            println!("taps off by more than 0.1 %: {}; the first:", rows.iter().filter(large).count());
            for (max, range, name) in rows.iter().filter(large).take(6) {
                println!("  {name}: max abs difference {max:.3e} of {range:.3e}");
            }
            println!("the largest differences:");
            rows.sort_by(|a, b| (b.0 / b.1.max(1e-30)).total_cmp(&(a.0 / a.1.max(1e-30))));
            for (max, range, name) in rows.iter().take(5) {
                println!("  {name}: max abs difference {max:.3e} of {range:.3e} ({:.2e})", max / range.max(1e-30));
            }
        }
        for _ in 0..3 {
            session.run(&feed, &mut |_, _, _| {})?;
        }
        let n = 20;
        let start = Instant::now();
        for _ in 0..n {
            session.run(&feed, &mut |_, _, _| {})?;
        }
        let idle = start.elapsed().as_secs_f64() * 1e3 / f64::from(n);
        let start = Instant::now();
        let mut extremes = 0f32;
        for _ in 0..n {
            session.run(&feed, &mut |_, _, v| {
                let (lo, hi) = v.iter().fold((f32::MAX, f32::MIN), |(lo, hi), &v| (lo.min(v), hi.max(v)));
                extremes += hi - lo;
            })?;
        }
        let ranged = start.elapsed().as_secs_f64() * 1e3 / f64::from(n);
        println!("{title}: {idle:.1} ms a call, {ranged:.1} ms with min and max of every tap");
    }
    let peak = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    println!("{}", peak.lines().find(|l| l.starts_with("VmHWM")).unwrap_or_default());
    Ok(())
}

/// The largest difference, the largest magnitude wanted, and the name.
fn difference<'a>(got: impl Iterator<Item = &'a f32>, want: impl Iterator<Item = &'a f32>, name: &str) -> (f64, f64, String) {
    let (mut max, mut range) = (0f64, 0f64);
    for (a, b) in got.zip(want) {
        let d = f64::from(a - b).abs();
        max = if d.is_nan() { f64::INFINITY } else { max.max(d) };
        range = range.max(f64::from(*b).abs());
    }
    (max, range, name.to_owned())
}
