//! Reads the configuration file with all its faults.
//!
//! A reader that stops at the first fault makes a person start the program as often as there are
//! faults. So a faulty entry is reported, cut out of the tree, and the rest is read again, until
//! what is left reads cleanly.

use std::ops::Range;
use std::time::Duration;

use serde::Deserialize;
use serde::de::{Deserializer, Error as _};

use super::fault::{Fault, Origin};
use super::limits::Limits;
use super::tree::{Side, Step, Tree};
use crate::auth::UserConfig;
use crate::schema::KindConfig;
use crate::{cache, dispatch::Scripts, hydrate, journal, sinks};

/// Faults beyond this many are not looked for: the file is something else altogether.
const FAULTS_MAX: usize = 100;

/// The whole file as it is written. Every part has a default, so that only what is written can be
/// wrong here; what is missing is found by the part that owns the section. A section without a
/// default would be cut out as a whole where one of its settings is missing.
#[derive(Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub(super) struct Document {
    pub(super) listen: Option<String>,
    pub(super) admin: Option<String>,
    pub(super) upstream: Option<String>,
    pub(super) database: Option<String>,
    pub(super) data_dir: Option<String>,
    #[serde(deserialize_with = "duration")]
    pub(super) shutdown_timeout: Option<Duration>,
    #[serde(deserialize_with = "duration")]
    pub(super) upstream_timeout: Option<Duration>,
    #[serde(deserialize_with = "duration")]
    pub(super) ack_timeout: Option<Duration>,
    pub(super) log: Option<String>,
    pub(super) workers: Option<usize>,
    pub(super) scripts: Scripts,
    pub(super) allow_debug: bool,
    pub(super) limits: Limits,
    pub(super) journal: journal::Config,
    pub(super) sink: sinks::Config,
    pub(super) hydrate: hydrate::Config,
    pub(super) cache: cache::Config,
    pub(super) user: Vec<UserConfig>,
    pub(super) profile: Vec<KindConfig>,
}

fn duration<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Duration>, D::Error> {
    let text = String::deserialize(deserializer)?;
    let parsed = humantime::parse_duration(&text);
    parsed.map(Some).map_err(|_| D::Error::custom("expected a duration such as \"10s\""))
}

/// A file that is being judged: what could be read of it, and the faults so far.
pub(super) struct Draft<'i> {
    pub(super) document: Document,
    pub(super) faults: Vec<Fault>,
    name: String,
    tree: Tree<'i>,
    /// Lines on which nothing can be trusted because of a fault of syntax.
    broken_lines: Vec<Range<usize>>,
}

impl<'i> Draft<'i> {
    /// Reads a file's text; `name` is what the file is called in faults.
    pub(super) fn read(name: &str, text: &'i str) -> Self {
        // A byte order mark is no column.
        let text = text.strip_prefix('\u{feff}').unwrap_or(text);
        let (tree, found) = Tree::parse(text);
        let mut draft = Self {
            document: Document::default(),
            faults: Vec::new(),
            name: name.to_owned(),
            tree,
            broken_lines: Vec::new(),
        };
        let mut broken = Vec::new();
        for (span, message) in &found {
            let offset = span.as_ref().map_or(0, |span| span.start);
            broken.push(lines_lost(text, draft.tree.line_and_column(offset).0));
            draft.add_at(offset, syntax_sentence(message));
        }
        draft.broken_lines = broken;
        draft.read_document();
        draft
    }

    fn read_document(&mut self) {
        while self.faults.len() < FAULTS_MAX {
            let (span, message) = match self.tree.read::<Document>() {
                Ok(document) => {
                    self.document = document;
                    return;
                }
                Err(found) => found,
            };
            let Some(span) = span else {
                self.add_at(0, sentence(&message));
                return;
            };
            self.add_at(span.start, sentence(&message));
            if !self.tree.cut(&span) {
                return;
            }
        }
    }

    /// Reports a fault about what an entry means.
    pub(super) fn add(&mut self, path: &[Step<'_>], side: Side, text: String) {
        if let Some(offset) = self.tree.place(path, side) {
            self.add_at(offset, text);
        }
    }

    fn add_at(&mut self, offset: usize, text: String) {
        let (line, column) = self.tree.line_and_column(offset);
        if !self.broken_lines.iter().any(|lines| lines.contains(&line)) {
            let origin = Origin::Place { file: self.name.clone(), line, column };
            self.faults.push(Fault { origin, text });
        }
    }
}

/// Returns the lines that a fault of syntax makes worthless: its own, and below a broken header
/// those up to the next header, because it is unknown which section they belong to.
fn lines_lost(text: &str, line: usize) -> Range<usize> {
    let is_header = |text: &&str| text.trim_start().starts_with('[');
    let mut from_here = text.lines().skip(line - 1);
    let lost = match from_here.next() {
        Some(first) if is_header(&first) => from_here.take_while(|text| !is_header(text)).count(),
        _ => 0,
    };
    line..line + 1 + lost
}

fn syntax_sentence(message: &str) -> String {
    // A text without quotes is read as a number that goes wrong.
    let hint = if message.starts_with("invalid float") { "; texts need quotes" } else { "" };
    format!("this is not TOML: {}{hint}", one_line(message))
}

/// Turns a message of the deserializer into a sentence that helps, without the offending value,
/// which could be a password in the wrong place.
fn sentence(message: &str) -> String {
    let expected = |rest: &str| match rest.rsplit_once("expected ") {
        Some((_, "a string")) => "a text in quotes".to_owned(),
        Some((_, "u64" | "usize" | "u32")) => "a whole number that is not negative".to_owned(),
        Some((_, "a sequence")) => "a list".to_owned(),
        Some((_, "a map")) => "a table".to_owned(),
        Some((_, other)) => other.to_owned(),
        None => "something else".to_owned(),
    };
    let text = if let Some(rest) = message.strip_prefix("unknown field `") {
        match rest.split_once("`, ") {
            Some((name, known)) => {
                let known = known.strip_prefix("expected ").unwrap_or(known);
                let known = known.strip_prefix("one of ").unwrap_or(known);
                format!("there is no setting `{name}` here; known are {known}")
            }
            None => "there is no such setting here".to_owned(),
        }
    } else if message.starts_with("invalid ") || message.starts_with("unknown variant ") {
        format!("expected {}", expected(message))
    } else {
        message.to_owned()
    };
    one_line(&text)
}

fn one_line(text: &str) -> String {
    text.chars().map(|each| if each.is_control() { ' ' } else { each }).collect()
}
