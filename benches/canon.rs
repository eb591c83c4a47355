//! Canonicalising and recognising ViT-like graphs of growing depth: time an operator must not grow with the depth.

#![allow(missing_docs, clippy::unwrap_used)]

use std::hint::black_box;

use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use vitq::{canon, vit};

#[path = "../tests/common/vit.rs"]
mod graphs;

fn depth(c: &mut Criterion) {
    let mut group = c.benchmark_group("canonicalise_and_recognise");
    group.sample_size(20);
    for depth in [6, 12, 24, 48] {
        let model = graphs::vit(depth, 64);
        group.throughput(Throughput::Elements(depth as u64));
        group.bench_with_input(BenchmarkId::new("depth", depth), &model, |b, model| {
            let run = |mut model| {
                canon::canonicalise(&mut model).unwrap();
                assert_eq!(vit::recognise(&model.graph).blocks.len(), depth);
                black_box(model)
            };
            b.iter_batched(|| model.clone(), run, BatchSize::LargeInput);
        });
    }
    group.finish();
}

criterion_group!(benches, depth);
criterion_main!(benches);
