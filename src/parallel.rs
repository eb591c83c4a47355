//! Work shared out among threads, with a result that does not depend on their number.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

/// What `f` gives for every index below `n`, in their order.
pub(crate) fn map<T: Send>(n: usize, threads: usize, f: impl Fn(usize) -> T + Sync) -> Vec<T> {
    match try_map(n, threads, || Ok(()), |(), i| Ok::<T, Infallible>(f(i))) {
        Ok(all) => all,
        Err(never) => match never {},
    }
}

/// The same for work that may fail, with a state of its own for each thread (an executor's session), which `state` makes on that thread.
///
/// # Errors
/// A thread's without a state; else the failure with the lowest index, whichever thread met it. What comes after a failure may not be tried;
/// what comes before something that is tried is tried too, so that one may wait for the other.
pub(crate) fn try_map<S, T: Send, E: Send>(
    n: usize,
    threads: usize,
    state: impl Fn() -> Result<S, E> + Sync,
    f: impl Fn(&mut S, usize) -> Result<T, E> + Sync,
) -> Result<Vec<T>, E> {
    let (next, failed) = (AtomicUsize::new(0), AtomicBool::new(false));
    let results: Mutex<BTreeMap<usize, Result<T, E>>> = Mutex::new(BTreeMap::new());
    let stateless = Mutex::new(None);
    let work = || {
        let mut state = match state() {
            Ok(state) => state,
            Err(error) => {
                failed.store(true, Ordering::Release);
                *stateless.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
                return;
            }
        };
        while !failed.load(Ordering::Acquire) {
            // Indices are handed out in order and all of them are tried, so the lowest that fails is always met.
            let i = next.fetch_add(1, Ordering::Relaxed);
            if i >= n {
                return;
            }
            let result = f(&mut state, i);
            if result.is_err() {
                failed.store(true, Ordering::Release);
            }
            results.lock().unwrap_or_else(PoisonError::into_inner).insert(i, result);
        }
    };
    std::thread::scope(|scope| {
        for _ in 1..threads.clamp(1, n.max(1)) {
            scope.spawn(work);
        }
        work();
    });
    match stateless.into_inner().unwrap_or_else(PoisonError::into_inner) {
        Some(error) => Err(error),
        None => results.into_inner().unwrap_or_else(PoisonError::into_inner).into_values().collect(),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::sync::Condvar;

    #[test]
    fn results_stand_in_order_whatever_the_threads() {
        for threads in [0, 1, 2, 7, 40] {
            assert_eq!(map(20, threads, |i| i * i), (0..20).map(|i| i * i).collect::<Vec<_>>());
        }
        assert!(map(0, 4, |i| i).is_empty());
    }

    #[test]
    fn the_lowest_failure_is_the_one_reported() {
        for threads in [1, 2, 7] {
            for _ in 0..50 {
                let found = try_map(40, threads, || Ok(()), |(), i| if i % 10 == 9 { Err(i) } else { Ok(i) });
                assert_eq!(found, Err(9));
                let stateless: Result<Vec<usize>, &str> = try_map(40, threads, || Err("none"), |(), i| Ok(i));
                assert_eq!(stateless, Err("none"));
            }
        }
    }

    /// Each waits for the one before it, as who adds up in order does.
    #[test]
    fn whoever_waits_for_an_earlier_index_is_not_left_waiting() {
        for _ in 0..200 {
            let (turn, next) = (Mutex::new(0), Condvar::new());
            let found = try_map(
                40,
                4,
                || Ok(()),
                |(), i| {
                    let failed = i == 7;
                    let mut turn = next.wait_while(turn.lock().unwrap(), |turn| *turn != i).unwrap();
                    *turn += 1;
                    next.notify_all();
                    if failed { Err(i) } else { Ok(()) }
                },
            );
            assert_eq!(found, Err(7));
        }
    }

    #[test]
    fn a_thread_keeps_its_state() {
        let made = AtomicUsize::new(0);
        let state = || {
            made.fetch_add(1, Ordering::Relaxed);
            Ok(0usize)
        };
        let counts = try_map(30, 3, state, |seen, _| {
            *seen += 1;
            Ok::<usize, ()>(*seen)
        });
        let firsts = counts.unwrap().into_iter().filter(|&c| c == 1).count();
        assert!(firsts <= made.load(Ordering::Relaxed) && made.load(Ordering::Relaxed) <= 3);
    }
}
