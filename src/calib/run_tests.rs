#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
use super::*;
use crate::calib::source::{Part, Selection};
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
            .map(|part| run(&Selection::part(&source, Part::new(part, of).unwrap()), threads).unwrap())
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

#[test]
fn parts_are_written_from_one() {
    let part: Part = "3/16".parse().unwrap();
    assert_eq!((part, part.to_string().as_str(), part.is_whole()), (Part::new(2, 16).unwrap(), "3/16", false));
    assert_eq!("1/1".parse::<Part>().unwrap(), Part::WHOLE);
    for wrong in ["0/4", "5/4", "0/0", "3", "3/", "/4", "a/4", "-1/4", "+1/4", "1/4/2", " 1/4", ""] {
        let error = wrong.parse::<Part>().unwrap_err().to_string();
        assert!(error.contains("K/N with K between 1 and N"), "{wrong}: {error}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(16))]
    #[test]
    fn resuming_after_any_number_of_samples_gives_the_same_bytes(n in 2usize..14, cuts in prop::collection::vec(1usize..5, 0..5), threads in 1usize..3) {
        let mut source = samples(n);
        source.skip = vec![1];
        let whole = run(&source, 1).unwrap().to_bytes().unwrap();
        let mut rest = Selection::part(&source, Part::WHOLE);
        let mut stats = run(&rest.take(1), threads).unwrap();
        for cut in cuts.into_iter().chain([usize::MAX]) {
            // What was saved is what is read again.
            stats = Stats::from_bytes(&stats.to_bytes().unwrap()).unwrap();
            prop_assert_eq!(stats.missing(), rest.len() as u64);
            prop_assert_eq!(rest.indices(), Selection::part(&source, Part::WHOLE).without(&stats.covered()).indices());
            stats = resume(stats, &Fake { mute: false }, &taps(), &rest.take(cut), threads, &()).unwrap();
        }
        prop_assert!(stats.to_bytes().unwrap() == whole);
    }
}

#[test]
fn only_the_same_run_can_be_resumed() {
    let source = samples(4);
    let stats = run(&source, 1).unwrap();
    assert!(stats.check_run(Digest([1; 32]), Digest([3; 32]), &taps()).is_ok());
    let says = |e: Error, what: &str| assert!(e.to_string().contains(what), "{e}");
    says(stats.check_run(Digest([2; 32]), Digest([3; 32]), &taps()).unwrap_err(), "another model");
    says(stats.check_run(Digest([1; 32]), Digest([4; 32]), &taps()).unwrap_err(), "other samples");
    says(stats.check_run(Digest([1; 32]), Digest([3; 32]), &taps()[1..]).unwrap_err(), "another configuration");
    let mut other = taps();
    other[1].recording.percentiles = vec![0.99];
    says(stats.check_run(Digest([1; 32]), Digest([3; 32]), &other).unwrap_err(), "another configuration");
    says(resume(stats, &Fake { mute: false }, &taps(), &source, 1, &()).unwrap_err(), "delivered 2 times");
}
