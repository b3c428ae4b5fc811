//! What the proxy counts, and the text in which Prometheus reads it.
//!
//! Counters belong to the one worker that writes them and are read at a scrape, so counting is a
//! plain load and store. Names are `profile_proxy_<noun>_<unit>[_total]`; label values come from
//! closed sets, never from a client.

use std::{
    fmt::Write as _,
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

/// The first words of our own errors.
const ERRORS: [&str; 11] = [
    "ERR",
    "NOAUTH",
    "WRONGPASS",
    "SCHEMA",
    "MISCONF",
    "MASTERDOWN",
    "LOADING",
    "BUSY",
    "NOPROTO",
    "DENIED",
    "EXECABORT",
];

/// What became of profiles that were checked.
const LOADS: [&str; 8] =
    ["right", "absent", "other_type", "filled", "overwritten", "deleted", "adopted", "failed"];

/// How Redis and the database can differ about a profile.
const DRIFTS: [&str; 6] = [
    "missing_in_redis",
    "missing_in_database",
    "deleted_in_database",
    "fields_differ",
    "expiry_differs",
    "other_type",
];

/// A number that only rises, written by one thread.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Adds to the counter. Only the owning worker may do so.
    pub fn add(&self, count: u64) {
        self.0.store(self.0.load(Relaxed).wrapping_add(count), Relaxed);
    }

    /// Reads the counter, from any thread.
    pub fn value(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// A number that rises and falls, written by one thread.
#[derive(Debug, Default)]
pub struct Gauge(AtomicU64);

impl Gauge {
    /// Sets the gauge.
    pub fn set(&self, value: u64) {
        self.0.store(value, Relaxed);
    }

    /// Reads the gauge, from any thread.
    pub fn value(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// Durations in buckets that double, from 1 microsecond on.
#[derive(Debug, Default)]
pub struct Histogram {
    buckets: [Counter; 24],
    nanos: Counter,
}

impl Histogram {
    /// Counts one duration.
    pub fn observe(&self, duration: Duration) {
        let micros = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
        let bucket = (u64::BITS - micros.leading_zeros()) as usize;
        let last = self.buckets.len() - 1;
        if let Some(bucket) = self.buckets.get(bucket.min(last)) {
            bucket.add(1);
        }
        self.nanos.add(u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX));
    }
}

/// Everything that one worker counts.
#[derive(Debug)]
pub struct Metrics {
    command_names: Vec<&'static str>,
    commands: Vec<Counter>,
    unknown: Counter,
    errors: [Counter; ERRORS.len()],
    rules: Vec<(&'static str, Counter)>,
    logins: [Counter; 2],
    /// Connections that were accepted.
    pub connections: Counter,
    /// Connections that were turned away: too many clients, or protected mode.
    pub connections_rejected: Counter,
    /// Connections that are open.
    pub connections_open: Gauge,
    /// Connections that were cut because the client did not read its replies.
    pub connections_cut: Counter,
    /// Connections that were cut because the client was idle.
    pub connections_idle: Counter,
    /// How often a client's input had to wait until fewer commands were under way.
    pub reads_paused: Counter,
    /// Bytes read from clients.
    pub bytes_in: Counter,
    /// Requests that were not RESP.
    pub protocol_errors: Counter,
    /// Batches of profile writes that were slowed down because the journal fills up.
    pub batches_slowed: Counter,
    /// Whether the upstream is there (1) or not (0).
    pub upstream_up: Gauge,
    /// Links to the upstream that were made.
    pub upstream_links: Counter,
    /// Writes to the upstream, each of which carries requests of many clients.
    pub upstream_batches: Counter,
    /// From the sending of a batch to its last reply.
    pub upstream_round_trip: Histogram,
    /// Profile writes whose outcome is not known yet.
    pub in_doubt: Gauge,
    /// How often Redis was another one than before, or was restarted.
    pub epochs: Counter,
    /// Whether profiles have to be checked before they are used (1) or not (0).
    pub checking: Gauge,
    /// Profiles that were checked in this epoch; 0 when it is settled.
    pub checked: Gauge,
    /// Profiles that the warm-up has had checked.
    pub warmed: Counter,
    /// How long commands wait for their profiles to be checked.
    pub load_wait: Histogram,
    loads: [Counter; LOADS.len()],
    /// Profiles of which Redis and the database were compared.
    pub examined: Counter,
    drifts: [Counter; DRIFTS.len()],
    /// Reads of profiles that were answered from memory.
    pub cache_hits: Counter,
    /// Reads of profiles that could have been, and went to Redis.
    pub cache_misses: Counter,
    /// Profiles that had to make room.
    pub cache_evictions: Counter,
    /// Keys that Redis has reported as changed, of those that were asked for, and flushes.
    pub cache_invalidations: Counter,
    /// Memory of the profiles that are kept, with all that is needed to find them.
    pub cache_bytes: Gauge,
    /// Profiles that are kept.
    pub cache_entries: Gauge,
    /// Whether reads are answered from memory (1) or not (0).
    pub cache_on: Gauge,
}

impl Metrics {
    /// Makes the counters for these commands and schema rules.
    #[must_use]
    pub fn new(command_names: Vec<&'static str>, rules: &[&'static str]) -> Self {
        Self {
            commands: command_names.iter().map(|_| Counter::default()).collect(),
            command_names,
            unknown: Counter::default(),
            errors: Default::default(),
            rules: rules.iter().map(|rule| (*rule, Counter::default())).collect(),
            logins: Default::default(),
            connections: Counter::default(),
            connections_rejected: Counter::default(),
            connections_open: Gauge::default(),
            connections_cut: Counter::default(),
            connections_idle: Counter::default(),
            reads_paused: Counter::default(),
            bytes_in: Counter::default(),
            protocol_errors: Counter::default(),
            batches_slowed: Counter::default(),
            upstream_up: Gauge::default(),
            upstream_links: Counter::default(),
            upstream_batches: Counter::default(),
            upstream_round_trip: Histogram::default(),
            in_doubt: Gauge::default(),
            epochs: Counter::default(),
            checking: Gauge::default(),
            checked: Gauge::default(),
            warmed: Counter::default(),
            load_wait: Histogram::default(),
            loads: Default::default(),
            examined: Counter::default(),
            drifts: Default::default(),
            cache_hits: Counter::default(),
            cache_misses: Counter::default(),
            cache_evictions: Counter::default(),
            cache_invalidations: Counter::default(),
            cache_bytes: Gauge::default(),
            cache_entries: Gauge::default(),
            cache_on: Gauge::default(),
        }
    }

    /// Counts a command by its place in the table.
    pub fn command(&self, index: usize) {
        if let Some(counter) = self.commands.get(index) {
            counter.add(1);
        }
    }

    /// Counts a command that the table does not know.
    pub fn unknown_command(&self) {
        self.unknown.add(1);
    }

    /// Counts an error of our own by its first word.
    pub fn error(&self, label: &str) {
        let index = ERRORS.iter().position(|known| *known == label).unwrap_or(0);
        if let Some(counter) = self.errors.get(index) {
            counter.add(1);
        }
    }

    /// Counts a value that breaks a rule of the schema, refused or not.
    pub fn violation(&self, rule: &str) {
        if let Some((_, counter)) = self.rules.iter().find(|(known, _)| *known == rule) {
            counter.add(1);
        }
    }

    /// Counts a profile that was checked, by what became of it.
    pub fn load(&self, outcome: &str) {
        let index = LOADS.iter().position(|known| *known == outcome);
        if let Some(counter) = index.and_then(|index| self.loads.get(index)) {
            counter.add(1);
        }
    }

    /// Counts a profile of which Redis and the database differ, by how they do.
    pub fn drift(&self, class: &str) {
        let index = DRIFTS.iter().position(|known| *known == class);
        if let Some(counter) = index.and_then(|index| self.drifts.get(index)) {
            counter.add(1);
        }
    }

    /// Counts a log-in.
    pub fn login(&self, accepted: bool) {
        if let Some(counter) = self.logins.get(usize::from(accepted)) {
            counter.add(1);
        }
    }

    /// Returns how many commands were seen.
    #[must_use]
    pub fn commands_seen(&self) -> u64 {
        self.commands.iter().map(Counter::value).sum::<u64>() + self.unknown.value()
    }

    /// Writes everything that is counted here.
    pub fn expose(&self, text: &mut Exposition) {
        text.family("profile_proxy_commands_total", "counter", "Commands by name.");
        let known = self.command_names.iter().zip(&self.commands);
        for (name, counter) in known.filter(|(_, counter)| counter.value() > 0) {
            text.labelled("command", name, counter.value());
        }
        text.labelled("command", "other", self.unknown.value());
        text.family("profile_proxy_errors_total", "counter", "Errors of the proxy's own.");
        for (label, counter) in ERRORS.iter().zip(&self.errors) {
            text.labelled("code", label, counter.value());
        }
        let help = "Values that broke a rule of the schema, refused or only counted.";
        text.family("profile_proxy_schema_violations_total", "counter", help);
        for (rule, counter) in &self.rules {
            text.labelled("rule", rule, counter.value());
        }
        text.family("profile_proxy_logins_total", "counter", "Log-ins by outcome.");
        for (outcome, counter) in ["refused", "accepted"].iter().zip(&self.logins) {
            text.labelled("outcome", outcome, counter.value());
        }
        for (name, help, counter) in [
            ("connections_total", "Connections accepted.", &self.connections),
            ("connections_rejected_total", "Connections turned away.", &self.connections_rejected),
            ("connections_cut_total", "Connections cut as slow readers.", &self.connections_cut),
            ("connections_idle_total", "Connections cut as idle.", &self.connections_idle),
            ("reads_paused_total", "Clients not read, too much under way.", &self.reads_paused),
            ("received_bytes_total", "Bytes read from clients.", &self.bytes_in),
            ("protocol_errors_total", "Requests that were not RESP.", &self.protocol_errors),
            ("journal_slowed_batches_total", "Batches slowed as it fills.", &self.batches_slowed),
            ("upstream_links_total", "Links made to the upstream.", &self.upstream_links),
            ("upstream_batches_total", "Writes to the upstream.", &self.upstream_batches),
            ("epochs_total", "Changes and restarts of Redis that were noticed.", &self.epochs),
            ("warmed_profiles_total", "Profiles checked by the warm-up.", &self.warmed),
            ("cache_hits_total", "Reads answered from memory.", &self.cache_hits),
            ("cache_misses_total", "Reads of profiles not in memory.", &self.cache_misses),
            ("cache_evictions_total", "Profiles that made room.", &self.cache_evictions),
            ("cache_invalidations_total", "Changes Redis told of.", &self.cache_invalidations),
        ] {
            text.counter(name, help, counter.value());
        }
        for (name, help, gauge) in [
            ("connections_open", "Connections that are open.", &self.connections_open),
            ("upstream_up", "Whether the upstream is there.", &self.upstream_up),
            ("in_doubt_changes", "Writes whose outcome is unknown.", &self.in_doubt),
            ("checking", "Whether profiles are checked before they are used.", &self.checking),
            ("checked_profiles", "Profiles checked in this epoch.", &self.checked),
            ("cache_on", "Whether reads are answered from memory.", &self.cache_on),
            ("cache_bytes", "Memory of the profiles that are kept.", &self.cache_bytes),
            ("cache_entries", "Profiles that are kept.", &self.cache_entries),
        ] {
            text.gauge(name, help, gauge.value());
        }
        let round_trip = &self.upstream_round_trip;
        let buckets = round_trip.buckets.each_ref().map(Counter::value);
        let help = "From the sending of a batch to its last reply.";
        text.histogram("upstream_round_trip_seconds", help, &buckets, round_trip.nanos.value());
        text.family("profile_proxy_loads_total", "counter", "Profiles checked, by outcome.");
        for (outcome, counter) in LOADS.iter().zip(&self.loads) {
            text.labelled("outcome", outcome, counter.value());
        }
        let help = "Profiles of which Redis and the database were compared.";
        text.counter("compared_profiles_total", help, self.examined.value());
        let help = "Comparisons that found a difference, by class.";
        text.family("profile_proxy_drift_total", "counter", help);
        for (class, counter) in DRIFTS.iter().zip(&self.drifts) {
            text.labelled("class", class, counter.value());
        }
        let buckets = self.load_wait.buckets.each_ref().map(Counter::value);
        let help = "How long commands wait for their profiles to be checked.";
        text.histogram("load_wait_seconds", help, &buckets, self.load_wait.nanos.value());
    }
}

/// The text format of Prometheus, version 0.0.4.
#[derive(Debug, Default)]
pub struct Exposition {
    text: String,
    name: String,
}

impl Exposition {
    /// Returns the text.
    #[must_use]
    pub fn finish(self) -> String {
        self.text
    }

    /// Begins a family of this full name.
    pub fn family(&mut self, name: &str, kind: &str, help: &str) {
        name.clone_into(&mut self.name);
        let _ = writeln!(self.text, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    /// Adds a sample with one label to the family.
    pub fn labelled(&mut self, label: &str, value: &str, sample: u64) {
        let _ = writeln!(self.text, "{}{{{label}=\"{value}\"}} {sample}", self.name);
    }

    /// Adds a counter; `profile_proxy_` goes in front of the name.
    pub fn counter(&mut self, name: &str, help: &str, sample: u64) {
        self.family(&format!("profile_proxy_{name}"), "counter", help);
        let _ = writeln!(self.text, "{} {sample}", self.name);
    }

    /// Adds a gauge; `profile_proxy_` goes in front of the name.
    pub fn gauge(&mut self, name: &str, help: &str, sample: u64) {
        self.family(&format!("profile_proxy_{name}"), "gauge", help);
        let _ = writeln!(self.text, "{} {sample}", self.name);
    }

    /// Adds a gauge in seconds.
    pub fn seconds(&mut self, name: &str, help: &str, sample: f64) {
        self.family(&format!("profile_proxy_{name}"), "gauge", help);
        let _ = writeln!(self.text, "{} {sample}", self.name);
    }

    /// Adds a histogram whose bucket `i` counts what took less than `2^i` microseconds and no
    /// less than the bucket before.
    pub fn histogram(&mut self, name: &str, help: &str, buckets: &[u64], nanos: u64) {
        self.family(&format!("profile_proxy_{name}"), "histogram", help);
        let name = &self.name;
        let mut total = 0;
        for (power, bucket) in buckets.iter().enumerate() {
            total += bucket;
            let bound = (1_u64 << power) as f64 / 1e6;
            if power + 1 < buckets.len() {
                let _ = writeln!(self.text, "{name}_bucket{{le=\"{bound}\"}} {total}");
            }
        }
        let _ = writeln!(self.text, "{name}_bucket{{le=\"+Inf\"}} {total}");
        let _ = writeln!(self.text, "{name}_sum {}\n{name}_count {total}", nanos as f64 / 1e9);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_text_is_what_prometheus_reads() {
        let metrics = Metrics::new(vec!["get", "hset"], &["range"]);
        metrics.command(1);
        metrics.error("SCHEMA");
        metrics.violation("range");
        metrics.upstream_round_trip.observe(Duration::from_micros(3));
        let mut text = Exposition::default();
        metrics.expose(&mut text);
        let text = text.finish();
        for line in [
            "profile_proxy_commands_total{command=\"hset\"} 1",
            "profile_proxy_errors_total{code=\"SCHEMA\"} 1",
            "profile_proxy_schema_violations_total{rule=\"range\"} 1",
            "profile_proxy_upstream_round_trip_seconds_bucket{le=\"0.000002\"} 0",
            "profile_proxy_upstream_round_trip_seconds_bucket{le=\"0.000004\"} 1",
            "profile_proxy_upstream_round_trip_seconds_bucket{le=\"+Inf\"} 1",
            "profile_proxy_upstream_round_trip_seconds_count 1",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is missing in\n{text}");
        }
    }
}
