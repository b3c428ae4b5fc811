//! `dead-letters`: looking at the records that the database has refused, and ending their wait.
//!
//! What order and safety ask for is in `sinks`; this chooses, asks and prints.

use std::{collections::BTreeSet, io::Write};

use comfy_table::{Table, presets::UTF8_BORDERS_ONLY};

use super::{
    DeadLetterTool, LetterChoice, ToolError, Verdict, progress, record, shown, shown_time,
};
use crate::{
    profile::Entry,
    sinks::{Database, DeadLetters, Retried, StoredLetter, name_bytes, name_text},
};

const PAGE_ROWS: u32 = 500;

/// Runs one of the subcommands.
pub(super) async fn run(
    database: &Database,
    tool: &DeadLetterTool,
    out: &mut impl Write,
) -> Result<Verdict, ToolError> {
    let mut letters = DeadLetters::of(database);
    match tool {
        DeadLetterTool::List { key, show_values } => {
            list(&mut letters, key.as_deref(), *show_values, out).await
        }
        DeadLetterTool::Retry(choice) => retry(&mut letters, choice, out).await,
        DeadLetterTool::Drop(choice) => drop_chosen(&mut letters, choice, out).await,
    }
}

async fn list(
    letters: &mut DeadLetters,
    key: Option<&str>,
    show_values: bool,
    out: &mut impl Write,
) -> Result<Verdict, ToolError> {
    let key = key.map(key_bytes).transpose()?;
    let mut header = vec!["source", "sequence", "key", "set aside at", "why"];
    if show_values {
        header.push("change");
    }
    let (mut after, mut count, mut keys) = ((String::new(), 0), 0_u64, BTreeSet::new());
    loop {
        // A table per page: memory stays bounded, whatever has piled up.
        let page = letters.page(key.as_deref(), None, (&after.0, after.1), PAGE_ROWS).await?;
        let Some(last) = page.last() else { break };
        after = (last.source.clone(), last.sequence);
        count += page.len() as u64;
        let mut table = Table::new();
        table.load_style(UTF8_BORDERS_ONLY).set_header(header.clone());
        for letter in page {
            table.add_row(row(&letter, show_values));
            keys.extend(letter.key);
        }
        writeln!(out, "{table}")?;
    }
    writeln!(out, "{count} dead letters of {} keys", keys.len())?;
    Ok(Verdict::Fine)
}

fn row(letter: &StoredLetter, show_values: bool) -> Vec<String> {
    let mut row = vec![
        letter.source.clone(),
        letter.sequence.to_string(),
        letter.key.as_deref().map_or("unknown".to_owned(), |key| shown(&name_text(key))),
        shown_time(letter.at_ms),
        shown(&letter.error),
    ];
    if show_values {
        row.push(match Entry::decode(&letter.record) {
            Ok(Entry::Change(change)) => format!("{{{}}}", record::effect_json(&change)),
            _ => format!("{} bytes", letter.record.len()),
        });
    }
    row
}

async fn retry(
    letters: &mut DeadLetters,
    choice: &LetterChoice,
    out: &mut impl Write,
) -> Result<Verdict, ToolError> {
    let keys = match choice {
        LetterChoice { key: Some(key), .. } => vec![key_bytes(key)?],
        LetterChoice { sequence: Some(sequence), .. } => {
            vec![one_letter(letters, *sequence).await?.key.ok_or(ToolError::Keyless)?]
        }
        LetterChoice { .. } => letters.keys().await?,
    };
    let bar = progress(keys.len() as u64, "keys");
    let (mut applied, mut done, mut refused) = (0, 0_u64, 0_u64);
    for key in &keys {
        match letters.retry(key).await? {
            Retried::Applied(0) if choice.key.is_some() => return Err(ToolError::NoLetter),
            Retried::Applied(count) => {
                applied += count;
                done += 1;
            }
            Retried::Refused(error) => {
                refused += 1;
                let key = shown(&name_text(key));
                bar.suspend(|| writeln!(out, "{key}: still refused, nothing changed: {error}"))?;
            }
        }
        bar.inc(1);
    }
    bar.finish_and_clear();
    writeln!(out, "{applied} records of {done} keys applied, {refused} keys still refused")?;
    Ok(if refused == 0 { Verdict::Fine } else { Verdict::Wanting })
}

async fn drop_chosen(
    letters: &mut DeadLetters,
    choice: &LetterChoice,
    out: &mut impl Write,
) -> Result<Verdict, ToolError> {
    let count = match choice {
        LetterChoice { key: Some(key), .. } => letters.drop_key(&key_bytes(key)?).await?,
        LetterChoice { sequence: Some(sequence), .. } => {
            let letter = one_letter(letters, *sequence).await?;
            let count = letters.drop_one(&letter.source, letter.sequence).await?;
            let key = letter.key.as_deref();
            let others = letters.page(key, None, ("", 0), PAGE_ROWS).await?;
            if key.is_some() && !others.is_empty() {
                writeln!(out, "its key stays in quarantine: later records of it are set aside")?;
            }
            count
        }
        LetterChoice { .. } => letters.drop_all().await?,
    };
    if count == 0 && !choice.all {
        return Err(ToolError::NoLetter);
    }
    writeln!(out, "{count} records dropped: row and history miss these changes")?;
    if count > 0 {
        writeln!(out, "what Redis holds is as it was: 'verify' lists it, '--repair' mends it")?;
    }
    Ok(Verdict::Fine)
}

async fn one_letter(letters: &mut DeadLetters, sequence: u64) -> Result<StoredLetter, ToolError> {
    let mut found = letters.page(None, Some(sequence), ("", 0), 2).await?;
    match found.len() {
        0 | 1 => found.pop().ok_or(ToolError::NoLetter),
        _ => Err(ToolError::Ambiguous),
    }
}

/// The bytes of a key as it is shown: itself, or tagged base64.
pub(super) fn key_bytes(key: &str) -> Result<Vec<u8>, ToolError> {
    name_bytes(key).map_err(|_| ToolError::Key)
}
