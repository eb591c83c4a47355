//! Cost of recording, per element, and of each observer, per tensor.
//!
//! `record/copy` moves the data and nothing else, `record/sum` reads it: the limits that recording is measured against. `record for/…` is what the
//! driver does for each observer, locks and all, with 64 tensors like a residual sum of a small ViT, one after the other. Elsewhere the tensor is
//! like an MLP activation of one; it fits the second-level cache.

#![allow(missing_docs, clippy::unwrap_used)]

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use ndarray::ArrayD;
use std::hint::black_box;
use vitq::calib::channels::{Channels, Layout};
use vitq::calib::extremes::finite_range;
use vitq::calib::observer::{Grid, Observer, RangeQuery};
use vitq::calib::ptf::{PtfOptions, Reach, from_stats};
use vitq::calib::run::{Failure, Named, OnValue};
use vitq::calib::scratch::Scratch;
use vitq::calib::sketch::Sketch;
use vitq::calib::stats::{Digest, Recording, ValueStats};
use vitq::calib::{Forward, ForwardSession, SampleSource, TapSpec, calibrate, kl, minmax, omse, percentile};

/// Normal values whose spread differs by channel, a few of them large.
fn activations(rows: usize, channels: usize) -> Vec<f32> {
    let mut state = 1u64;
    let mut uniform = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((state >> 40) as f32 + 0.5) / (1u32 << 24) as f32
    };
    (0..rows * channels)
        .map(|i| {
            let normal = (-2.0 * uniform().ln()).sqrt() * (std::f32::consts::TAU * uniform()).cos();
            normal * (1.0 + (i % channels % 7) as f32) * if i % 9973 == 0 { 40.0 } else { 1.0 }
        })
        .collect()
}

fn recording(c: &mut Criterion) {
    let (rows, channels) = (197, 768);
    let data = activations(rows, channels);
    let relu: Vec<f32> = data.iter().map(|x| x.max(0.0)).collect();
    let layout = Layout { outer: rows, channels, inner: 1 };
    let mut group = c.benchmark_group("record");
    group.throughput(Throughput::Elements(data.len() as u64));
    group.bench_function("copy", |b| {
        let mut to = vec![0f32; data.len()];
        b.iter(|| black_box(&mut to).copy_from_slice(black_box(&data)));
    });
    group.bench_function("sum", |b| {
        b.iter(|| black_box(&data).iter().fold(0u32, |sum, x| sum.wrapping_add(x.to_bits())));
    });
    group.bench_function("range", |b| b.iter(|| finite_range(black_box(&data))));
    for (name, data) in [("normal", &data), ("half zeros", &relu)] {
        group.bench_with_input(BenchmarkId::new("tensor sketch", name), data, |b, data| {
            let (mut sketch, mut scratch) = (Sketch::default(), Scratch::default());
            b.iter(|| sketch.extend(black_box(data), &mut scratch));
        });
    }
    for (name, sketches) in [("channel ranges", false), ("channel sketches", true)] {
        group.bench_function(name, |b| {
            let mut stats = Channels::new(channels, sketches);
            b.iter(|| {
                if stats.count() > 1 << 30 {
                    stats = Channels::new(channels, sketches);
                }
                stats.extend(black_box(&data), layout)
            });
        });
    }
    group.finish();
}

/// An executor that takes no time: every sample taps the next of some tensors.
struct Tensors {
    shape: [usize; 2],
    data: Vec<f32>,
}

impl Forward for Tensors {
    fn session(&self) -> Result<Box<dyn ForwardSession + '_>, Failure> {
        Ok(Box::new(Session { shape: &self.shape, tensors: self.data.chunks_exact(self.shape.iter().product()) }))
    }
}

struct Session<'a> {
    shape: &'a [usize],
    tensors: std::slice::ChunksExact<'a, f32>,
}

impl ForwardSession for Session<'_> {
    fn run(&mut self, _: &[(String, ArrayD<f32>)], on_value: &mut OnValue<'_>) -> Result<Vec<ArrayD<f32>>, Failure> {
        on_value(0, self.shape, self.tensors.next().ok_or("no more tensors")?);
        Ok(vec![])
    }
}

struct Nothing(usize);

impl SampleSource for Nothing {
    fn len(&self) -> usize {
        self.0
    }

    fn get(&self, _: usize) -> Result<Option<Named>, Failure> {
        Ok(Some(vec![]))
    }
}

fn driver(c: &mut Criterion) {
    let (rows, channels, samples) = (197, 192, 64);
    let tensors = Tensors { shape: [rows, channels], data: activations(samples * rows, channels) };
    let mut group = c.benchmark_group("record for");
    group.sample_size(20).throughput(Throughput::Elements(tensors.data.len() as u64));
    let sketch = Recording { outliers: false, ..Recording::default() };
    for (name, recording) in [
        ("minmax", Recording { sketch: false, ..sketch.clone() }),
        ("percentile", Recording { percentiles: vec![0.99999], ..sketch.clone() }),
        ("omse", sketch),
        ("kl", Recording::default()),
        ("ptf", Recording { sketch: false, ..Recording::with_channels(1, true) }),
    ] {
        let taps = [TapSpec { value: "x".to_owned(), recording }];
        let run = || calibrate(&tensors, &taps, &Nothing(samples), Digest::default(), 1, &());
        group.bench_function(name, |b| b.iter(run));
    }
    group.finish();
}

fn observers(c: &mut Criterion) {
    let (rows, channels) = (197, 768);
    let data = activations(rows, channels);
    let stats = ValueStats::from_samples(Recording::with_channels(1, true), [(&[rows, channels][..], &data[..])]).unwrap();
    let mut group = c.benchmark_group("observe");
    group.sample_size(20);
    let all: [(&str, Box<dyn Observer>); 4] = [
        ("minmax", Box::new(minmax::Minmax)),
        ("percentile", Box::new(percentile::Percentile::new(0.99999, None).unwrap())),
        ("omse", Box::new(omse::Omse)),
        ("kl", Box::new(kl::Kl::default())),
    ];
    for (name, observer) in all {
        for (form, grid) in [("affine", Grid::affine(8).unwrap()), ("symmetric", Grid::symmetric(8).unwrap())] {
            let query = RangeQuery::tensor(grid);
            group.bench_function(BenchmarkId::new(name, form), |b| b.iter(|| observer.range(&stats, black_box(&query))));
        }
    }
    for (name, search, mantissa_bits) in [("published", false, 0), ("searched", true, 0), ("searched with mantissas", true, 2)] {
        let options = PtfOptions { bits: 8, max_exponent: 7, mantissa_bits, search, own_zero_points: search, reach: Reach::Seen };
        group.bench_function(BenchmarkId::new("ptf", name), |b| b.iter(|| from_stats(black_box(&stats), None, &[], options)));
    }
    group.finish();
}

criterion_group!(benches, recording, driver, observers);
criterion_main!(benches);
