//! `vitq completions`: shell completions from the command line's own definition.

use clap_complete::Shell;

use super::error::CliError;
use super::terminal::Terminal;

/// Print shell completions
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  vitq completions bash > ~/.local/share/bash-completion/completions/vitq
  vitq completions zsh > ~/.zfunc/_vitq
  vitq completions fish > ~/.config/fish/completions/vitq.fish")]
pub(super) struct Args {
    /// The shell
    #[arg(value_enum)]
    shell: Shell,
}

pub(super) fn run(args: &Args, command: &mut clap::Command, terminal: &Terminal) -> Result<(), CliError> {
    let mut text = Vec::new();
    clap_complete::generate(args.shell, command, "vitq", &mut text);
    terminal.print(&String::from_utf8_lossy(&text))
}
