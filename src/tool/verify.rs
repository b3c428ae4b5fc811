//! `verify`: every profile of both sides compared, drift listed by class, age and field, and mended
//! if that is asked for.
//!
//! What is on its way to the database counts as there, so writes that go on are no drift. Keys and
//! names of fields are shown, values never.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{IsTerminal as _, Write},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use comfy_table::{Table, presets::UTF8_BORDERS_ONLY};
use tokio::{
    signal::unix::{SignalKind, signal},
    time::sleep,
};

use super::{
    RepairedSide, ToolError, Verdict, VerifyTool,
    checks::{Checks, Found, Outcome, Said},
    link::{ProxyLink, proxy_address},
    progress::Progress,
    shown, shown_time,
};
use crate::{
    config::Config,
    schema::Schema,
    sinks::{Database, DeadLetters, Listing, name_text},
};

const PAGE_ROWS: u32 = 500;
/// Drift that is listed together, after one query for its age.
const LISTED_ROWS: usize = 200;
/// Names of fields that are counted for each class.
const NAMES_MAX: usize = 100;

/// Runs once, or again and again until it is told to stop; the verdict is that of the last run.
pub(super) async fn run(
    config: &Config,
    database: &Database,
    tool: &VerifyTool,
    out: &mut impl Write,
) -> Result<Verdict, ToolError> {
    if !tool.watch {
        return Round::run(config, database, tool, out).await;
    }
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut verdict = Verdict::Unsure;
    let watching = async {
        loop {
            writeln!(out, "{}", shown_time(now_ms()))?;
            verdict = match Round::run(config, database, tool, out).await {
                Ok(verdict) => verdict,
                Err(ToolError::Output(error)) => return Err(ToolError::Output(error)),
                // The proxy or the database may be there again the next time.
                Err(error) => {
                    writeln!(out, "not compared: {error}")?;
                    Verdict::Unsure
                }
            };
            out.flush()?;
            sleep(*tool.interval).await;
        }
    };
    let ended: Result<(), ToolError> = tokio::select! {
        ended = watching => ended,
        _ = terminate.recv() => Ok(()),
        _ = interrupt.recv() => Ok(()),
    };
    ended.map(|()| verdict)
}

/// One walk over both sides.
struct Round<'a, W> {
    listing: Listing,
    checks: Checks,
    progress: Progress,
    out: &'a mut W,
    compared: u64,
    refused: BTreeMap<String, u64>,
    waiting: Vec<(Vec<u8>, Found)>,
    classes: BTreeMap<String, Class>,
}

/// The drift of one class.
#[derive(Debug, Default)]
struct Class {
    count: u64,
    mended: u64,
    oldest_ms: Option<u64>,
    newest_ms: Option<u64>,
    fields: BTreeMap<String, u64>,
}

impl<'a, W: Write> Round<'a, W> {
    async fn run(
        config: &Config,
        database: &Database,
        tool: &VerifyTool,
        out: &'a mut W,
    ) -> Result<Verdict, ToolError> {
        let address = proxy_address(config, tool.transfer.url())?;
        let schema = Schema::compile(&config.profile).map_err(|_| ToolError::Configuration)?;
        let repair: &[&[u8]] = match tool.repair {
            None => &[],
            Some(RepairedSide::Redis) => &[b"REPAIR", b"REDIS"],
            Some(RepairedSide::Database) => &[b"REPAIR", b"DATABASE"],
        };
        let mut link = ProxyLink::connect(&address).await?;
        let mut listing = Listing::of(database, &config.sink);
        let total = listing.live_count().await?;
        let mut round = Self {
            listing,
            checks: Checks::open(&address, repair, true, tool.transfer.rate).await?,
            progress: Progress::begin("verify", total),
            out,
            compared: 0,
            refused: BTreeMap::new(),
            waiting: Vec::new(),
            classes: BTreeMap::new(),
        };
        round.walk_rows(&schema).await?;
        round.walk_redis(&schema, &mut link).await?;
        while let Some(outcome) = round.checks.next().await? {
            round.take(outcome).await?;
        }
        round.list().await?;
        let quarantined = DeadLetters::of(database).keys().await?.len();
        round.conclude(quarantined)
    }

    /// Every profile that the database has.
    async fn walk_rows(&mut self, schema: &Schema) -> Result<(), ToolError> {
        let mut from = Some(String::new());
        while let Some(text) = from {
            let (keys, next) = self.listing.live_keys(&text, PAGE_ROWS).await?;
            self.progress.advance(keys.len() as u64);
            for key in keys.into_iter().filter(|key| schema.kind_of(key).is_some()) {
                self.submit(key).await?;
            }
            from = next;
        }
        Ok(())
    }

    /// Every profile in Redis that the database does not have.
    async fn walk_redis(&mut self, schema: &Schema, link: &mut ProxyLink) -> Result<(), ToolError> {
        loop {
            let run_id = link.info("server", "run_id").await?;
            for kind in schema.kinds() {
                let (glob, mut cursor) = (kind.pattern().glob(), b"0".to_vec());
                loop {
                    let (next, mut keys) = link.scan(&cursor, &glob).await?;
                    keys.retain(|key| kind.pattern().matches(key));
                    let names: Vec<&[u8]> = keys.iter().map(Vec::as_slice).collect();
                    let recorded = self.listing.recorded(&names).await?;
                    let live = recorded.into_iter().filter(|row| !row.deleted);
                    let live: BTreeSet<Vec<u8>> = live.map(|row| row.key).collect();
                    for key in keys.into_iter().filter(|key| !live.contains(key)) {
                        self.progress.advance(1);
                        self.submit(key).await?;
                    }
                    cursor = next;
                    if cursor == b"0" {
                        break;
                    }
                }
            }
            // A walk that goes on in another Redis passes keys over.
            if link.info("server", "run_id").await? == run_id {
                return Ok(());
            }
        }
    }

    async fn submit(&mut self, key: Vec<u8>) -> Result<(), ToolError> {
        match self.checks.submit(key).await? {
            Some(outcome) => self.take(outcome).await,
            None => Ok(()),
        }
    }

    async fn take(&mut self, (key, said): Outcome) -> Result<(), ToolError> {
        match said {
            Said::Same | Said::Checked => self.compared += 1,
            Said::Refused(text) => *self.refused.entry(text).or_default() += 1,
            Said::Drift(found) => {
                self.compared += 1;
                self.waiting.push((key, found));
                if self.waiting.len() >= LISTED_ROWS {
                    self.list().await?;
                }
            }
        }
        Ok(())
    }

    /// Lists the drift that was found, with its age: when the database recorded the profile last.
    async fn list(&mut self) -> Result<(), ToolError> {
        let waiting = std::mem::take(&mut self.waiting);
        if waiting.is_empty() {
            return Ok(());
        }
        let keys: Vec<&[u8]> = waiting.iter().map(|(key, _)| key.as_slice()).collect();
        let recorded = self.listing.recorded(&keys).await?;
        let recorded: BTreeMap<Vec<u8>, u64> =
            recorded.into_iter().map(|row| (row.key, row.updated_ms)).collect();
        let mut rows = Vec::with_capacity(waiting.len());
        for (key, found) in &waiting {
            let at_ms = recorded.get(key).copied();
            self.classes.entry(found.class.clone()).or_default().add(found, at_ms);
            let fields: Vec<_> = found.fields.iter().map(|name| shown(&name_text(name))).collect();
            let age = at_ms.map_or("never".to_owned(), age);
            let key = shown(&name_text(key));
            rows.push([found.class.clone(), key, age, found.done.clone(), fields.join(",")]);
        }
        let out = &mut self.out;
        Ok(self.progress.aside(|| print(rows, out))?)
    }

    /// Prints what was found, class by class, and says what it amounts to.
    fn conclude(self, quarantined: usize) -> Result<Verdict, ToolError> {
        self.progress.end();
        let out = self.out;
        let drifted: u64 = self.classes.values().map(|class| class.count).sum();
        let mended: u64 = self.classes.values().map(|class| class.mended).sum();
        for (name, class) in &self.classes {
            writeln!(out, "{name}: {class}")?;
        }
        for (text, count) in &self.refused {
            writeln!(out, "{count} could not be compared; the proxy says: {text}")?;
        }
        if quarantined > 0 {
            let advice = "the rows lack changes that were set aside; see 'dead-letters list'";
            writeln!(out, "{quarantined} profiles in quarantine: {advice}")?;
        }
        writeln!(out, "{} profiles compared, {drifted} differ, {mended} mended", self.compared)?;
        Ok(match () {
            () if !self.refused.is_empty() => Verdict::Unsure,
            () if drifted > mended || quarantined > 0 => Verdict::Wanting,
            () => Verdict::Fine,
        })
    }
}

impl Class {
    fn add(&mut self, found: &Found, at_ms: Option<u64>) {
        self.count += 1;
        self.mended += u64::from(found.done != "nothing");
        if let Some(at_ms) = at_ms {
            self.oldest_ms = Some(self.oldest_ms.map_or(at_ms, |oldest| oldest.min(at_ms)));
            self.newest_ms = Some(self.newest_ms.map_or(at_ms, |newest| newest.max(at_ms)));
        }
        for name in &found.fields {
            let name = shown(&name_text(name));
            if self.fields.len() < NAMES_MAX || self.fields.contains_key(&name) {
                *self.fields.entry(name).or_default() += 1;
            }
        }
    }
}

impl std::fmt::Display for Class {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(formatter, "{}", self.count)?;
        if let (Some(oldest), Some(newest)) = (self.oldest_ms, self.newest_ms) {
            let (oldest, newest) = (age(oldest), age(newest));
            match newest == oldest {
                true => write!(formatter, ", recorded {oldest} ago")?,
                false => write!(formatter, ", recorded {newest} to {oldest} ago")?,
            }
        }
        if !self.fields.is_empty() {
            let fields: Vec<String> =
                self.fields.iter().map(|(name, count)| format!("{name} {count}")).collect();
            write!(formatter, ", by field: {}", fields.join(", "))?;
        }
        Ok(())
    }
}

/// A table for people; for anything else one line each, with tabs.
fn print(rows: Vec<[String; 5]>, out: &mut impl Write) -> std::io::Result<()> {
    if !std::io::stdout().is_terminal() {
        return rows.iter().try_for_each(|row| writeln!(out, "{}", row.join("\t")));
    }
    let mut table = Table::new();
    table.load_style(UTF8_BORDERS_ONLY);
    table.set_header(["class", "key", "recorded ago", "done", "fields"]);
    for row in rows {
        table.add_row(row);
    }
    writeln!(out, "{table}")
}

/// How long ago something was, in whole seconds.
fn age(at_ms: u64) -> String {
    let seconds = now_ms().saturating_sub(at_ms) / 1000;
    humantime::format_duration(Duration::from_secs(seconds)).to_string().replace(' ', "")
}

fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_class_is_told_with_its_ages_and_fields() {
        let mut class = Class::default();
        let found = |fields: &[&str], done: &str| Found {
            class: "fields_differ".into(),
            done: done.into(),
            fields: fields.iter().map(|name| name.as_bytes().to_vec()).collect(),
        };
        class.add(&found(&["a", "b"], "nothing"), Some(now_ms() - 60_500));
        class.add(&found(&["a"], "overwritten"), Some(now_ms() - 5_500));
        class.add(&found(&["a\x1b[2J"], "nothing"), None);
        let told = class.to_string();
        assert!(told.starts_with("3, recorded 5s to 1m ago, by field: a 2, "), "{told}");
        assert!(told.ends_with("b 1") && !told.contains('\x1b'), "{told}");
        assert_eq!(class.mended, 1);
    }
}
