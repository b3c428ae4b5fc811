//! The configuration file as a tree whose every part knows its place.
//!
//! Two things need the places: telling where a fault is, and cutting a faulty entry out so that
//! the rest can be read and judged too. What was cut is remembered, so that nobody complains
//! that it is missing.

use std::ops::Range;

use serde::de::DeserializeOwned;
use toml::Spanned;
use toml::de::{DeTable, DeValue, Deserializer};

/// One step from a table to an entry or from a list to an element.
#[derive(Clone, Copy, Debug)]
pub(super) enum Step<'a> {
    Key(&'a str),
    Element(usize),
}

/// Says which end of an entry a fault is about.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub(super) enum Side {
    Key,
    Value,
}

/// A document of which faulty entries can be cut out.
pub(super) struct Tree<'i> {
    text: &'i str,
    root: Spanned<DeTable<'i>>,
    /// Cut entries: the place of their table and their key.
    cut: Vec<(Range<usize>, String)>,
}

/// A fault that was found while reading: its byte range if it has one, and the reader's message.
pub(super) type Found = (Option<Range<usize>>, String);

impl<'i> Tree<'i> {
    /// Parses a text; what can be parsed of a damaged text is there, with all errors of syntax.
    pub(super) fn parse(text: &'i str) -> (Self, Vec<Found>) {
        let (root, errors) = DeTable::parse_recoverable(text);
        let found = errors.iter().map(|error| (error.span(), error.message().to_owned()));
        let found = found.collect();
        (Self { text, root, cut: Vec::new() }, found)
    }

    /// Reads the tree as a `T`.
    ///
    /// # Errors
    /// Returns the first fault.
    pub(super) fn read<T: DeserializeOwned>(&self) -> Result<T, Found> {
        T::deserialize(Deserializer::from(self.root.clone()))
            .map_err(|error| (error.span(), error.message().to_owned()))
    }

    /// Cuts out the smallest entry that holds the range; false if there is none.
    pub(super) fn cut(&mut self, span: &Range<usize>) -> bool {
        let at = self.root.span();
        cut_from(self.root.get_mut(), &at, span, &mut self.cut)
    }

    /// Tells whether an entry of this name was cut out of the table at this place.
    fn was_cut(&self, table: &Range<usize>, key: &str) -> bool {
        self.cut.iter().any(|(place, name)| place == table && name == key)
    }

    /// Finds the place of an entry, or of the nearest table above it where it is not written.
    /// Returns nothing if the entry was cut out, which has been reported then.
    pub(super) fn place(&self, path: &[Step<'_>], side: Side) -> Option<usize> {
        let mut key_at = self.root.span().start;
        let mut value_at = self.root.span();
        let mut value: Option<&DeValue<'_>> = None;
        for step in path {
            let table = match value {
                None => Some(self.root.get_ref()),
                Some(DeValue::Table(table)) => Some(table),
                Some(_) => None,
            };
            let next = match (step, table, value) {
                (Step::Key(key), Some(table), _) => {
                    if self.was_cut(&value_at, key) {
                        return None;
                    }
                    table.get_key_value(*key).map(|(key, value)| (key.span().start, value))
                }
                (Step::Element(at), _, Some(DeValue::Array(list))) => {
                    list.get(*at).map(|element| (element.span().start, element))
                }
                _ => None,
            };
            let Some((key, found)) = next else { return Some(value_at.start) };
            key_at = key;
            value_at = found.span();
            value = Some(found.get_ref());
        }
        Some(if side == Side::Key { key_at } else { value_at.start })
    }

    /// Converts a byte offset into line and column, both from 1; columns count characters.
    pub(super) fn line_and_column(&self, offset: usize) -> (usize, usize) {
        line_and_column(self.text, offset)
    }
}

/// Converts a byte offset into line and column, both from 1; columns count characters.
pub(super) fn line_and_column(text: &str, offset: usize) -> (usize, usize) {
    let offset = (0..=offset.min(text.len())).rev().find(|&at| text.is_char_boundary(at));
    let before = &text[..offset.unwrap_or(0)];
    let line_start = before.rfind('\n').map_or(0, |at| at + 1);
    (before.matches('\n').count() + 1, before[line_start..].chars().count() + 1)
}

/// Cuts below one table; entries deeper down come first, so that as little as possible is lost.
fn cut_from(
    table: &mut DeTable<'_>,
    table_at: &Range<usize>,
    span: &Range<usize>,
    cut: &mut Vec<(Range<usize>, String)>,
) -> bool {
    for (_, value) in table.iter_mut() {
        if cut_below(value, span, cut) {
            return true;
        }
    }
    let holds = |place: Range<usize>| place.start <= span.start && span.end <= place.end;
    let entry = table.iter().find(|(key, value)| holds(key.span()) || holds(value.span()));
    let Some(key) = entry.map(|(key, _)| key.get_ref().clone().into_owned()) else { return false };
    table.remove(key.as_str());
    cut.push((table_at.clone(), key));
    true
}

fn cut_below(
    value: &mut Spanned<DeValue<'_>>,
    span: &Range<usize>,
    cut: &mut Vec<(Range<usize>, String)>,
) -> bool {
    let at = value.span();
    match value.get_mut() {
        DeValue::Table(table) => cut_from(table, &at, span, cut),
        DeValue::Array(list) => list.iter_mut().any(|element| cut_below(element, span, cut)),
        _ => false,
    }
}
