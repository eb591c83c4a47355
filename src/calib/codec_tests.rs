#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
use super::*;
use crate::calib::Observer as _;
use crate::calib::observer::{Grid, RangeQuery, Target};
use crate::calib::stats::tests::{dataset, shard};
use proptest::prelude::*;

/// A file with this payload and a correct checksum: what damage looks like that the checksum does not catch.
fn sealed(payload: &[u8]) -> Vec<u8> {
    let mut bytes = MAGIC.to_vec();
    bytes.extend_from_slice(&FORMAT_VERSION.to_le_bytes());
    bytes.extend_from_slice(&[7; 32]);
    bytes.extend_from_slice(payload);
    let checksum = Sha256::digest(&bytes);
    bytes.extend_from_slice(&checksum);
    bytes
}

/// Whatever was accepted, every observer must survive.
fn exercise(stats: &Stats) {
    for value in stats.values().values() {
        for grid in [Grid::affine(8).unwrap(), Grid::symmetric(4).unwrap()] {
            for target in [Target::Tensor, Target::Channel(0), Target::Channels(0..2)] {
                let query = RangeQuery { target, grid };
                let _ = crate::calib::minmax::Minmax.range(value, &query);
                let _ = crate::calib::percentile::Percentile::new(0.99, None).unwrap().range(value, &query);
                let _ = crate::calib::percentile::Percentile::new(0.9, Some(0.5)).unwrap().range(value, &query);
                let _ = crate::calib::omse::Omse.range(value, &query);
                let _ = crate::calib::kl::Kl::new(64).unwrap().range(value, &query);
            }
        }
        let options = crate::calib::ptf::PtfOptions {
            bits: 8,
            max_exponent: 3,
            mantissa_bits: 0,
            search: true,
            own_zero_points: false,
            reach: crate::calib::ptf::Reach::Seen,
        };
        let _ = crate::calib::ptf::from_stats(value, None, &[], options);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn reads_back_what_it_wrote(data in dataset()) {
        let all: Vec<usize> = (0..data.len()).collect();
        let stats = shard(&data, &all);
        let bytes = stats.to_bytes().unwrap();
        let back = Stats::from_bytes(&bytes).unwrap();
        prop_assert_eq!(&back, &stats);
        prop_assert!(back.to_bytes().unwrap() == bytes);
    }

    #[test]
    fn any_damage_is_an_error(data in dataset(), at in any::<prop::sample::Index>(), flip in 1u8.., cut in any::<prop::sample::Index>()) {
        let bytes = shard(&data, &[0]).to_bytes().unwrap();
        let mut damaged = bytes.clone();
        damaged[at.index(bytes.len())] ^= flip;
        prop_assert!(Stats::from_bytes(&damaged).is_err());
        prop_assert!(Stats::from_bytes(&bytes[..cut.index(bytes.len())]).is_err());
    }

    #[test]
    fn damage_behind_a_good_checksum_never_panics(
        data in dataset(), edits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..4), cut in prop::option::of(any::<prop::sample::Index>()),
    ) {
        let all: Vec<usize> = (0..data.len()).collect();
        let bytes = shard(&data, &all).to_bytes().unwrap();
        let mut payload = bytes[HEADER..bytes.len() - CHECKSUM].to_vec();
        for (at, byte) in edits {
            let at = at.index(payload.len());
            payload[at] = byte;
        }
        if let Some(cut) = cut {
            payload.truncate(cut.index(payload.len()));
        }
        if let Ok(stats) = Stats::from_bytes(&sealed(&payload)) {
            exercise(&stats);
            let bytes = stats.to_bytes().unwrap();
            prop_assert_eq!(Stats::from_bytes(&bytes).unwrap(), stats);
        }
    }

    #[test]
    fn noise_never_panics(payload in prop::collection::vec(any::<u8>(), 0..300)) {
        let _ = Stats::from_bytes(&payload);
        let _ = Stats::from_bytes(&sealed(&payload));
    }

    #[test]
    fn packing_is_exact_and_bounded(counts in prop::collection::vec(prop_oneof![3 => Just(0u64), 1 => any::<u32>().prop_map(u64::from)], 0..200)) {
        let bytes = pack(counts.iter().copied());
        prop_assert_eq!(unpack(&bytes, counts.len()), Some(counts.clone()));
        prop_assert_eq!(unpack(&bytes, counts.len() + 1), None);
        if !counts.is_empty() {
            prop_assert_eq!(unpack(&bytes, counts.len() - 1), None);
        }
    }
}

#[test]
fn errors_name_the_cause() {
    let bytes = shard(&[vec![1.0; 3]], &[0]).to_bytes().unwrap();
    let says = |bytes: &[u8], words: &str| {
        let error = Stats::from_bytes(bytes).unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
    };
    says(b"", "does not begin");
    says(b"\x89PNG\r\n\x1a\n", "does not begin");
    says(&bytes[..10], "truncated");
    says(&bytes[..60], "truncated");
    let mut newer = bytes.clone();
    newer[8] = 9;
    says(&newer, "version 9");
    let mut damaged = bytes.clone();
    let last = damaged.len() - 40;
    damaged[last] ^= 1;
    says(&damaged, "checksum");
    let mut longer = bytes[HEADER..bytes.len() - CHECKSUM].to_vec();
    longer.push(0);
    says(&sealed(&longer), "1 bytes follow");
    // A run of zeros that claims 2^60 counters.
    assert_eq!(unpack(&[0, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x0f], 1 << 20), None);
}

#[test]
fn an_empty_shard_is_a_file_too() {
    let empty = shard(&[], &[]);
    let bytes = empty.to_bytes().unwrap();
    assert_eq!(Stats::from_bytes(&bytes).unwrap(), empty);
    exercise(&empty);
}
