#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
use super::*;
use proptest::prelude::*;

const CHANNELS: usize = 3;

fn recording() -> Recording {
    Recording { percentiles: vec![0.9, 0.99], ..Recording::with_channels(1, true) }
}

/// Statistics of some samples of a made-up data set, recorded in the order given.
pub(crate) fn shard(data: &[Vec<f32>], indices: &[usize]) -> Stats {
    let mut stats = Stats::new(Digest([7; 32]), Digest::default(), data.len() as u64);
    let mut scratch = Scratch::default();
    for (name, recording) in [("a", recording()), ("b", Recording::default())] {
        let mut value = ValueStats::new(recording);
        for &i in indices {
            let shape = [1, data[i].len() / CHANNELS, CHANNELS];
            value.check(&shape, &data[i]).unwrap();
            let seen = Observation::new(&value.recording, i as u64, &data[i], &mut scratch).unwrap();
            value.record(seen, &shape, &data[i], &mut scratch).unwrap();
        }
        stats.values.insert(name.into(), value);
    }
    stats.samples = indices.iter().map(|&i| i as u64).collect();
    stats.samples.sort_unstable();
    stats
}

pub(crate) fn dataset() -> impl Strategy<Value = Vec<Vec<f32>>> {
    let element = prop_oneof![4 => -8.0f32..8.0, 1 => -500.0f32..500.0, 1 => Just(0.0f32), 1 => Just(-0.0f32)];
    let sample = (1usize..12).prop_flat_map(move |rows| prop::collection::vec(element.clone(), rows * CHANNELS));
    prop::collection::vec(sample, 1..10)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn any_split_merged_in_any_order_gives_the_same_bytes(
        data in dataset(), parts in prop::collection::vec(0usize..4, 10), order in Just(vec![0usize, 1, 2, 3]).prop_shuffle(),
    ) {
        let all: Vec<usize> = (0..data.len()).collect();
        let whole = shard(&data, &all).to_bytes().unwrap();
        let shards: Vec<Stats> = order.iter().map(|&part| {
            // Backwards, so that recording order differs too. Shards may be empty.
            let mine: Vec<usize> = all.iter().rev().copied().filter(|&i| parts[i] == part).collect();
            shard(&data, &mine)
        }).collect();
        let left = shards.iter().cloned().reduce(|a, b| a.merge(b).unwrap()).unwrap();
        prop_assert!(left.to_bytes().unwrap() == whole);
        // Another association: (0+1)+(2+3).
        let [a, b, c, d] = <[Stats; 4]>::try_from(shards).unwrap();
        let pairs = a.merge(b).unwrap().merge(c.merge(d).unwrap()).unwrap();
        prop_assert!(pairs.to_bytes().unwrap() == whole);
    }
}

#[test]
fn refuses_to_merge_what_does_not_belong_together() {
    let data = vec![vec![1.0f32; 6], vec![2.0; 6], vec![3.0; 6]];
    let a = shard(&data, &[0, 1]);
    let says = |other: Stats, words: &str| {
        let error = a.clone().merge(other).unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
    };
    says(shard(&data, &[1, 2]), "sample 1 (counted from 0) is in both");
    let mut other = shard(&data, &[2]);
    other.model = Digest([8; 32]);
    says(other.clone(), "two models");
    assert!(matches!(other.check_model(Digest([7; 32])), Err(Error::OtherModel { .. })));
    let mut other = shard(&data, &[2]);
    other.data = Digest([1; 32]);
    says(other, "sample lists");
    let mut other = shard(&data, &[2]);
    other.total = 4;
    says(other, "a data set of 3 samples, the other of 4");
    says(a.clone(), "2 samples are in both, the first of them sample 0");
    let mut other = shard(&data, &[2]);
    other.values.remove("a");
    says(other, "`a` is in one only");
    let mut other = shard(&data, &[2]);
    other.values.insert("c".into(), ValueStats::new(Recording::default()));
    says(other, "`c` is in one only");
    let mut other = shard(&data, &[2]);
    other.values.insert("b".into(), ValueStats::new(recording()));
    says(other, "`b` was recorded with other options");
    let mut other = shard(&data, &[2]);
    other.skipped = vec![0];
    says(other, "sample 0 (counted from 0) is in both");
}

#[test]
fn shapes_that_differ_are_marked_and_ranges_are_kept() {
    let data = vec![vec![1.0f32; 6], vec![-2.0; 9]];
    let stats = shard(&data, &[0, 1]);
    let value = stats.get("a").unwrap();
    assert_eq!(value.shape(), Some(&[1, 0, 3][..]));
    assert_eq!(value.range(), Some((-2.0, 1.0)));
    assert_eq!(value.samples()[1].percentiles, [(-2.0, -2.0), (-2.0, -2.0)]);
    assert_eq!(value.channels().unwrap().count(), 5);
}

#[test]
fn tensors_that_do_not_fit_are_refused() {
    let of = |recording: Recording, tensors: &[(&[usize], &[f32])]| ValueStats::from_samples(recording, tensors.iter().copied());
    let plain = Recording::default;
    assert!(matches!(of(plain(), &[(&[2], &[1.0, f32::NAN])]), Err(Error::NonFinite { nan: 1, total: 2, .. })));
    assert!(matches!(of(plain(), &[(&[3], &[1.0])]), Err(Error::Shape { .. })));
    assert!(matches!(of(plain(), &[(&[0], &[])]), Err(Error::Shape { .. })));
    assert!(matches!(of(plain(), &[(&[usize::MAX, 2], &[1.0])]), Err(Error::Shape { .. })));
    let channels = Recording::with_channels(1, false);
    assert!(matches!(of(channels.clone(), &[(&[], &[1.0])]), Err(Error::Shape { .. })));
    assert!(matches!(of(channels, &[(&[2], &[1.0, 2.0]), (&[1], &[1.0])]), Err(Error::Shape { .. })));
    let bad = |percentiles| Recording { percentiles, ..plain() }.check().is_err();
    assert!(bad(vec![0.4]) && bad(vec![f64::NAN]) && bad(vec![0.9, 0.9]) && !bad(vec![0.9, 1.0]));
    assert!(Recording::with_channels(0, false).check().is_err());
}
