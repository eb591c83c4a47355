//! The command line: one file a subcommand, each thin.
//!
//! Standard output carries the result alone (a summary, or JSON with `--json`); notes, progress and errors go to standard
//! error. Exit code 0 is success, 1 an error, 2 a usage error, 130 Ctrl-C.

mod analyze;
mod calibrate;
mod canon;
mod compile;
mod completions;
mod diff;
mod error;
mod eval;
mod inspect;
mod interrupt;
mod lower;
mod merge;
mod options;
mod plan;
mod progress;
mod roundtrip;
mod run;
mod terminal;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::ExitCode;
use std::sync::Mutex;

use clap::{CommandFactory, Parser, Subcommand, ValueEnum};

use error::CliError;
use terminal::Terminal;

/// Compile a Vision Transformer in ONNX into a fully quantised ONNX model.
#[derive(Debug, Parser)]
#[command(
    name = "vitq",
    version,
    propagate_version = true,
    max_term_width = 110,
    subcommand_required = true,
    arg_required_else_help = true,
    after_help = "Examples:
  vitq inspect model.onnx
  vitq compile model.onnx --calib images/ --preprocess imagenet -o model.int8.onnx
  vitq eval model.int8.onnx --data validation/ --preprocess imagenet --reference model.onnx"
)]
struct Cli {
    #[command(subcommand)]
    command: Command,

    /// Print results and errors only: no notes, no progress, no summary
    #[arg(short, long, global = true)]
    quiet: bool,

    /// When to colour
    #[arg(long, global = true, value_enum, default_value_t = Color::Auto, value_name = "WHEN")]
    color: Color,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Color {
    Auto,
    Always,
    Never,
}

#[derive(Debug, Subcommand)]
enum Command {
    Compile(compile::Args),
    Inspect(inspect::Args),
    Analyze(analyze::Args),
    Canon(canon::Args),
    Calibrate(calibrate::Args),
    Merge(merge::Args),
    Plan(plan::Args),
    Lower(lower::Args),
    Run(run::Args),
    Eval(eval::Args),
    Diff(diff::Args),
    Completions(completions::Args),
    #[command(hide = true)]
    Roundtrip(roundtrip::Args),
}

/// What the last panic said: a defect is reported like any error, in one paragraph.
static PANIC: Mutex<String> = Mutex::new(String::new());

/// Parses the process's arguments, does what they say, and reports the outcome.
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    let terminal = Terminal::new(cli.quiet);
    match cli.color {
        Color::Auto => {}
        Color::Always => anstream::ColorChoice::Always.write_global(),
        Color::Never => anstream::ColorChoice::Never.write_global(),
    }
    // The executor catches panics of its own dependencies and turns them into errors; nothing of that belongs on a screen.
    std::panic::set_hook(Box::new(|info| {
        if let Ok(mut text) = PANIC.lock() {
            *text = info.to_string().split_whitespace().collect::<Vec<_>>().join(" ");
        }
    }));
    interrupt::install(cli.quiet);
    let outcome = catch_unwind(AssertUnwindSafe(|| dispatch(cli.command, &terminal)));
    match outcome {
        Ok(Ok(())) => ExitCode::SUCCESS,
        Ok(Err(e)) => {
            terminal.error(&e);
            ExitCode::from(e.code())
        }
        Err(_) => {
            let text = PANIC.lock().map(|t| t.clone()).unwrap_or_default();
            terminal.error(&CliError::Defect(text));
            ExitCode::FAILURE
        }
    }
}

fn dispatch(command: Command, terminal: &Terminal) -> Result<(), CliError> {
    match command {
        Command::Compile(args) => compile::run(args, terminal),
        Command::Inspect(args) => inspect::run(&args, terminal),
        Command::Analyze(args) => analyze::run(&args, terminal),
        Command::Canon(args) => canon::run(&args, terminal),
        Command::Calibrate(args) => calibrate::run(&args, terminal),
        Command::Merge(args) => merge::run(&args, terminal),
        Command::Plan(args) => plan::run(&args, terminal),
        Command::Lower(args) => lower::run(&args, terminal),
        Command::Run(args) => run::run(&args, terminal),
        Command::Eval(args) => eval::run(&args, terminal),
        Command::Diff(args) => diff::run(&args, terminal),
        Command::Completions(args) => completions::run(&args, &mut Cli::command(), terminal),
        Command::Roundtrip(args) => roundtrip::run(&args, terminal),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    #[test]
    fn the_definition_is_consistent() {
        super::Cli::command().debug_assert();
    }

    #[test]
    fn every_command_has_examples_and_help() {
        for c in super::Cli::command().get_subcommands().filter(|c| !c.is_hide_set()) {
            assert!(c.get_about().is_some(), "{} has no help", c.get_name());
            let examples = c.get_after_help().map(ToString::to_string).unwrap_or_default();
            let shown = examples.matches(&format!("vitq {}", c.get_name())).count();
            assert!((2..=3).contains(&shown), "{} shows {shown} examples", c.get_name());
        }
    }
}
