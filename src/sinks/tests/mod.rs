//! The sinks against real databases: what reaches the rows, whatever happens on the way.

mod ahead;
mod casts;
mod deliveries;
mod equivalence;
mod fold;
mod former_tables;
mod lookups;
pub(crate) mod memory;
mod model;
mod outage;
mod overlay;
mod pace;
mod refusals;
mod replacements;
mod runs;
mod support;
