//! The typed view of each profile kind, as SQL for both databases.
//!
//! Owns the names of views and columns and the casts. A value that does not fit its column is
//! null; reading a view never fails because of what a client wrote. Does no I/O.

use std::collections::HashSet;
use std::fmt::Write as _;

use super::encoding::name_text;

/// PostgreSQL cuts identifiers behind this many bytes.
const NAME_BYTES_MAX: usize = 63;

/// The type of a declared field, as far as a column needs it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ColumnType {
    /// Strings and enumerations: text.
    Text,
    /// A 64-bit integer.
    Integer,
    /// A double precision number.
    Float,
    /// `true`, `1`, `false` or `0`.
    Boolean,
    /// Unix seconds: `timestamptz` in PostgreSQL, text like `2026-01-31 23:59:59` in SQLite (UTC).
    Timestamp,
}

/// A profile kind with its declared fields, in declared order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KindColumns {
    /// The name of the kind; its view is called `<kind>_profiles`.
    pub kind: String,
    /// The declared fields. A field that bears the name of a fixed column takes it, and the fixed
    /// one (`key`, `updated_at`, `expires_at`) is then called `profile_key` and so on.
    pub columns: Vec<(String, ColumnType)>,
}

/// One view: its name and the statement that creates it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct View {
    pub name: String,
    pub quoted_name: String,
    pub create: String,
}

struct Names {
    key: String,
    fields: Vec<String>,
    updated_at: String,
    expires_at: String,
}

impl KindColumns {
    /// The view in PostgreSQL, with the casts of the migration.
    pub(super) fn postgres_view(&self) -> View {
        let names = self.names();
        let mut select = format!("key as {}", identifier(&names.key));
        for ((field, column_type), name) in self.columns.iter().zip(&names.fields) {
            let field = literal(&name_text(field.as_bytes()));
            let value = match column_type {
                ColumnType::Text => format!("to_plain_text(fields, {field})"),
                ColumnType::Integer => format!("to_integer(fields ->> {field})"),
                ColumnType::Float => format!("to_float(fields ->> {field})"),
                ColumnType::Boolean => format!("to_boolean(fields ->> {field})"),
                ColumnType::Timestamp => format!("to_time(fields ->> {field})"),
            };
            push_column(&mut select, &value, name);
        }
        push_column(&mut select, "updated_at", &names.updated_at);
        push_column(&mut select, "expires_at", &names.expires_at);
        let live = "deleted_at is null and (expires_at is null or expires_at > now())";
        self.view(&select, "profiles", live)
    }

    /// The view in SQLite, which has neither regular expressions nor functions of ours.
    pub(super) fn sqlite_view(&self) -> View {
        let names = self.names();
        let mut inner = "key, kind, updated_at, expires_at, deleted_at".to_owned();
        let mut select = format!("key as {}", identifier(&names.key));
        for (place, ((field, column_type), name)) in
            self.columns.iter().zip(&names.fields).enumerate()
        {
            let raw = format!("field_{place}");
            push_column(&mut inner, &sqlite_value(&name_text(field.as_bytes())), &raw);
            push_column(&mut select, &sqlite_cast(*column_type, &raw), name);
        }
        let updated_at = "datetime(updated_at / 1000, 'unixepoch')";
        let expires_at = "datetime(expires_at / 1000, 'unixepoch')";
        push_column(&mut select, updated_at, &names.updated_at);
        push_column(&mut select, expires_at, &names.expires_at);
        let live = "deleted_at is null and (expires_at is null \
             or expires_at > (julianday('now') - 2440587.5) * 86400000.0)";
        self.view(&select, &format!("(select {inner} from profiles)"), live)
    }

    fn view(&self, select: &str, from: &str, live: &str) -> View {
        let name = cut(&format!("{}_profiles", self.kind)).to_owned();
        let quoted_name = identifier(&name);
        let kind = literal(&self.kind);
        // SQLite stores the statement from the name on behind exactly these two words.
        let create = format!(
            "CREATE VIEW {quoted_name} as select {select} from {from} \
             where kind = {kind} and {live}"
        );
        View { name, quoted_name, create }
    }

    fn names(&self) -> Names {
        let mut taken = HashSet::new();
        let fields = self.columns.iter().map(|(field, _)| free_name(field, &mut taken)).collect();
        let mut fixed = |name: &str| {
            let name = if taken.contains(name) { format!("profile_{name}") } else { name.into() };
            free_name(&name, &mut taken)
        };
        Names {
            fields,
            key: fixed("key"),
            updated_at: fixed("updated_at"),
            expires_at: fixed("expires_at"),
        }
    }
}

fn push_column(select: &mut String, value: &str, name: &str) {
    // Writing to a string does not fail.
    let _ = write!(select, ", {value} as {}", identifier(name));
}

/// Cuts a name to what PostgreSQL keeps of it, at a character.
fn cut(name: &str) -> &str {
    let mut end = name.len().min(NAME_BYTES_MAX);
    while !name.is_char_boundary(end) {
        end -= 1;
    }
    name.get(..end).unwrap_or_default()
}

/// A column name that no other column has, also where case does not count.
fn free_name(wanted: &str, taken: &mut HashSet<String>) -> String {
    let mut name = cut(wanted).to_owned();
    let mut number = 2;
    while !taken.insert(name.to_lowercase()) {
        let suffix = format!("_{number}");
        let mut stem = cut(wanted).to_owned();
        while stem.len() + suffix.len() > NAME_BYTES_MAX {
            stem.pop();
        }
        name = format!("{stem}{suffix}");
        number += 1;
    }
    name
}

fn identifier(name: &str) -> String {
    format!("\"{}\"", name.replace('\0', "_").replace('"', "\"\""))
}

fn literal(text: &str) -> String {
    format!("'{}'", text.replace('\0', "_").replace('\'', "''"))
}

/// The text of a field in SQLite; null for bytes that are not text.
fn sqlite_value(field: &str) -> String {
    let plain = |c: char| !matches!(c, '"' | '\\') && !c.is_control();
    if field.chars().all(plain) {
        let path = literal(&format!("$.\"{field}\""));
        return format!(
            "case json_type(fields, {path}) when 'object' then null \
             else cast(json_extract(fields, {path}) as text) end"
        );
    }
    // A path cannot name such a field, so the fields are searched.
    let field = literal(field);
    format!(
        "(select cast(each.value as text) from json_each(fields) as each \
         where each.key = {field} and each.type <> 'object')"
    )
}

fn sqlite_cast(column_type: ColumnType, raw: &str) -> String {
    let number =
        format!("json_valid({raw}) and {raw} not glob '*[^-+.0-9eE]*' and length({raw}) <= 255");
    match column_type {
        ColumnType::Text => raw.to_owned(),
        ColumnType::Integer => {
            // The digits without sign and leading zeros, compared as text of equal length, say
            // whether the number fits; a cast would silently take the nearest one instead.
            let digits = format!(
                "(case when substr({raw}, 1, 1) in ('-', '+') then substr({raw}, 2) else {raw} end)"
            );
            let largest = format!(
                "(case when substr({raw}, 1, 1) = '-' then '9223372036854775808' \
                 else '9223372036854775807' end)"
            );
            let short = format!("length(ltrim({digits}, '0'))");
            format!(
                "case when {digits} <> '' and {digits} not glob '*[^0-9]*' \
                 and length({digits}) <= 19 \
                 and ({short} < 19 or ltrim({digits}, '0') <= {largest}) \
                 then cast({raw} as integer) end"
            )
        }
        ColumnType::Float => format!(
            "case when {number} and abs(cast({raw} as real)) <= 1.7976931348623157e308 \
             then cast({raw} as real) end"
        ),
        ColumnType::Boolean => format!(
            "case lower({raw}) when 'true' then 1 when '1' then 1 \
             when 'false' then 0 when '0' then 0 end"
        ),
        ColumnType::Timestamp => format!(
            "case when {number} and cast({raw} as real) between -62135596800 and 253402300799 \
             then datetime(cast({raw} as real), 'unixepoch') end"
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names_of(columns: &[&str]) -> Names {
        let columns = columns.iter().map(|name| ((*name).to_owned(), ColumnType::Text)).collect();
        KindColumns { kind: "user".into(), columns }.names()
    }

    #[test]
    fn a_declared_field_takes_its_name_from_a_fixed_column() {
        let names = names_of(&["updated_at", "key", "profile_key"]);
        assert_eq!(names.fields, ["updated_at", "key", "profile_key"]);
        assert_eq!(names.updated_at, "profile_updated_at");
        assert_eq!(names.key, "profile_key_2");
        assert_eq!(names.expires_at, "expires_at");
    }

    #[test]
    fn names_that_a_database_takes_for_one_stay_apart() {
        let long = "é".repeat(40);
        let names = names_of(&["a", "A", &long, &format!("{long}x")]);
        let all: HashSet<_> = names.fields.iter().map(|name| name.to_lowercase()).collect();
        assert_eq!(all.len(), 4);
        assert!(names.fields.iter().all(|name| name.len() <= NAME_BYTES_MAX), "{:?}", names.fields);
    }

    #[test]
    fn quotes_in_names_cannot_leave_their_quotes() {
        let columns = vec![("a\"b'c".to_owned(), ColumnType::Text)];
        let kinds = KindColumns { kind: "x\"'".into(), columns };
        let create = kinds.postgres_view().create;
        assert!(create.contains(r#"to_plain_text(fields, 'a"b''c') as "a""b'c""#), "{create}");
        assert!(create.contains(r#"kind = 'x"'''"#), "{create}");
    }
}
