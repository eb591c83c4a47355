//! A progress bar for what takes longer than a second.

use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::terminal::Terminal;
use crate::calib::Progress;

/// Shorter work shows no bar.
const PATIENCE: Duration = Duration::from_secs(1);

/// A bar on standard error with rate and remaining time; it shows itself after a second, and only on a terminal.
#[derive(Debug)]
pub(super) struct Bar {
    bar: Option<ProgressBar>,
    start: Instant,
    shown: std::sync::Once,
}

impl Bar {
    pub(super) fn new(terminal: &Terminal, what: &'static str) -> Self {
        let bar = terminal.shows_progress().then(|| {
            let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::hidden());
            let template = "{msg} {wide_bar} {pos}/{len}, {per_sec}, {eta} left";
            bar.set_style(ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar()));
            bar.set_message(what);
            bar
        });
        Bar { bar, start: Instant::now(), shown: std::sync::Once::new() }
    }
}

impl Progress for Bar {
    fn tick(&self, done: usize, total: usize) {
        let Some(bar) = &self.bar else { return };
        if bar.length() != Some(total as u64) {
            bar.set_length(total as u64);
        }
        bar.set_position(bar.position().max(done as u64));
        if self.start.elapsed() > PATIENCE && done < total {
            self.shown.call_once(|| bar.set_draw_target(ProgressDrawTarget::stderr()));
        }
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
