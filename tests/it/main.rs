//! The integration tests: one binary, one module per subject, real servers and the real proxy.
//!
//! `support` starts and stops the servers. `make test-needs` installs what it looks for.

// Test code may stop at the first surprise; the lint knows only `#[test]` functions by itself.
#![allow(clippy::unwrap_used, clippy::print_stderr)]

mod admin;
mod bad_input;
mod clients_and_limits;
mod command_line;
mod crash;
mod differential;
mod engine;
mod engine_corners;
mod expiry_races;
mod faults;
mod handshakes;
mod journal_faults;
mod link_faults;
mod mixed_load;
mod private;
mod readme_commands;
mod shutdown;
mod sideways;
mod support;
mod support_works;
mod tidy;
mod transactions;
mod upstream_loss;
