#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
use super::*;
use proptest::prelude::*;
use std::sync::atomic::AtomicBool;

/// `x`, `2x` and `x·x` of one input; "fails" where the input says so.
struct Fake {
    mute: bool,
}

struct FakeSession<'a>(&'a Fake);

impl Forward for Fake {
    fn session(&self) -> Result<Box<dyn ForwardSession + '_>, Failure> {
        Ok(Box::new(FakeSession(self)))
    }
}

impl ForwardSession for FakeSession<'_> {
    fn run(&mut self, inputs: &[(String, ArrayD<f32>)], on_value: &mut OnValue<'_>) -> Result<Vec<ArrayD<f32>>, Failure> {
        let x = &inputs[0].1;
        if x.iter().any(|&x| x == 666.0) {
            return Err("operator refused".into());
        }
        let values = [x.clone(), x * 2.0, x * x];
        for (i, value) in values.iter().enumerate().take(if self.0.mute { 2 } else { 3 }) {
            on_value(i, value.shape(), value.as_slice().unwrap());
        }
        Ok(vec![values[2].clone()])
    }
}

struct Samples {
    data: Vec<Vec<f32>>,
    broken: Vec<usize>,
    skip: Vec<usize>,
}

impl SampleSource for Samples {
    fn len(&self) -> usize {
        self.data.len()
    }
    fn name(&self, i: usize) -> String {
        format!("image{i}.png")
    }
    fn get(&self, i: usize) -> Result<Option<Named>, Failure> {
        // Early samples are slow: the order of completion is not the order of samples.
        std::thread::sleep(std::time::Duration::from_micros(if i.is_multiple_of(3) { 300 } else { 10 }));
        if self.broken.contains(&i) {
            return Err("bad marker".into());
        }
        if self.skip.contains(&i) {
            return Ok(None);
        }
        let array = ArrayD::from_shape_vec(vec![1, self.data[i].len() / 2, 2], self.data[i].clone())?;
        Ok(Some(vec![("input".into(), array)]))
    }
    fn digest(&self) -> Digest {
        Digest([3; 32])
    }
}

fn samples(n: usize) -> Samples {
    let data = (0..n).map(|i| (0..40).map(|j| ((i * 37 + j * 11) % 101) as f32 / 7.0 - 6.0).collect()).collect();
    Samples { data, broken: vec![], skip: vec![] }
}

fn taps() -> Vec<TapSpec> {
    let with_percentiles = Recording { percentiles: vec![0.999], ..Recording::default() };
    [("x", Recording::with_channels(1, true)), ("twice", with_percentiles), ("square", Recording::with_channels(2, false))]
        .map(|(value, recording)| TapSpec { value: value.into(), recording })
        .into()
}

fn run(source: &dyn SampleSource, threads: usize) -> Result<Stats, Error> {
    calibrate(&Fake { mute: false }, &taps(), source, Digest([1; 32]), threads, &())
}

#[test]
fn any_number_of_threads_gives_the_same_bytes() {
    let mut source = samples(23);
    source.skip = vec![4, 9];
    let one = run(&source, 1).unwrap();
    assert_eq!(one.samples().len(), 21);
    assert_eq!(one.skipped(), [4, 9]);
    assert_eq!(one.get("square").unwrap().samples().len(), 21);
    let bytes = one.to_bytes().unwrap();
    for threads in [2, 3, 8, 100] {
        assert!(run(&source, threads).unwrap().to_bytes().unwrap() == bytes, "{threads} threads");
    }
    // What the driver recorded is what the values are.
    let x: Vec<f32> = (0..23).filter(|i| ![4, 9].contains(i)).flat_map(|i| source.data[i].clone()).collect();
    let expected = crate::calib::Sketch::from_slice(&x).unwrap();
    assert_eq!(one.get("x").unwrap().sketch(), Some(&expected));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]
    #[test]
    fn any_sharding_gives_the_same_bytes(n in 1usize..12, of in 1usize..16, threads in 1usize..4) {
        let source = samples(n);
        let whole = run(&source, 1).unwrap().to_bytes().unwrap();
        let merged = (0..of).rev()
            .map(|part| run(&Shard::new(&source, part, of).unwrap(), threads).unwrap())
            .reduce(|a, b| b.merge(a).unwrap()).unwrap();
        prop_assert!(merged.to_bytes().unwrap() == whole);
    }
}

#[test]
fn the_first_failure_is_reported_whoever_met_it() {
    for threads in [1, 2, 3, 8] {
        let mut source = samples(30);
        source.broken = vec![6, 7, 20];
        source.data[5][3] = f32::NAN;
        let error = run(&source, threads).unwrap_err().to_string();
        assert!(error.contains("`x`") && error.contains("image5.png") && error.contains("1 NaN"), "{error}");

        let mut source = samples(30);
        source.broken = vec![6, 7];
        source.data[11][0] = 666.0;
        let error = run(&source, threads).unwrap_err().to_string();
        assert!(error.contains("image6.png") && error.contains("bad marker"), "{error}");

        source.broken = vec![];
        let error = run(&source, threads).unwrap_err().to_string();
        assert!(error.contains("image11.png") && error.contains("operator refused"), "{error}");

        let mut source = samples(8);
        source.data[3][0] = 3e38; // finite, but twice it is not
        let error = run(&source, threads).unwrap_err();
        assert!(matches!(&error, Error::NonFinite { value, infinite: 1, .. } if value == "twice"), "{error}");
    }
}

#[test]
fn an_executor_that_does_not_deliver_is_an_error() {
    let error = calibrate(&Fake { mute: true }, &taps(), &samples(3), Digest::default(), 2, &()).unwrap_err();
    assert!(matches!(&error, Error::TapCount { value, times: 0, .. } if value == "square"), "{error}");
    let error = calibrate(&Fake { mute: false }, &taps()[..2], &samples(3), Digest::default(), 1, &()).unwrap_err();
    assert!(matches!(error, Error::UnknownTap { index: 2, taps: 2, .. }));
    let twice = [taps()[0].clone(), taps()[0].clone()];
    assert!(matches!(
        calibrate(&Fake { mute: false }, &twice, &samples(1), Digest::default(), 1, &()),
        Err(Error::DuplicateTap(_))
    ));

    struct Broken;
    impl Forward for Broken {
        fn session(&self) -> Result<Box<dyn ForwardSession + '_>, Failure> {
            Err("no such operator".into())
        }
    }
    let error = calibrate(&Broken, &taps(), &samples(3), Digest::default(), 2, &()).unwrap_err();
    assert!(error.to_string().contains("no such operator"));
}

#[test]
fn nothing_to_calibrate_on() {
    assert!(matches!(run(&samples(0), 4), Err(Error::NoSamples { skipped: 0 })));
    let mut all_skipped = samples(3);
    all_skipped.skip = vec![0, 1, 2];
    assert!(matches!(run(&all_skipped, 2), Err(Error::NoSamples { skipped: 3 })));
    assert!(Shard::new(&all_skipped, 2, 2).is_err());
    assert!(Shard::new(&all_skipped, 0, 0).is_err());
}

struct Bar {
    ticks: AtomicUsize,
    stop: AtomicBool,
    after: usize,
}

impl Progress for Bar {
    fn tick(&self, done: usize, total: usize) {
        assert!(done <= total);
        if self.ticks.fetch_add(1, Ordering::Relaxed) + 1 == self.after {
            self.stop.store(true, Ordering::Relaxed);
        }
    }
    fn cancelled(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }
}

#[test]
fn progress_counts_every_sample_and_can_stop() {
    let bar = |after| Bar { ticks: AtomicUsize::new(0), stop: AtomicBool::new(false), after };
    let all = bar(usize::MAX);
    calibrate(&Fake { mute: false }, &taps(), &samples(9), Digest::default(), 3, &all).unwrap();
    assert_eq!(all.ticks.into_inner(), 9);
    let error = calibrate(&Fake { mute: false }, &taps(), &samples(40), Digest::default(), 2, &bar(4)).unwrap_err();
    assert!(matches!(error, Error::Cancelled { done, total: 40 } if (4..7).contains(&done)), "{error}");
}
