//! Ctrl-C and SIGTERM: nothing half-written is left behind.

/// Ends the process on Ctrl-C, SIGTERM and SIGHUP at once, whatever it is doing, after removing its temporary files, with the exit
/// code 128 + signal that a shell expects (130 for Ctrl-C). Outputs that were complete stay.
#[cfg(unix)]
pub(super) fn install(quiet: bool) {
    use std::io::Write;

    use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

    use crate::fs::discard_unfinished;

    // Without a handler the signal ends the process all the same, save that a temporary file may stay.
    let Ok(mut signals) = signal_hook::iterator::Signals::new([SIGINT, SIGTERM, SIGHUP]) else { return };
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

/// Other systems end the process; a temporary file may stay.
#[cfg(not(unix))]
pub(super) fn install(_quiet: bool) {}
