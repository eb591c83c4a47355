//! Ctrl-C and SIGTERM: nothing half-written is left behind.

/// Ends the process on Ctrl-C, SIGTERM and SIGHUP at once, whatever it is doing, after removing its temporary files, with the exit
/// code 128 + signal that a shell expects (130 for Ctrl-C). Outputs that were complete stay.
#[cfg(unix)]
pub(super) fn install(quiet: bool) {
    use std::io::Write;

    use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

    use crate::fs::discard_unfinished;

    // Without a handler the signal ends the process all the same, save that a temporary file may stay.
    // What the parent had ignored (nohup, a script's background jobs) stays ignored.
    let wanted = [SIGINT, SIGTERM, SIGHUP].into_iter().filter(|&signal| !ignored(signal));
    let Ok(mut signals) = signal_hook::iterator::Signals::new(wanted) else { return };
    std::thread::spawn(move || {
        if let Some(signal) = signals.forever().next() {
            // Held to the end: no other thread may begin a file now.
            let _held = discard_unfinished();
            if !quiet {
                let _ = writeln!(anstream::stderr(), "\ninterrupted");
            }
            std::process::exit(128 + signal);
        }
    });
}

/// Whether a signal is ignored, as far as the system tells without unsafe code.
#[cfg(unix)]
fn ignored(signal: i32) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let mask = status.lines().find_map(|l| l.strip_prefix("SigIgn:")).and_then(|m| u64::from_str_radix(m.trim(), 16).ok());
    mask.is_some_and(|mask| mask >> (signal - 1) & 1 == 1)
}

/// Other systems end the process; a temporary file may stay.
#[cfg(not(unix))]
pub(super) fn install(_quiet: bool) {}
