//! profile-proxy: a Redis-protocol proxy that checks, journals and persists user profiles.
//!
//! The modules are listed in the order in which a command meets them. `ARCHITECTURE.md` draws the
//! path, names the floors, and `tests/it/tidy.rs` holds the code to it.

pub mod server;

pub mod resp;

pub mod command;

pub mod dispatch;

pub mod auth;

pub mod schema;

pub mod cache;

pub mod upstream;

pub mod hydrate;

pub mod engine;

pub mod journal;

pub mod sinks;

pub mod admin;

pub mod profile;

pub mod metrics;

pub mod guards;

pub mod outside;

pub mod socket;

pub mod backoff;

pub mod config;

pub mod tool;

pub mod cli;

pub mod app;
