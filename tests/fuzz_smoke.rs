//! Each fuzz target on its seeds, and on the seeds damaged a little, so that the targets do not rot.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::path::Path;

#[path = "../fuzz/src/lib.rs"]
#[allow(unreachable_pub)]
mod bodies;

/// How often each seed is damaged; VITQ_FUZZ_ROUNDS sets another number, for a longer search without the fuzzer.
fn rounds() -> usize {
    std::env::var("VITQ_FUZZ_ROUNDS").ok().and_then(|n| n.parse().ok()).unwrap_or(60)
}

fn smoke(name: &str, target: fn(&[u8]) -> bool) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(name);
    let mut paths: Vec<_> = std::fs::read_dir(&folder).unwrap().map(|e| e.unwrap().path()).collect();
    paths.sort();
    assert!(!paths.is_empty(), "{} has no seed", folder.display());
    assert!(!target(b"") || name == "config_yaml");
    for path in paths {
        let seed = std::fs::read(&path).unwrap();
        assert!(target(&seed), "{} is a seed that vitq does not take", path.display());
        // A linear congruential generator (Knuth, MMIX) picks where and how the seed is damaged.
        let mut state = seed.len() as u64;
        let mut random = |below: usize| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (state >> 33) as usize % below.max(1)
        };
        for _ in 0..rounds() {
            target(&seed[..random(seed.len())]);
            let mut damaged = seed.clone();
            for _ in 0..=random(4) {
                let at = random(seed.len());
                damaged[at] = random(256) as u8;
            }
            target(&damaged);
        }
    }
}

macro_rules! targets {
    ($($name:ident)*) => {$(
        #[test]
        fn $name() {
            smoke(stringify!($name), bodies::$name);
        }
    )*};
}
targets!(onnx_read ir_text config_yaml stats_bytes plan_json arrays image);
