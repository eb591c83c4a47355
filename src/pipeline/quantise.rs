//! Statistics to a plan, a plan to a model, and the two as files.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use super::{PipelineError, Source};
use crate::calib::{self, Stats};
use crate::config::Config;
use crate::fs::write_atomic;
use crate::ir::{Dim, Edit, Model, NodeKind, Type, Value, ValueInfo};
use crate::lower::{self, LowerError, LowerReport};
use crate::quant::{self, QuantPlan, Target, reparameterize};
use crate::vit::SiteRef;

/// Decides every site, on so many threads.
///
/// # Errors
/// When the statistics are of another model or lack what the configuration needs.
pub fn plan(source: &Source, stats: &Stats, config: &Config, target: Target, threads: usize) -> Result<QuantPlan, PipelineError> {
    stats.check_model(source.digest())?;
    if stats.samples().is_empty() {
        return Err(calib::Error::NoSamples { skipped: stats.skipped().len() }.into());
    }
    let scaled = reparameterize::choose(&source.facts(), stats, config, target, threads);
    Ok(quant::make_plan(&source.reparameterized(&scaled)?.facts(), stats, config, target, threads)?)
}

/// Applies a plan to a copy of the canonical model.
///
/// # Errors
/// When the plan is of another model or does not fit it.
pub fn lower(source: &Source, plan: &QuantPlan) -> Result<(Model, LowerReport), PipelineError> {
    plan.check_model(&source.digest().to_string())?;
    let forgotten = check_sites(source, plan)?;
    let mut model = source.reparameterized(&plan.reparameterized)?.model.clone();
    let mut report = lower::lower(&mut model, plan)?;
    report.notes.extend(forgotten);
    Ok((model, report))
}

/// Refuses a site that is none of the model's, and says which of the model's a plan does not name.
fn check_sites(source: &Source, plan: &QuantPlan) -> Result<Option<String>, LowerError> {
    let known: BTreeMap<String, &SiteRef> = source.vit.sites.iter().map(|s| (s.full_name(), s)).collect();
    for site in &plan.sites {
        let same = known.get(&site.name).is_some_and(|&k| site.site == *k || site.site == plan.target.coded(k));
        if !same {
            return Err(LowerError::UnknownSite { site: site.name.clone() });
        }
    }
    if let Some(float) = plan.float.iter().find(|f| !known.contains_key(&f.name)) {
        return Err(LowerError::UnknownSite { site: float.name.clone() });
    }
    let named: BTreeSet<&str> =
        plan.sites.iter().map(|s| s.name.as_str()).chain(plan.float.iter().map(|f| f.name.as_str())).collect();
    // Rows with codes of their own are a choice, and not named where it is not made.
    let forgotten: Vec<&str> = known
        .iter()
        .filter(|(name, s)| s.rows.is_none() && !named.contains(name.as_str()))
        .map(|(name, _)| name.as_str())
        .collect();
    let Some((first, rest)) = forgotten.split_first() else { return Ok(None) };
    let others = if rest.is_empty() { String::new() } else { format!(" and {} more", rest.len()) };
    Ok(Some(format!("the plan says nothing of {first}{others}, which stay in float as far as nothing else gives them codes")))
}

/// Fixes the open batch axis of a model's inputs and outputs.
///
/// # Errors
/// When an input's batch is fixed to another size.
pub fn fix_batch(path: &Path, model: &mut Model, batch: usize) -> Result<(), PipelineError> {
    let graph = &model.graph;
    let size = Dim::Value(i64::try_from(batch).unwrap_or(i64::MAX));
    let inputs = graph.inputs().iter().filter(|&&id| matches!(graph.get(id).map(|n| &n.kind), Some(NodeKind::Input)));
    let inputs: Vec<Value> = inputs.map(|&node| Value { node, port: 0 }).collect();
    let mut open = Vec::new();
    for &input in &inputs {
        let dim = first_dim(graph.info(input)).cloned();
        match dim {
            Some(d) if d.value().is_some_and(|n| n != batch) => {
                return Err(PipelineError::Input {
                    path: path.to_owned(),
                    what: format!(
                        "--batch {batch} was given, but the model's input '{}' is fixed to batches of {d}: export it with an open batch",
                        graph.value_name(input)
                    ),
                });
            }
            Some(d) => open.push(d),
            None => {}
        }
    }
    let outputs: Vec<Value> = graph.outputs().to_vec();
    let outputs = outputs.into_iter().filter(|&v| first_dim(graph.info(v)).is_some_and(|d| open.contains(d)));
    let values: Vec<Value> = inputs.into_iter().chain(outputs.collect::<Vec<_>>()).collect();
    let mut edit = Edit::new(&mut model.graph);
    for value in values {
        let Some(mut info) = edit.info(value).cloned() else { continue };
        if let Some(Type::Tensor(t)) = &mut info.ty
            && let Some(first) = t.shape.as_mut().and_then(|s| s.first_mut())
        {
            *first = size.clone();
        }
        edit.set_info(value, info);
    }
    edit.commit().map_err(|e| PipelineError::Lower(e.into()))
}

fn first_dim(info: Option<&ValueInfo>) -> Option<&Dim> {
    info?.tensor_type()?.shape.as_ref()?.first()
}

/// Names in the configuration that name nothing in the model, as sentences.
pub fn unknown_names(source: &Source, config: &Config) -> Vec<String> {
    let depth = source.vit.blocks.len();
    let has = |block, site: &str| source.vit.sites.iter().any(|s| s.block == Some(block) && s.site.name() == site);
    let unknown = config.named_in_blocks().filter(|&(block, site)| !has(block, site));
    unknown
        .map(|(block, site)| {
            let but =
                if block < depth { "that block has no such site".to_owned() } else { format!("the model has {depth} blocks") };
            format!("the configuration '{}' names blocks.{block}.{site}, but {but}", config.name)
        })
        .collect()
}

/// What a configuration asks for that a plan without a search does not do.
pub fn unsearched(config: &Config) -> Option<String> {
    config.search.widens().then(|| {
        format!(
            "the configuration '{}' widens sites by their effect on the outputs, which takes the search: this plan has the widths of its \
             entries; `vitq compile` searches, unless with --effort fast",
            config.name
        )
    })
}

/// What `--strict` makes an error: a block that all but matched, a site in float although the configuration would have it
/// quantised and the target could, a configured name that names nothing.
pub fn violations(source: &Source, config: &Config, plan: &QuantPlan) -> Vec<String> {
    let mut out: Vec<String> = source.vit.near_misses.iter().map(|n| format!("a block all but matched: {n}")).collect();
    // A site that the target keeps in float is what choosing that target means.
    if plan.target == Target::Integer {
        let wanted = |name: &str| {
            let site = source.vit.sites.iter().find(|s| s.full_name() == name);
            site.is_some_and(|s| !config.resolve(s.block, s.site.name()).float)
        };
        let float = plan.float.iter().filter(|f| wanted(&f.name));
        out.extend(float.map(|f| format!("{} stays in float: {}", f.name, f.reason)));
    }
    out.extend(unknown_names(source, config));
    out
}

/// Reads a plan.
///
/// # Errors
/// When the file cannot be read or is no plan.
pub fn read_plan(path: &Path) -> Result<QuantPlan, PipelineError> {
    let bytes = std::fs::read(path).map_err(|source| PipelineError::File { path: path.to_owned(), source })?;
    let text = String::from_utf8(bytes)
        .map_err(|_| crate::quant::PlanError::Parse { place: path.display().to_string(), what: "it is not text".to_owned() })?;
    Ok(QuantPlan::from_text(&text, &path.display().to_string())?)
}

/// Writes a plan.
///
/// # Errors
/// When the file cannot be written.
pub fn write_plan(plan: &QuantPlan, path: &Path) -> Result<(), PipelineError> {
    Ok(write_atomic(path, |w| w.write_all(plan.to_text().as_bytes()))?)
}

/// Reads statistics.
///
/// # Errors
/// When the file cannot be read or holds no statistics.
pub fn read_stats(path: &Path) -> Result<Stats, PipelineError> {
    let bytes = std::fs::read(path).map_err(|source| PipelineError::File { path: path.to_owned(), source })?;
    Stats::from_bytes(&bytes).map_err(|source| PipelineError::Stats { path: path.to_owned(), source })
}

/// Merges statistics of shards, in any order: the bytes of one run over all of them.
///
/// # Errors
/// When a file cannot be read, or holds statistics of another run than the first, or of samples that an earlier one has.
pub fn merge_stats(paths: &[impl AsRef<Path>]) -> Result<Stats, PipelineError> {
    let mut merged: Option<Stats> = None;
    for path in paths {
        let path = path.as_ref();
        let next = read_stats(path)?;
        merged = Some(match merged {
            None => next,
            Some(stats) => stats.merge(next).map_err(|source| PipelineError::Stats { path: path.to_owned(), source })?,
        });
    }
    merged.ok_or_else(|| calib::Error::Merge("none are given".to_owned()).into())
}

/// Statistics of shards that are still missing, as a sentence; `None` when every sample of the data set was tried.
pub fn missing_note(stats: &Stats) -> Option<String> {
    let missing = stats.missing();
    (missing > 0).then(|| {
        format!(
            "the statistics cover {} of {} samples: merge those of the other shards into them with `vitq merge`",
            stats.total() - missing,
            stats.total()
        )
    })
}

/// Writes statistics.
///
/// # Errors
/// When the file cannot be written.
pub fn write_stats(stats: &Stats, path: &Path) -> Result<(), PipelineError> {
    let bytes = stats.to_bytes()?;
    Ok(write_atomic(path, |w| w.write_all(&bytes))?)
}
