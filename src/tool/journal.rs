//! `journal inspect` and `journal export`: what is in the files, without their lock.
//!
//! Both work beside a running proxy and on a damaged journal; what lies behind damage is read as
//! far as whole segments go.

use std::{collections::BTreeMap, io::Write, path::PathBuf, time::Duration};

use comfy_table::{Table, presets::UTF8_BORDERS_ONLY};
use serde_json::json;

use super::{RecordChoice, ToolError, Verdict, dead_letters::key_bytes, progress, record};
use crate::{
    config::Config,
    journal::{Inspection, Inspector, SegmentReport, Sequence},
    sinks::Position,
};

/// How long a look at the journal waits for the database.
const DATABASE_PATIENCE: Duration = Duration::from_secs(3);
/// What a record takes on disk beside its payload, for the progress bar.
const RECORD_OVERHEAD_BYTES: u64 = 16;

/// Prints what the journal holds.
pub(super) fn inspect(
    config: &Config,
    choice: &RecordChoice,
    out: &mut impl Write,
) -> Result<Verdict, ToolError> {
    let mut types = BTreeMap::<&str, (u64, u64)>::new();
    let inspection = walk(config, choice, |_, payload| {
        let (count, bytes) = types.entry(record::type_of(payload)).or_default();
        *count += 1;
        *bytes += payload.len() as u64;
        Ok(())
    })?;
    let position = position(config, &inspection);
    if choice.json {
        print_json(&inspection, &types, position, out)?;
    } else {
        print_tables(&inspection, &types, position, out)?;
    }
    out.flush()?;
    Ok(verdict(&inspection))
}

/// Prints the records.
pub(super) fn export(
    config: &Config,
    choice: &RecordChoice,
    out: &mut impl Write,
) -> Result<Verdict, ToolError> {
    let inspection = walk(config, choice, |sequence, payload| {
        Ok(writeln!(out, "{}", record::json(sequence, payload))?)
    })?;
    out.flush()?;
    complain(&inspection);
    Ok(verdict(&inspection))
}

/// Goes through the chosen records.
fn walk(
    config: &Config,
    choice: &RecordChoice,
    mut visit: impl FnMut(u64, &[u8]) -> Result<(), ToolError>,
) -> Result<Inspection, ToolError> {
    let directory = config.data_dir.join("journal");
    if !directory.is_dir() {
        return Err(ToolError::NoJournal(directory));
    }
    let key = choice.key.as_deref().map(key_bytes).transpose()?;
    let inspector = Inspector::open(&directory)?;
    let bar = progress(inspector.bytes(), "bytes");
    let from = Sequence(choice.from);
    let inspection = inspector.run(from, |sequence, payload| {
        bar.inc(RECORD_OVERHEAD_BYTES + payload.len() as u64);
        let is_chosen = key.as_ref().is_none_or(|key| record::concerns(payload, key));
        match is_chosen && sequence >= from {
            true => visit(sequence.0, payload),
            false => Ok(()),
        }
    })?;
    bar.finish_and_clear();
    match inspection.segments.is_empty() {
        true => Err(ToolError::NoJournal(directory)),
        false => Ok(inspection),
    }
}

/// How far the database is, if it can be reached; `None` also where it has got nothing yet.
fn position(config: &Config, inspection: &Inspection) -> Option<Position> {
    let source = inspection.source.as_deref()?;
    let runtime = super::new_runtime().ok()?;
    runtime.block_on(async {
        let database = super::open_database(config).ok()?;
        let looked = tokio::time::timeout(DATABASE_PATIENCE, database.position(source)).await;
        looked.ok()?.ok()?
    })
}

fn verdict(inspection: &Inspection) -> Verdict {
    let mut faults = inspection.segments.iter().filter_map(|segment| segment.fault.as_ref());
    match faults.any(|fault| !fault.is_unfinished_end) {
        true => Verdict::Wanting,
        false => Verdict::Fine,
    }
}

fn fault_text(segment: &SegmentReport) -> Option<String> {
    let fault = segment.fault.as_ref()?;
    let what = if fault.is_unfinished_end { "unfinished end" } else { "DAMAGE" };
    Some(format!("{what} at byte {}: {}", fault.offset, fault.reason))
}

#[expect(clippy::print_stderr, reason = "standard output is for the records")]
fn complain(inspection: &Inspection) {
    for segment in &inspection.segments {
        if let Some(text) = fault_text(segment) {
            eprintln!("{}: {text}", segment.file.display());
        }
    }
}

fn file_name(segment: &SegmentReport) -> String {
    segment.file.file_name().map(PathBuf::from).unwrap_or_default().display().to_string()
}

fn print_tables(
    inspection: &Inspection,
    types: &BTreeMap<&str, (u64, u64)>,
    position: Option<Position>,
    out: &mut impl Write,
) -> Result<(), ToolError> {
    writeln!(out, "journal {}", inspection.source.as_deref().unwrap_or("of unknown id"))?;
    let mut table = Table::new();
    table.load_style(UTF8_BORDERS_ONLY);
    table.set_header(["segment", "bytes", "records", "first", "last", "state"]);
    for segment in &inspection.segments {
        let last = segment.last.map_or("-".to_owned(), |last| last.to_string());
        table.add_row([
            file_name(segment),
            segment.bytes.to_string(),
            segment.records.to_string(),
            segment.base.to_string(),
            last,
            fault_text(segment).unwrap_or_else(|| "whole".to_owned()),
        ]);
    }
    writeln!(out, "{table}")?;
    for (name, (count, bytes)) in types {
        writeln!(out, "{count} records of type {name}, {bytes} bytes")?;
    }
    match position {
        Some(Position { sequence, fence }) => {
            let left = last(inspection).saturating_sub(sequence);
            writeln!(
                out,
                "the database has everything up to {sequence} (delivery {fence}); \
                 records that wait for it: {left}"
            )?;
        }
        None => writeln!(out, "how far the database is cannot be said: it has no cursor of it")?,
    }
    Ok(())
}

fn print_json(
    inspection: &Inspection,
    types: &BTreeMap<&str, (u64, u64)>,
    position: Option<Position>,
    out: &mut impl Write,
) -> Result<(), ToolError> {
    let segments = inspection.segments.iter().map(|segment| {
        json!({
            "file": file_name(segment),
            "bytes": segment.bytes,
            "records": segment.records,
            "first": segment.base.0,
            "last": segment.last.map(|last| last.0),
            "fault": segment.fault.as_ref().map(|fault| json!({
                "offset": fault.offset,
                "reason": fault.reason,
                "damage": !fault.is_unfinished_end,
            })),
        })
    });
    let types = types.iter().map(|(name, (count, bytes))| {
        ((*name).to_owned(), json!({ "records": count, "bytes": bytes }))
    });
    let report = json!({
        "source": inspection.source,
        "segments": segments.collect::<Vec<_>>(),
        "types": types.collect::<serde_json::Map<_, _>>(),
        "last": last(inspection),
        "cursor": position.map(|position| position.sequence),
        "fence": position.map(|position| position.fence),
    });
    Ok(writeln!(out, "{report}")?)
}

fn last(inspection: &Inspection) -> u64 {
    let last = inspection.segments.iter().rev().find_map(|segment| segment.last);
    last.map_or(0, |last| last.0)
}
