//! The integration tests: one binary, one module per subject, real servers and the real proxy.
//!
//! `support` starts and stops the servers. `make test-needs` installs what it looks for.

// Test code may stop at the first surprise; the lint knows only `#[test]` functions by itself.
#![allow(clippy::unwrap_used, clippy::print_stderr)]

mod admin;
mod bad_input;
mod busy_script;
mod bytes_under_way;
mod cache_faults;
mod cache_kinds;
mod cache_letters;
mod cache_mode;
mod cache_tools;
mod client_command;
mod client_matrix;
mod clients_and_limits;
mod command_line;
mod command_survey;
mod connection_state;
mod crash;
mod database_ack;
mod database_faults;
mod dead_letters;
mod differential;
mod engine;
mod engine_corners;
mod engine_watch;
mod expiry_races;
mod faults;
mod flush;
mod flushed_past;
mod gathering;
mod guards;
mod handshakes;
mod hydrate;
mod journal_faults;
mod journal_tools;
mod keyspace;
mod known_bugs;
mod link_faults;
mod local_replies;
mod memory;
mod mixed_load;
mod moved_address;
mod private;
mod profile_commands;
mod readme_commands;
mod reconfigured;
mod replaced_database;
mod shutdown;
mod sideways;
mod support;
mod support_works;
mod system_calls;
mod tidy;
mod transactions;
mod transfer_tools;
mod two_proxies;
mod unknown_commands;
mod upstream_loss;
mod verify;
mod verify_under_load;
mod watch;
mod watch_faults;
mod workers;
