//! The program: arguments in, exit code out.

use std::{
    io::{ErrorKind, IsTerminal},
    process::ExitCode,
};

use anyhow::Context;
use profile_proxy::{
    app,
    cli::{self, Command},
    config::{self, Config},
    tool::{self, ProxyTool, ToolError, Verdict},
};
use tracing_subscriber::EnvFilter;

#[expect(clippy::print_stdout, clippy::print_stderr, reason = "the command line talks to people")]
fn main() -> ExitCode {
    let command = match cli::parse() {
        Ok(cli) => cli.command,
        Err(stop) => {
            if stop.code == 0 {
                print!("{}", stop.text)
            } else {
                eprint!("{}", stop.text)
            }
            return ExitCode::from(stop.code);
        }
    };
    let config = match config::load(command.overrides(), |name| std::env::var_os(name)) {
        Ok(config) => config,
        Err(faults) => {
            eprintln!("{faults}");
            return ExitCode::from(cli::EXIT_USAGE);
        }
    };
    let done = match &command {
        Command::Serve(_) => serve(&config).map(|()| Verdict::Fine),
        Command::Check(_) => {
            println!("{}", config.summary());
            return ExitCode::SUCCESS;
        }
        Command::DeadLetters(_, asked) => {
            tool::run_dead_letters(&config, asked).map_err(Into::into)
        }
        Command::Journal(_, asked) => tool::run_journal(&config, asked).map_err(Into::into),
        Command::Backfill(_, asked) => return go_through(&config, ProxyTool::Backfill(asked)),
        Command::Warm(_, asked) => return go_through(&config, ProxyTool::Warm(asked)),
        Command::Verify(_, asked) => return go_through(&config, ProxyTool::Verify(asked)),
    };
    match done {
        Ok(Verdict::Fine) => ExitCode::SUCCESS,
        Ok(Verdict::Wanting | Verdict::Unsure) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("profile-proxy: {error}");
            ExitCode::FAILURE
        }
    }
}

/// Runs a tool whose exit code tells cron what is wrong from what could not be found out.
#[expect(clippy::print_stderr, reason = "the command line talks to people")]
fn go_through(config: &Config, tool: ProxyTool<'_>) -> ExitCode {
    match tool::run_through_proxy(config, tool) {
        Ok(Verdict::Fine) => ExitCode::SUCCESS,
        Ok(Verdict::Wanting) => ExitCode::from(cli::EXIT_DRIFT),
        Ok(Verdict::Unsure) => ExitCode::from(cli::EXIT_UNSURE),
        Err(error) => {
            // Whoever reads the output has seen enough.
            if !matches!(&error, ToolError::Output(why) if why.kind() == ErrorKind::BrokenPipe) {
                eprintln!("profile-proxy: {error}");
            }
            ExitCode::from(cli::EXIT_UNSURE)
        }
    }
}

fn serve(config: &Config) -> anyhow::Result<()> {
    let filter = EnvFilter::try_new(&config.log).context("the log filter is not understood")?;
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_target(false)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr)
        .init();
    app::run(config)?;
    Ok(())
}
