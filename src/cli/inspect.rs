//! `vitq inspect`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use clap::{ValueEnum, ValueHint};

use super::error::CliError;
use super::terminal::Terminal;
use crate::ir::text::{PrintOptions, print_model};
use crate::ir::{NodeId, dot};
use crate::pipeline::{Source, file_bytes, is_quantised, load, op_counts, read};
use crate::report::summary::{InspectSummary, inspect};

/// Show what vitq finds in a model: blocks, sites, near misses, operators left alone
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  vitq inspect model.onnx
  vitq inspect model.onnx --text=elided | less
  vitq inspect model.onnx --dot | dot -Tsvg -o model.svg")]
pub(super) struct Args {
    /// The model
    #[arg(value_name = "MODEL.onnx", value_hint = ValueHint::FilePath)]
    model: PathBuf,

    /// Print JSON
    #[arg(long, conflicts_with_all = ["text", "dot"])]
    json: bool,

    /// Print the model as it is in ONNX's textual syntax: with every weight, or with large ones elided
    #[arg(long, value_enum, value_name = "FORM", num_args = 0..=1, require_equals = true, default_missing_value = "exact", conflicts_with = "dot")]
    text: Option<TextForm>,

    /// Print the canonical graph for Graphviz, its blocks framed
    #[arg(long)]
    dot: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum TextForm {
    Exact,
    Elided,
}

pub(super) fn run(args: &Args, terminal: &Terminal) -> Result<(), CliError> {
    if let Some(form) = args.text {
        let options = match form {
            TextForm::Exact => PrintOptions::lossless(),
            TextForm::Elided => PrintOptions::elided(),
        };
        let mut text = print_model(&read(&args.model)?, &options);
        if !text.ends_with('\n') {
            text.push('\n');
        }
        return terminal.print(&text);
    }
    let source = load(&args.model)?;
    if args.dot {
        return terminal.print(&framed(&source));
    }
    let summary = summary(args, &source)?;
    if args.json { terminal.print_json(&summary) } else { terminal.print(&summary.to_string()) }
}

fn summary(args: &Args, source: &Source) -> Result<InspectSummary, CliError> {
    let original = read(&args.model)?;
    let bytes = file_bytes(&args.model, &original);
    let mut summary = inspect(&args.model.display().to_string(), bytes, &original, &source.model, &source.vit);
    summary.quantised = is_quantised(&original);
    summary.rules = source.canon.applied.iter().map(|(name, n)| ((*name).to_owned(), *n)).collect();
    summary.near_misses.extend(source.canon.near_misses.iter().map(ToString::to_string));
    summary.ops = op_counts(&original);
    for (row, block) in summary.blocks.iter_mut().zip(&source.vit.blocks) {
        row.forms = block.spelling(&source.model.graph, &source.canon.forms);
    }
    Ok(summary)
}

/// The canonical graph with a frame around each block.
fn framed(source: &Source) -> String {
    let graph = &source.model.graph;
    let mut frames: BTreeMap<NodeId, String> = BTreeMap::new();
    for block in &source.vit.blocks {
        // A block is what lies between its input and its output.
        let (Some(from), Some(to)) = (graph.value(&block.x), graph.value(&block.output)) else { continue };
        let mut seen = BTreeSet::from([from.node]);
        let mut stack = vec![to.node];
        while let Some(id) = stack.pop() {
            if seen.insert(id) {
                frames.entry(id).or_insert_with(|| format!("blocks.{}", block.index));
                stack.extend(graph.inputs_of(id).into_iter().flatten().map(|v| v.node));
            }
        }
    }
    dot::print_dot(graph, |id| frames.get(&id).cloned())
}
