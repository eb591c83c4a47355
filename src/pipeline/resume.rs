//! Calibration that survives being killed: statistics are saved while it runs, and what is saved is not computed again.
//!
//! The folder holds one file a run (`all.stats`, or `3-of-16.stats` for a shard), replaced whole after every step of the run. Since
//! statistics merge exactly, neither the sizes of the steps nor what was interrupted where can be seen in the result.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::{Calibration, PipelineError, read_stats, write_stats};
use crate::calib::{self, Part, Progress, SampleSource, Selection, Stats, resume};

/// Samples of the first step, and of the shortest.
const FIRST_STEP: usize = 16;
/// How much work may be lost.
const STEP_TIME: Duration = Duration::from_secs(10);

/// Counts on from what earlier steps have done.
struct Onward<'a> {
    inner: &'a dyn Progress,
    before: usize,
    total: usize,
}

impl Progress for Onward<'_> {
    fn tick(&self, done: usize, _: usize) {
        self.inner.tick(self.before + done, self.total);
    }

    fn cancelled(&self) -> bool {
        self.inner.cancelled()
    }
}

impl Calibration<'_> {
    /// [`Calibration::run`] in steps of some seconds, each saved in `folder`, which is made if it is not there. Statistics of this
    /// run, or of shards of it, that are there already are not computed again; `note` is told how many samples they hold.
    ///
    /// # Errors
    /// Those of [`Calibration::run`]; statistics of another run in the folder.
    pub fn run_resumable(&self, part: Part, folder: &Path, note: &mut dyn FnMut(String)) -> Result<Stats, PipelineError> {
        self.check_batch()?;
        if folder.exists() && !folder.is_dir() {
            let what =
                "statistics are saved in a folder, and this is a file: give --resume a folder, which is made if it is not there";
            return Err(PipelineError::Input { path: folder.to_owned(), what: what.to_owned() });
        }
        std::fs::create_dir_all(folder).map_err(|source| PipelineError::File { path: folder.to_owned(), source })?;
        let name =
            if part.is_whole() { "all.stats".to_owned() } else { format!("{}.stats", part.to_string().replace('/', "-of-")) };
        let (taps, saved) = (self.taps(), folder.join(name));
        let wanted = Selection::part(self.samples, part);
        let (total, is_part) = (wanted.len(), wanted.is_part());
        let mut stats = self.saved_stats(folder, &wanted.indices())?;
        let mut rest = wanted.without(&stats.covered());
        let mut done = total - rest.len();
        if done > 0 {
            note(format!("{done} of {total} samples are taken from {}", folder.display()));
        }
        let mut size = FIRST_STEP;
        while !rest.is_empty() {
            let (step, start) = (rest.take(size), Instant::now());
            let progress = Onward { inner: self.progress, before: done, total };
            stats = resume(stats, self.engine, &taps, &step, self.threads, &progress)?;
            done += step.len();
            write_stats(&stats, &saved)?;
            let rate = step.len() as f64 / start.elapsed().as_secs_f64().max(1e-3);
            size = FIRST_STEP.max((rate * STEP_TIME.as_secs_f64()) as usize);
        }
        if stats.samples().is_empty() && !is_part {
            return Err(calib::Error::NoSamples { skipped: stats.skipped().len() }.into());
        }
        Ok(stats)
    }

    /// Merges the statistics in the folder whose samples are all wanted. Of files that overlap (a run takes over shards that were
    /// there before it) the larger counts.
    fn saved_stats(&self, folder: &Path, wanted: &[u64]) -> Result<Stats, PipelineError> {
        let mut merged = self.nothing()?;
        let mut found = Vec::new();
        for path in stats_files(folder)? {
            let stats = read_stats(&path)?;
            let foreign = |source| PipelineError::Stats { path: path.clone(), source };
            stats.check_run(self.source.digest(), self.samples.digest(), &self.taps()).map_err(foreign)?;
            found.push((stats.covered().len(), path));
        }
        found.sort_by(|a, b| b.0.cmp(&a.0).then_with(|| a.1.cmp(&b.1)));
        for (_, path) in found {
            // Read again rather than kept: there may be many.
            let stats = read_stats(&path)?;
            let (covered, have) = (stats.covered(), merged.covered());
            if covered.iter().all(|i| wanted.binary_search(i).is_ok() && have.binary_search(i).is_err()) {
                merged = merged.merge(stats).map_err(|source| PipelineError::Stats { path, source })?;
            }
        }
        Ok(merged)
    }

    /// Statistics of no sample.
    fn nothing(&self) -> Result<Stats, PipelineError> {
        let none = Selection::part(self.samples, Part::WHOLE).take(0);
        Ok(calib::calibrate(self.engine, &self.taps(), &none, self.source.digest(), 1, &())?)
    }
}

fn stats_files(folder: &Path) -> Result<Vec<PathBuf>, PipelineError> {
    let failed = |source| PipelineError::File { path: folder.to_owned(), source };
    let mut files = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        if path.extension().is_some_and(|e| e == "stats") {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}
