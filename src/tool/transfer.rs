//! `backfill` and `warm`: what one side lacks is brought to it, through a running proxy.
//!
//! Neither keeps a note of how far it has come. `backfill` passes over what the database knows
//! already, a page of keys with one query, so a run that was cut off goes on where it was, and one
//! that has ended does nothing. `warm` has the proxy compare each profile, which changes nothing
//! where Redis has it.

use std::{collections::BTreeSet, io::Write, time::Duration};

use tokio::time::{Instant, sleep};

use super::{
    ToolError, TransferTool, Verdict,
    checks::{Checks, Outcome, Said},
    link::{ProxyLink, proxy_address},
    progress::Progress,
};
use crate::{
    config::Config,
    schema::Schema,
    sinks::{Database, Listing},
};

const ADOPT: &[&[u8]] = &[b"REPAIR", b"DATABASE", b"MISSING"];
const FILL: &[&[u8]] = &[b"REPAIR", b"REDIS", b"MISSING"];
const PAGE_ROWS: u32 = 500;
/// How long it is waited at the end until the database has what was recorded.
const DELIVERY_PATIENCE: Duration = Duration::from_secs(60);
const DELIVERY_PAUSE: Duration = Duration::from_millis(100);

/// What has become of the profiles.
#[derive(Debug, Default)]
struct Tally {
    /// Recorded, or brought to Redis.
    brought: u64,
    /// Done by the proxy's own check after a change of Redis.
    checked: u64,
    /// Nothing had to be done.
    there: u64,
    /// Nothing was done, because that would change what is there.
    left: u64,
    /// Redis need not have it: the kind has `cache_ttl`.
    cached: u64,
    refused: u64,
    refusals: BTreeSet<String>,
}

impl Tally {
    fn count(&mut self, (_, said): Outcome) {
        match said {
            Said::Same => self.there += 1,
            Said::Checked => self.checked += 1,
            Said::Drift(found) if found.done == "nothing" => self.left += 1,
            Said::Drift(_) => self.brought += 1,
            Said::Refused(text) => {
                self.refused += 1;
                self.refusals.insert(text);
            }
        }
    }

    fn print(&self, brought: &str, out: &mut impl Write) -> Result<Verdict, ToolError> {
        let Self { checked, there, left, cached, refused, .. } = self;
        writeln!(out, "{} profiles {brought}, {there} were there already", self.brought)?;
        if *checked > 0 {
            writeln!(out, "{checked} checked by the proxy, as each is after a change of Redis")?;
        }
        if *cached > 0 {
            let why = "Redis gets each when somebody asks for it";
            writeln!(out, "{cached} are of kinds with cache_ttl and were passed over: {why}")?;
        }
        if *left > 0 {
            writeln!(out, "{left} differ and were left as they are; 'verify' lists them")?;
        }
        for text in &self.refusals {
            writeln!(out, "the proxy says: {text}")?;
        }
        if *refused > 0 {
            writeln!(out, "{refused} could not be seen to; run this again")?;
        }
        Ok(if *refused > 0 { Verdict::Unsure } else { Verdict::Fine })
    }
}

/// Records every profile in Redis that the database has never heard of.
pub(super) async fn backfill(
    config: &Config,
    database: &Database,
    tool: &TransferTool,
    out: &mut impl Write,
) -> Result<Verdict, ToolError> {
    let address = proxy_address(config, tool.url())?;
    let mut link = ProxyLink::connect(&address).await?;
    let mut listing = Listing::of(database, &config.sink);
    let schema = Schema::compile(&config.profile).map_err(|_| ToolError::Configuration)?;
    let mut checks = Checks::open(&address, ADOPT, false, tool.rate).await?;
    let mut progress = Progress::begin("backfill", link.key_count().await?);
    let mut tally = Tally::default();
    loop {
        let run_id = link.info("server", "run_id").await?;
        for kind in schema.kinds() {
            let (glob, mut cursor) = (kind.pattern().glob(), b"0".to_vec());
            loop {
                let (next, mut keys) = link.scan(&cursor, &glob).await?;
                keys.retain(|key| kind.pattern().matches(key));
                progress.advance(keys.len() as u64);
                let unknown = unknown(&mut listing, keys, &mut tally).await?;
                for key in unknown {
                    checks.submit(key).await?.into_iter().for_each(|said| tally.count(said));
                }
                cursor = next;
                if cursor == b"0" {
                    break;
                }
            }
        }
        // A walk that goes on in another Redis passes keys over.
        if link.info("server", "run_id").await? == run_id {
            break;
        }
    }
    while let Some(outcome) = checks.next().await? {
        tally.count(outcome);
    }
    progress.end();
    let verdict = tally.print("recorded", out)?;
    await_delivery(&mut link, out).await?;
    Ok(verdict)
}

/// Leaves out the keys that the database knows, deleted ones too.
async fn unknown(
    listing: &mut Listing,
    mut keys: Vec<Vec<u8>>,
    tally: &mut Tally,
) -> Result<Vec<Vec<u8>>, ToolError> {
    if keys.is_empty() {
        return Ok(keys);
    }
    let names: Vec<&[u8]> = keys.iter().map(Vec::as_slice).collect();
    let recorded = listing.recorded(&names).await?;
    let known: BTreeSet<Vec<u8>> = recorded.into_iter().map(|row| row.key).collect();
    let before = keys.len();
    keys.retain(|key| !known.contains(key));
    tally.there += (before - keys.len()) as u64;
    Ok(keys)
}

/// Waits until the database has what is in the journal now.
async fn await_delivery(link: &mut ProxyLink, out: &mut impl Write) -> Result<(), ToolError> {
    let until = Instant::now() + DELIVERY_PATIENCE;
    let mut goal = None;
    loop {
        let mut number = async |name| {
            let text = link.info("profile_proxy", name).await?;
            Ok::<u64, ToolError>(text.and_then(|text| text.trim().parse().ok()).unwrap_or(0))
        };
        let written = number("profile_proxy_journal_written").await?;
        let delivered = written.saturating_sub(number("profile_proxy_undelivered").await?);
        let goal = *goal.get_or_insert(written);
        if delivered >= goal {
            return Ok(writeln!(out, "the database has all of it")?);
        }
        if Instant::now() > until {
            let left = goal - delivered;
            return Ok(writeln!(out, "{left} records are still on their way to the database")?);
        }
        sleep(DELIVERY_PAUSE).await;
    }
}

/// Brings every profile of the database to Redis that Redis lacks.
pub(super) async fn warm(
    config: &Config,
    database: &Database,
    tool: &TransferTool,
    out: &mut impl Write,
) -> Result<Verdict, ToolError> {
    let address = proxy_address(config, tool.url())?;
    let mut listing = Listing::of(database, &config.sink);
    let schema = Schema::compile(&config.profile).map_err(|_| ToolError::Configuration)?;
    let mut checks = Checks::open(&address, FILL, false, tool.rate).await?;
    let mut progress = Progress::begin("warm", listing.live_count().await?);
    let mut tally = Tally::default();
    let mut from = Some(String::new());
    while let Some(text) = from {
        let (keys, next) = listing.live_keys(&text, PAGE_ROWS).await?;
        progress.advance(keys.len() as u64);
        // Rows of a kind that is not configured any more stay in the database.
        for key in keys.into_iter().filter(|key| schema.kind_of(key).is_some()) {
            if schema.is_cached(&key) {
                tally.cached += 1;
                continue;
            }
            checks.submit(key).await?.into_iter().for_each(|said| tally.count(said));
        }
        from = next;
    }
    while let Some(outcome) = checks.next().await? {
        tally.count(outcome);
    }
    progress.end();
    tally.print("brought to Redis", out)
}
