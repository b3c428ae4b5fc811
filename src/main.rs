//! The program: arguments in, exit code out.

use std::{io::IsTerminal, process::ExitCode};

use anyhow::Context;
use profile_proxy::{
    app,
    cli::{self, Command},
    config::{self, Config},
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
    let (Command::Serve(overrides) | Command::Check(overrides)) = &command;
    let config = match config::load(overrides, |name| std::env::var_os(name)) {
        Ok(config) => config,
        Err(faults) => {
            eprintln!("{faults}");
            return ExitCode::from(cli::EXIT_USAGE);
        }
    };
    if let Command::Check(_) = command {
        println!("{}", config.summary());
        return ExitCode::SUCCESS;
    }
    match serve(&config) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("profile-proxy: {error}");
            ExitCode::FAILURE
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
