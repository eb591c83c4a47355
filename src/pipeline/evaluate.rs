//! Running models over data: outputs, accuracy, and how far one model is from another.

use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use ndarray::{ArrayD, Axis};

use super::calibrate::{Kept, feed};
use super::samples::Group;
use super::{PipelineError, Samples};
use crate::calib::Progress;
use crate::calib::run::Named;
use crate::canon;
use crate::ir::{AI_VITQ, Model};
use crate::parallel;
use crate::runtime::tract::{Engine, EngineOptions, Session};

/// How a model does on data.
#[derive(Debug, Clone, PartialEq, serde::Serialize)]
pub struct Evaluation {
    /// Samples evaluated.
    pub samples: usize,
    /// Samples with a label.
    pub labelled: usize,
    /// Share of the labelled samples whose highest logit is the label's, 0 to 1.
    pub top1: Option<f64>,
    /// Share of the labelled samples whose label is among the five highest logits, 0 to 1; for more than five classes.
    pub top5: Option<f64>,
    /// The reference's top-1, when there is one.
    pub reference_top1: Option<f64>,
    /// Share of all samples on which model and reference have the same highest logit, 0 to 1.
    pub agreement: Option<f64>,
    /// 10·log10(Σ ref² / Σ (ref − x)²) over all logits, in dB; `None` without a reference, and when nothing differs.
    pub sqnr_db: Option<f64>,
    /// The largest absolute difference of two logits; 0 when model and reference are identical.
    pub max_abs_difference: Option<f64>,
    /// Wall-clock time of the runs, reading of the data included, in seconds.
    pub seconds: f64,
}

/// One sample's outputs.
#[derive(Debug, Clone, PartialEq)]
pub struct SampleOutputs {
    /// The sample's name.
    pub sample: String,
    /// The outputs without a batch axis, in the model's order, by name.
    pub outputs: Named,
}

/// Whether a model holds quantised operators.
pub fn is_quantised(model: &Model) -> bool {
    model.graph.ops().into_iter().any(|id| {
        let quantised = |op: &crate::ir::Op| {
            op.op.is("QuantizeLinear") || op.op.is("DequantizeLinear") || op.op.canonical_domain() == AI_VITQ
        };
        model.graph.op(id).is_some_and(quantised)
    })
}

/// An executor of a model as it is, or, where the executor lacks a form that an exporter wrote, of its canonical form.
///
/// # Errors
/// When neither can be run.
pub fn runnable(path: &Path, model: Model, options: &EngineOptions) -> Result<Engine, PipelineError> {
    let failed = |source| PipelineError::Engine { path: path.to_owned(), source };
    let error = match Engine::new(&model, &[], options) {
        Ok(engine) => return Ok(engine),
        Err(error) => error,
    };
    let mut model = model;
    // Only float exports have other forms; a quantised model that does not load is reported as it is.
    if is_quantised(&model) || canon::canonicalise(&mut model).is_err() {
        return Err(failed(error));
    }
    Engine::new(&model, &[], options).map_err(failed)
}

/// Runs samples in parallel (without those that are skipped), calls `each` with every group's number and outputs, and returns what it gave, in the samples' order.
fn each_group<T: Send>(
    engines: &[&Engine],
    samples: &Samples,
    groups: usize,
    threads: usize,
    progress: &dyn Progress,
    each: impl Fn(usize, &Group, Vec<Named>) -> Result<T, PipelineError> + Sync,
) -> Result<Vec<T>, PipelineError> {
    let done = AtomicUsize::new(0);
    let results = parallel::try_map(
        groups,
        threads,
        || Ok(Vec::new()),
        |sessions, g| {
            let result =
                run_group(engines, sessions, samples, g).and_then(|ran| ran.map(|(group, out)| each(g, &group, out)).transpose());
            progress.tick(done.fetch_add(1, Ordering::Relaxed) + 1, groups);
            result
        },
    );
    Ok(results?.into_iter().flatten().collect())
}

fn run_group<'e>(
    engines: &[&'e Engine],
    sessions: &mut Vec<Session<'e>>,
    samples: &Samples,
    g: usize,
) -> Result<Option<(Group, Vec<Named>)>, PipelineError> {
    let Some(group) = samples.group_or_skip(g)? else { return Ok(None) };
    let failed = |source| PipelineError::Sample { sample: group.names.join(", "), source };
    while let Some(engine) = engines.get(sessions.len()) {
        sessions.push(engine.session().map_err(failed)?);
    }
    let run = |s: &mut Session<'e>| feed(s, &group.inputs, &mut |_, _, _| {});
    let out = sessions.iter_mut().map(run).collect::<Result<Vec<Named>, _>>().map_err(failed)?;
    Ok(Some((group, out)))
}

/// Every sample's outputs, in the samples' order; they are all kept.
///
/// # Errors
/// The first failure by sample order.
pub fn forward(
    engine: &Engine,
    samples: &Samples,
    threads: usize,
    progress: &dyn Progress,
) -> Result<Vec<SampleOutputs>, PipelineError> {
    let split = |_: usize, group: &Group, out: Vec<Named>| {
        let out = out.into_iter().next().unwrap_or_default();
        let one = |(i, sample): (usize, &String)| SampleOutputs {
            sample: sample.clone(),
            outputs: out.iter().map(|(name, array)| (name.clone(), row(array, i))).collect(),
        };
        Ok(group.names.iter().enumerate().map(one).collect::<Vec<_>>())
    };
    Ok(each_group(&[engine], samples, samples.groups(), threads, progress, split)?.into_iter().flatten().collect())
}

/// The first outputs of the first `limit` samples (whole batches), flat, in the samples' order.
pub(super) fn forward_some(
    engine: &Engine,
    samples: &Samples,
    limit: usize,
    threads: usize,
) -> Result<Vec<Vec<f32>>, PipelineError> {
    let first = |_: usize, group: &Group, out: Vec<Named>| {
        let logits = out.first().and_then(|o| o.first()).map(|(_, a)| a);
        Ok((0..group.names.len()).filter_map(|i| Some(row(logits?, i).iter().copied().collect())).collect::<Vec<Vec<f32>>>())
    };
    let groups = limit.div_ceil(samples.batch()).min(samples.groups());
    Ok(each_group(&[engine], samples, groups, threads, &(), first)?.into_iter().flatten().collect())
}

/// Row `i` of an array with a batch axis; all of an array without.
fn row(array: &ArrayD<f32>, i: usize) -> ArrayD<f32> {
    if array.shape().first().is_some_and(|&n| i < n) { array.index_axis(Axis(0), i).to_owned() } else { array.clone() }
}

/// One sample's part in an [`Evaluation`].
#[derive(Debug, Clone, Copy, Default)]
struct Score {
    labelled: bool,
    top1: bool,
    top5: bool,
    many_classes: bool,
    reference_top1: bool,
    agrees: bool,
    signal: f64,
    noise: f64,
    max_abs_difference: f64,
}

/// Accuracy on labelled samples, and distance from a reference that is run on the same samples. Only the first output counts.
/// At most `limit` samples are used (whole batches). The result does not depend on the number of threads.
///
/// # Errors
/// The first failure by sample order; a label beyond the model's classes; a reference with other outputs.
pub fn evaluate(
    engine: &Engine,
    reference: Option<&Engine>,
    samples: &Samples,
    limit: Option<usize>,
    threads: usize,
    progress: &dyn Progress,
) -> Result<Evaluation, PipelineError> {
    let start = Instant::now();
    let engines: Vec<&Engine> = std::iter::once(engine).chain(reference).collect();
    let groups = limit.map_or(samples.groups(), |l| l.div_ceil(samples.batch()).min(samples.groups()));
    let score = |_: usize, group: &Group, out: Vec<Named>| {
        let logits: Vec<&ArrayD<f32>> = out.iter().filter_map(|o| o.first().map(|(_, a)| a)).collect();
        (0..group.names.len()).map(|i| score_sample(group, i, &logits)).collect::<Result<Vec<Score>, _>>()
    };
    let scores: Vec<Score> = each_group(&engines, samples, groups, threads, progress, score)?.into_iter().flatten().collect();
    Ok(sum_up(&scores, reference.is_some(), start.elapsed().as_secs_f64()))
}

/// [`evaluate`] against outputs that were kept while the same samples were calibrated on.
///
/// # Errors
/// As [`evaluate`].
pub fn evaluate_kept(
    engine: &Engine,
    kept: &Kept,
    samples: &Samples,
    threads: usize,
    progress: &dyn Progress,
) -> Result<Evaluation, PipelineError> {
    let start = Instant::now();
    let score = |g: usize, group: &Group, out: Vec<Named>| {
        let own = out.first().and_then(|o| o.first()).map(|(_, a)| a).ok_or(PipelineError::NoOutput)?;
        let reference = kept.group(g).ok_or(PipelineError::NoOutput)?;
        (0..group.names.len()).map(|i| score_sample(group, i, &[own, &reference])).collect::<Result<Vec<Score>, _>>()
    };
    let scores: Vec<Score> =
        each_group(&[engine], samples, kept.groups(), threads, progress, score)?.into_iter().flatten().collect();
    Ok(sum_up(&scores, true, start.elapsed().as_secs_f64()))
}

fn score_sample(group: &Group, i: usize, logits: &[&ArrayD<f32>]) -> Result<Score, PipelineError> {
    let flat = |a: &ArrayD<f32>| row(a, i).iter().copied().collect::<Vec<f32>>();
    let mut rows = logits.iter().map(|a| flat(a));
    let x = rows.next().ok_or(PipelineError::NoOutput)?;
    let reference = rows.next();
    for (whose, values) in std::iter::once(("the model's", &x)).chain(reference.iter().map(|r| ("the reference's", r))) {
        let count = values.iter().filter(|v| !v.is_finite()).count();
        if count > 0 {
            let sample = group.names.get(i).cloned().unwrap_or_default();
            return Err(PipelineError::NotFinite { whose, sample, count, of: values.len() });
        }
    }
    let mut s = Score { many_classes: x.len() > 5, ..Score::default() };
    let best = top(&x, 5);
    if let Some(label) = group.labels.get(i).copied().flatten() {
        if label >= x.len() {
            let sample = group.names.get(i).cloned().unwrap_or_default();
            return Err(PipelineError::Label { sample, label, classes: x.len() });
        }
        s.labelled = true;
        s.top1 = best.first() == Some(&label);
        s.top5 = best.contains(&label);
        s.reference_top1 = reference.as_ref().is_some_and(|r| top(r, 1).first() == Some(&label));
    }
    if let Some(r) = reference {
        if r.len() != x.len() {
            return Err(PipelineError::Reference { found: x.len(), expected: r.len() });
        }
        s.agrees = top(&r, 1).first() == best.first();
        for (&a, &b) in r.iter().zip(&x) {
            let difference = f64::from(a) - f64::from(b);
            s.signal += f64::from(a) * f64::from(a);
            s.noise += difference * difference;
            s.max_abs_difference = s.max_abs_difference.max(difference.abs());
        }
    }
    Ok(s)
}

/// Sums in the samples' order, so that floating-point sums are the same on any number of threads.
fn sum_up(scores: &[Score], compared: bool, seconds: f64) -> Evaluation {
    let count = |f: fn(&Score) -> bool| scores.iter().filter(|s| f(s)).count();
    let labelled = count(|s| s.labelled);
    let share = |n: usize, of: usize| (of > 0).then(|| n as f64 / of as f64);
    let (signal, noise) = scores.iter().fold((0.0, 0.0), |(a, b), s| (a + s.signal, b + s.noise));
    Evaluation {
        samples: scores.len(),
        labelled,
        top1: share(count(|s| s.labelled && s.top1), labelled),
        top5: share(count(|s| s.labelled && s.top5), labelled).filter(|_| scores.iter().all(|s| s.many_classes)),
        reference_top1: share(count(|s| s.labelled && s.reference_top1), labelled).filter(|_| compared),
        agreement: share(count(|s| s.agrees), scores.len()).filter(|_| compared),
        sqnr_db: (compared && noise > 0.0).then(|| 10.0 * (signal / noise).log10()),
        max_abs_difference: compared.then(|| scores.iter().map(|s| s.max_abs_difference).fold(0.0, f64::max)),
        seconds,
    }
}

/// Indices of the `k` highest values, the highest first, of equals the earlier first; a NaN counts as the lowest.
pub fn top(values: &[f32], k: usize) -> Vec<usize> {
    let key = |i: usize| values.get(i).copied().filter(|v| !v.is_nan()).unwrap_or(f32::NEG_INFINITY);
    let mut order: Vec<usize> = (0..values.len()).collect();
    order.sort_by(|&a, &b| key(b).total_cmp(&key(a)).then(a.cmp(&b)));
    order.truncate(k);
    order
}

#[cfg(test)]
mod tests;
