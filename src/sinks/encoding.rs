//! How the bytes of Redis become text and JSON that a database can hold, and back.
//!
//! Redis holds any bytes; PostgreSQL's `text` and `jsonb` hold neither NUL nor what is not UTF-8.
//! Everything that is representable is stored as itself, so that people can query it; the rest is
//! tagged base64. The mapping is one to one: decoding gives the exact bytes back.
//!
//! ```text
//! value := "text"  |  {"$base64": "..."}        a tagged value is an object, so no text collides
//! name  := text    |  "$base64:..."             keys, field names; a name that starts with the
//!                                               tag by itself is encoded too
//! ```

use std::borrow::Cow;
use std::collections::BTreeMap;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::ser::{Serialize, SerializeMap, SerializeSeq, Serializer};
use serde_json::Value;
use thiserror::Error;

const NAME_TAG: &str = "$base64:";
const VALUE_TAG: &str = "$base64";

/// A row holds something that this program never writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum EncodingError {
    /// What follows the tag is not base64.
    #[error("a stored name or value is tagged as base64 and is not base64")]
    Base64,
    /// The fields are not one JSON object of strings.
    #[error("the stored fields are not a JSON object of texts")]
    Fields,
}

/// The fields of a profile as exact bytes.
pub(super) type Fields = BTreeMap<Vec<u8>, Vec<u8>>;

/// The text of these bytes, if a database can hold it.
fn representable(bytes: &[u8]) -> Option<&str> {
    std::str::from_utf8(bytes).ok().filter(|_| memchr::memchr(0, bytes).is_none())
}

/// Gives a key or field name its text.
pub fn name_text(name: &[u8]) -> Cow<'_, str> {
    match representable(name).filter(|text| !text.starts_with(NAME_TAG)) {
        Some(text) => Cow::Borrowed(text),
        None => Cow::Owned(format!("{NAME_TAG}{}", STANDARD.encode(name))),
    }
}

/// Gives the text of a key or field name its bytes back.
///
/// # Errors
/// When the text is tagged and what follows is not base64.
pub fn name_bytes(text: &str) -> Result<Vec<u8>, EncodingError> {
    match text.strip_prefix(NAME_TAG) {
        Some(encoded) => STANDARD.decode(encoded).map_err(|_| EncodingError::Base64),
        None => Ok(text.as_bytes().to_vec()),
    }
}

struct Name<'a>(&'a [u8]);

impl Serialize for Name<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&name_text(self.0))
    }
}

struct Stored<'a>(&'a [u8]);

impl Serialize for Stored<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if let Some(text) = representable(self.0) {
            return serializer.serialize_str(text);
        }
        let mut map = serializer.serialize_map(Some(1))?;
        map.serialize_entry(VALUE_TAG, &STANDARD.encode(self.0))?;
        map.end()
    }
}

/// Fields as one JSON object; of two fields with one name the database keeps the later.
pub(super) struct Object<I>(pub I);

impl<'a, I> Serialize for Object<I>
where
    I: Iterator<Item = (&'a [u8], &'a [u8])> + Clone,
{
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        for (name, value) in self.0.clone() {
            map.serialize_entry(&Name(name), &Stored(value))?;
        }
        map.end()
    }
}

/// Field names as one JSON array.
pub(super) struct Array<I>(pub I);

impl<'a, I: Iterator<Item = &'a [u8]> + Clone> Serialize for Array<I> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut list = serializer.serialize_seq(None)?;
        for name in self.0.clone() {
            list.serialize_element(&Name(name))?;
        }
        list.end()
    }
}

/// Writes fields as one JSON object; of two fields with one name the database keeps the later.
pub fn fields_json<'a, I>(fields: I) -> String
where
    I: Iterator<Item = (&'a [u8], &'a [u8])> + Clone,
{
    serde_json::to_string(&Object(fields)).expect("names are text and values never fail")
}

/// Like [`fields_json`], at the end of what is there.
pub(super) fn write_fields<'a, I>(out: &mut Vec<u8>, fields: I)
where
    I: Iterator<Item = (&'a [u8], &'a [u8])> + Clone,
{
    serde_json::to_writer(out, &Object(fields)).expect("names are text and values never fail");
}

/// Writes field names as one JSON array.
pub fn names_json<'a, I: Iterator<Item = &'a [u8]> + Clone>(names: I) -> String {
    serde_json::to_string(&Array(names)).expect("names are text")
}

/// Reads the fields of a row back into exact bytes.
///
/// People do edit rows: a JSON number or boolean counts as its text, and null as no field.
///
/// # Errors
/// When the JSON is not an object of such values.
pub(super) fn fields_bytes(json: &str) -> Result<Fields, EncodingError> {
    let object: serde_json::Map<String, Value> =
        serde_json::from_str(json).map_err(|_| EncodingError::Fields)?;
    let mut fields = Fields::new();
    for (name, value) in object {
        if let Some(value) = value_bytes(value)? {
            fields.insert(name_bytes(&name)?, value);
        }
    }
    Ok(fields)
}

/// Reads the names of a JSON array back into exact bytes.
///
/// # Errors
/// When the JSON is not an array of names.
pub(super) fn names_bytes(json: &str) -> Result<Vec<Vec<u8>>, EncodingError> {
    let names: Vec<String> = serde_json::from_str(json).map_err(|_| EncodingError::Fields)?;
    names.iter().map(|name| name_bytes(name)).collect()
}

fn value_bytes(value: Value) -> Result<Option<Vec<u8>>, EncodingError> {
    match value {
        Value::String(text) => Ok(Some(text.into_bytes())),
        Value::Number(number) => Ok(Some(number.to_string().into_bytes())),
        Value::Bool(truth) => Ok(Some(truth.to_string().into_bytes())),
        Value::Null => Ok(None),
        Value::Object(tagged) if tagged.len() == 1 => match tagged.get(VALUE_TAG) {
            Some(Value::String(encoded)) => {
                STANDARD.decode(encoded).map(Some).map_err(|_| EncodingError::Base64)
            }
            _ => Err(EncodingError::Fields),
        },
        Value::Object(_) | Value::Array(_) => Err(EncodingError::Fields),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// Bytes around everything that could go wrong: tags, NUL, broken UTF-8, quotes, and noise.
    fn hostile() -> impl Strategy<Value = Vec<u8>> {
        let pieces = prop_oneof![
            Just(b"$base64:".to_vec()),
            Just(b"$base64".to_vec()),
            Just(b"{\"$base64\": \"AA==\"}".to_vec()),
            Just(vec![0]),
            Just(vec![0xc3]),
            Just(vec![0xed, 0xa0, 0x80]),
            Just("é\u{10ffff}\u{feff}\"\\\n".as_bytes().to_vec()),
            proptest::collection::vec(any::<u8>(), 0..6),
            "[a-z:$=]{0,6}".prop_map(String::into_bytes),
        ];
        proptest::collection::vec(pieces, 0..4).prop_map(|pieces| pieces.concat())
    }

    proptest! {
        #[test]
        fn every_name_comes_back_exactly(name in hostile()) {
            let text = name_text(&name);
            prop_assert!(!text.contains('\0'));
            prop_assert_eq!(name_bytes(&text), Ok(name.clone()));
        }

        #[test]
        fn different_names_have_different_texts(one in hostile(), other in hostile()) {
            prop_assert_eq!(one == other, name_text(&one) == name_text(&other));
        }

        #[test]
        fn every_set_of_fields_comes_back_exactly(
            fields in proptest::collection::btree_map(hostile(), hostile(), 0..6)
        ) {
            let json = fields_json(fields.iter().map(|(n, v)| (&n[..], &v[..])));
            prop_assert!(!json.contains("\\u0000"), "jsonb refuses an escaped NUL");
            prop_assert_eq!(fields_bytes(&json), Ok(fields));
        }
    }

    #[test]
    fn what_people_can_read_is_stored_as_itself() {
        let fields = [(&b"name"[..], "Zoë".as_bytes()), (b"a:b", b"")];
        assert_eq!(fields_json(fields.into_iter()), r#"{"name":"Zoë","a:b":""}"#);
        assert_eq!(name_text(b"user:EMP001"), "user:EMP001");
    }

    #[test]
    fn what_cannot_be_text_is_tagged() {
        let fields = [(&b"$base64:x"[..], &b"a\0"[..])];
        let json = fields_json(fields.into_iter());
        assert_eq!(json, r#"{"$base64:JGJhc2U2NDp4":{"$base64":"YQA="}}"#);
        assert_eq!(names_json([&b"\xff"[..], b"a"].into_iter()), r#"["$base64:/w==","a"]"#);
    }

    #[test]
    fn an_edited_row_reads_as_text_and_a_broken_one_is_refused() {
        let fields = fields_bytes(r#"{"n": 5, "b": true, "gone": null}"#).unwrap();
        assert_eq!(fields.get(&b"n"[..]).map(Vec::as_slice), Some(&b"5"[..]));
        assert_eq!(fields.get(&b"b"[..]).map(Vec::as_slice), Some(&b"true"[..]));
        assert_eq!(fields.len(), 2);
        assert_eq!(fields_bytes(r#"{"n": ["x"]}"#), Err(EncodingError::Fields));
        assert_eq!(fields_bytes(r#"{"n": {"$base64": "?"}}"#), Err(EncodingError::Base64));
        assert_eq!(name_bytes("$base64:?"), Err(EncodingError::Base64));
        assert_eq!(fields_bytes("[]"), Err(EncodingError::Fields));
    }
}
