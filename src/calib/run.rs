//! The driver: samples in parallel over sessions of an executor, every tapped value streamed into the statistics.
//!
//! Each worker takes the next sample from a shared counter, reads it (so one worker's decoding overlaps with another's compute), runs it in its own
//! session, and records values as they are computed. There is one set of statistics for all workers, one lock a value: what is recorded is
//! independent of order (counts, extremes, and ranges sorted by sample), so the result has the same bytes on any number of threads, memory
//! does not grow with their number, and nothing is merged at the end. The counting itself happens in the worker's own table
//! before the lock is taken.

use crate::calib::error::Error;
use crate::calib::scratch::Scratch;
use crate::calib::source::SampleSource;
use crate::calib::stats::{Digest, Observation, Recording, Refusal, Stats, ValueStats};
use ndarray::ArrayD;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// What an executor or a sample source reports when it fails: words for the user.
pub type Failure = Box<dyn std::error::Error + Send + Sync>;

/// Receives tapped values: index into the taps, shape, elements in row-major order. Called once a tap and sample, in any order.
pub type OnValue<'a> = dyn FnMut(usize, &[usize], &[f32]) + 'a;

/// Named tensors.
pub type Named = Vec<(String, ArrayD<f32>)>;

/// An executor of one model with its taps pinned. The runtime implements it.
pub trait Forward: Sync {
    /// A new session for one worker. It is made and used on that worker's thread.
    ///
    /// # Errors
    /// The executor cannot run the model.
    fn session(&self) -> Result<Box<dyn ForwardSession + '_>, Failure>;
}

/// One worker's execution state.
pub trait ForwardSession {
    /// Runs the model once on named inputs; every tapped value goes to `on_value` as soon as it is computed, so that it can be freed.
    /// Returns the model's outputs, in their order.
    ///
    /// # Errors
    /// The inputs do not fit the model, or an operator fails.
    fn run(&mut self, inputs: &[(String, ArrayD<f32>)], on_value: &mut OnValue<'_>) -> Result<Vec<ArrayD<f32>>, Failure>;
}

/// A value to observe.
#[derive(Debug, Clone, PartialEq)]
pub struct TapSpec {
    /// The value's name in the graph.
    pub value: String,
    /// What to record of it.
    pub recording: Recording,
}

/// Is told how far the run is, and may stop it.
pub trait Progress: Sync {
    /// `done` of `total` samples are finished. Calls come from worker threads; `done` grows by one each time, but calls may overtake each other.
    fn tick(&self, done: usize, total: usize);

    /// The model's outputs for the sample with this index in the whole data set, as soon as they are there, from worker threads.
    fn outputs(&self, _sample: u64, _outputs: Vec<ArrayD<f32>>) {}

    /// Whether to stop before the next sample: Ctrl-C.
    fn cancelled(&self) -> bool {
        false
    }
}

/// No progress shown.
impl Progress for () {
    fn tick(&self, _: usize, _: usize) {}
}

/// Runs every sample and returns the statistics of all taps: the same bytes for any number of threads, and for any sharding after
/// [`Stats::merge`].
///
/// `model` is the digest of the model file. A part of a data set may be empty (more shards than samples): its statistics are
/// empty and merge like any other.
///
/// # Errors
/// The first failure by sample order, whichever thread met it: an unreadable sample, a failed run, a NaN or infinity in a tapped value, a
/// shape that does not fit, a tap that did not arrive. A cancelled run. A whole data set without a usable sample.
pub fn calibrate(
    forward: &dyn Forward,
    taps: &[TapSpec],
    samples: &dyn SampleSource,
    model: Digest,
    threads: usize,
    progress: &dyn Progress,
) -> Result<Stats, Error> {
    let mut nothing = Stats::new(model, samples.digest(), samples.total());
    for tap in taps {
        tap.recording.check()?;
        if nothing.values.insert(tap.value.clone(), ValueStats::new(tap.recording.clone())).is_some() {
            return Err(Error::DuplicateTap(tap.value.clone()));
        }
    }
    let stats = resume(nothing, forward, taps, samples, threads, progress)?;
    if stats.samples.is_empty() && !samples.is_part() {
        return Err(Error::NoSamples { skipped: stats.skipped.len() });
    }
    Ok(stats)
}

/// Adds more samples of the same run to statistics: the bytes of one [`calibrate`] over all of them, without the memory of a
/// second set of statistics.
///
/// # Errors
/// Those of [`calibrate`]; statistics of another run; a sample that they cover already.
pub fn resume(
    mut stats: Stats,
    forward: &dyn Forward,
    taps: &[TapSpec],
    samples: &dyn SampleSource,
    threads: usize,
    progress: &dyn Progress,
) -> Result<Stats, Error> {
    stats.check_run(stats.model, samples.digest(), taps)?;
    let total = samples.len();
    let mut values = Vec::with_capacity(taps.len());
    for tap in taps {
        let value = stats.values.remove(&tap.value);
        values.push(Mutex::new(value.ok_or_else(|| Error::DuplicateTap(tap.value.clone()))?));
    }
    let shared = Shared {
        forward,
        taps,
        samples,
        progress,
        values,
        next: AtomicUsize::new(0),
        done: AtomicUsize::new(0),
        failed_at: AtomicUsize::new(usize::MAX),
        outcome: Mutex::new(Outcome::default()),
    };
    let threads = threads.clamp(1, total.max(1));
    if threads == 1 {
        shared.work();
    } else {
        std::thread::scope(|scope| {
            for _ in 0..threads {
                scope.spawn(|| shared.work());
            }
        });
    }
    let outcome = shared.outcome.into_inner().unwrap_or_else(PoisonError::into_inner);
    if let Some((_, error)) = outcome.errors.into_iter().next() {
        return Err(error);
    }
    let done = shared.done.into_inner();
    if done < total {
        return Err(Error::Cancelled { done, total });
    }
    for (tap, value) in taps.iter().zip(shared.values) {
        stats.values.insert(tap.value.clone(), value.into_inner().unwrap_or_else(PoisonError::into_inner));
    }
    stats.samples.extend(outcome.seen);
    stats.samples.sort_unstable();
    stats.skipped.extend(outcome.skipped);
    stats.skipped.sort_unstable();
    if let Some(pair) = stats.covered().windows(2).find(|pair| matches!(pair, [a, b] if a == b)) {
        return Err(Error::Merge(format!("sample {} is in the source twice", pair.first().copied().unwrap_or_default())));
    }
    Ok(stats)
}

#[derive(Default)]
struct Outcome {
    seen: Vec<u64>,
    skipped: Vec<u64>,
    /// By position in the source; the first is reported.
    errors: BTreeMap<usize, Error>,
}

struct Shared<'a> {
    forward: &'a dyn Forward,
    taps: &'a [TapSpec],
    samples: &'a dyn SampleSource,
    progress: &'a dyn Progress,
    values: Vec<Mutex<ValueStats>>,
    next: AtomicUsize,
    done: AtomicUsize,
    failed_at: AtomicUsize,
    outcome: Mutex<Outcome>,
}

/// A poisoned lock belongs to a worker that panicked, and the scope passes that panic on.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared<'_> {
    fn work(&self) {
        let mut session = match self.forward.session() {
            Ok(session) => session,
            Err(e) => return self.fail(0, Error::Session(e.to_string())),
        };
        let mut scratch = Scratch::default();
        loop {
            if self.progress.cancelled() {
                return;
            }
            let i = self.next.fetch_add(1, Ordering::Relaxed);
            // Samples are handed out in order, so everything before a failure has been taken already and is finished by its worker:
            // the earliest failing sample is always found.
            if i >= self.samples.len() || i > self.failed_at.load(Ordering::Acquire) {
                return;
            }
            match self.sample(i, session.as_mut(), &mut scratch) {
                Ok(used) => {
                    let index = self.samples.index(i);
                    let mut outcome = lock(&self.outcome);
                    if used {
                        outcome.seen.push(index);
                    } else {
                        outcome.skipped.push(index);
                    }
                }
                Err(error) => return self.fail(i, error),
            }
            let done = self.done.fetch_add(1, Ordering::Relaxed) + 1;
            self.progress.tick(done, self.samples.len());
        }
    }

    fn fail(&self, i: usize, error: Error) {
        lock(&self.outcome).errors.entry(i).or_insert(error);
        self.failed_at.fetch_min(i, Ordering::AcqRel);
    }

    /// Whether the sample was used (or skipped by its source).
    fn sample(&self, i: usize, session: &mut dyn ForwardSession, scratch: &mut Scratch) -> Result<bool, Error> {
        let name = || self.samples.name(i);
        let inputs = self.samples.get(i).map_err(|e| Error::Sample { sample: name(), reason: e.to_string() })?;
        let Some(inputs) = inputs else {
            return Ok(false);
        };
        let index = self.samples.index(i);
        let mut times = vec![0u32; self.taps.len()];
        let mut failure = None;
        let result = session.run(&inputs, &mut |tap, shape, data| {
            // The first failure in execution order is the cause; a NaN spreads to everything after it.
            if failure.is_none()
                && let Err(error) = self.observe(tap, index, shape, data, scratch, &mut times, &name)
            {
                failure = Some(error);
            }
        });
        if let Some(error) = failure {
            return Err(error);
        }
        let outputs = result.map_err(|e| Error::Forward { sample: name(), reason: e.to_string() })?;
        match times.iter().zip(self.taps).find(|(times, _)| **times == 0) {
            Some((_, tap)) => Err(Error::TapCount { value: tap.value.clone(), sample: name(), times: 0 }),
            None => {
                self.progress.outputs(index, outputs);
                Ok(true)
            }
        }
    }

    #[allow(clippy::too_many_arguments)]
    fn observe(
        &self,
        tap: usize,
        index: u64,
        shape: &[usize],
        data: &[f32],
        scratch: &mut Scratch,
        times: &mut [u32],
        name: &dyn Fn() -> String,
    ) -> Result<(), Error> {
        let (Some(spec), Some(value), Some(times)) = (self.taps.get(tap), self.values.get(tap), times.get_mut(tap)) else {
            return Err(Error::UnknownTap { index: tap, taps: self.taps.len(), sample: name() });
        };
        *times += 1;
        let recorded = if *times > 1 {
            Err(Refusal::Twice)
        } else {
            let checked = lock(value).check(shape, data);
            checked
                .and_then(|()| Observation::new(&spec.recording, index, data, scratch))
                .and_then(|seen| lock(value).record(seen, shape, data, scratch))
        };
        recorded.map_err(|refusal| refusal.named(&spec.value, &name(), shape, data))
    }
}

#[cfg(test)]
#[path = "run_tests.rs"]
mod tests;
