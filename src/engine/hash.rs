//! The fields of one profile, in the order in which they came.
//!
//! Redis keeps a small hash as a list (`hash-max-listpack-entries`, 128) and searches it from the
//! front; so does this. A larger one gets an index, stays indexed, and may put a new field where a
//! removed one was; Redis promises no order there either.
//!
//! ```text
//! one field := name value        one allocation; the name's length stands beside it
//! ```

use super::slab::{Named, Slab};

/// Fields that are searched from the front; from the next one on there is an index.
const LISTED_FIELDS_MAX: usize = 128;
/// The longest name or value of a hash that Redis calls a listpack (`hash-max-listpack-value`).
const LISTPACK_VALUE_BYTES_MAX: usize = 64;
/// Capacity that a shrunk value may keep.
const SPARE_BYTES_MAX: usize = 64;

/// A field: its name and its value.
pub(super) struct Field {
    bytes: Vec<u8>,
    name_bytes: usize,
}

impl Field {
    fn new(name: &[u8], value: &[u8]) -> Self {
        let mut bytes = Vec::with_capacity(name.len() + value.len());
        bytes.extend_from_slice(name);
        bytes.extend_from_slice(value);
        Self { bytes, name_bytes: name.len() }
    }

    pub(super) fn value(&self) -> &[u8] {
        self.bytes.get(self.name_bytes..).unwrap_or_default()
    }

    fn replace(&mut self, value: &[u8]) {
        self.bytes.truncate(self.name_bytes);
        let needed = self.name_bytes + value.len();
        if self.bytes.capacity() > 2 * needed + SPARE_BYTES_MAX {
            self.bytes.shrink_to(needed);
        }
        self.bytes.reserve_exact(value.len());
        self.bytes.extend_from_slice(value);
    }

    fn bytes(&self) -> usize {
        size_of::<Self>() + self.bytes.capacity()
    }
}

impl Named for Field {
    fn name(&self) -> &[u8] {
        self.bytes.get(..self.name_bytes).unwrap_or_default()
    }
}

enum Container {
    Listed(Vec<Field>),
    Indexed(Slab<Field>),
}

/// All fields of a profile.
pub(super) struct Fields {
    container: Container,
    bytes: usize,
    listpack: bool,
}

impl Fields {
    /// Makes room for as many fields as one command brings.
    pub(super) fn with_capacity(fields: usize) -> Self {
        let listed = Vec::with_capacity(fields.min(LISTED_FIELDS_MAX));
        Self { container: Container::Listed(listed), bytes: 0, listpack: true }
    }

    pub(super) fn len(&self) -> usize {
        match &self.container {
            Container::Listed(listed) => listed.len(),
            Container::Indexed(slab) => slab.len(),
        }
    }

    /// Estimates the memory that the fields take.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    /// Tells whether Redis would hold these fields as a listpack.
    pub(super) fn is_listpack(&self) -> bool {
        self.listpack
    }

    /// Tells whether the fields are so few that one scan step returns them all.
    pub(super) fn is_listed(&self) -> bool {
        matches!(self.container, Container::Listed(_))
    }

    pub(super) fn value(&self, name: &[u8]) -> Option<&[u8]> {
        let field = match &self.container {
            Container::Listed(listed) => listed.iter().find(|field| field.name() == name),
            Container::Indexed(slab) => slab.find(name).and_then(|slot| slab.at(slot)),
        };
        field.map(Field::value)
    }

    /// Sets a field and tells whether it is new.
    pub(super) fn set(&mut self, name: &[u8], value: &[u8]) -> bool {
        self.listpack &= name.len().max(value.len()) <= LISTPACK_VALUE_BYTES_MAX;
        let known = match &mut self.container {
            Container::Listed(listed) => listed.iter_mut().find(|field| field.name() == name),
            Container::Indexed(slab) => slab.find(name).and_then(|slot| slab.at_mut(slot)),
        };
        if let Some(field) = known {
            let before = field.bytes();
            field.replace(value);
            self.bytes = self.bytes + field.bytes() - before;
            return false;
        }
        let field = Field::new(name, value);
        self.bytes += field.bytes();
        match &mut self.container {
            Container::Listed(listed) => listed.push(field),
            Container::Indexed(slab) => drop(slab.insert(field)),
        }
        if self.len() > LISTED_FIELDS_MAX {
            self.index();
        }
        true
    }

    /// Removes a field and tells whether it was there.
    pub(super) fn remove(&mut self, name: &[u8]) -> bool {
        let removed = match &mut self.container {
            Container::Listed(listed) => {
                let place = listed.iter().position(|field| field.name() == name);
                place.map(|place| listed.remove(place))
            }
            Container::Indexed(slab) => slab.find(name).and_then(|slot| slab.remove(slot)),
        };
        self.bytes -= removed.as_ref().map_or(0, Field::bytes);
        removed.is_some()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Field> {
        let (listed, slab) = match &self.container {
            Container::Listed(listed) => (listed.as_slice(), None),
            Container::Indexed(slab) => (&[][..], Some(slab)),
        };
        listed.iter().chain(slab.into_iter().flat_map(Slab::iter))
    }

    /// Returns how many numbers [`Self::at`] takes; some of them may have no field.
    pub(super) fn slots(&self) -> usize {
        match &self.container {
            Container::Listed(listed) => listed.len(),
            Container::Indexed(slab) => slab.slots(),
        }
    }

    pub(super) fn at(&self, slot: usize) -> Option<&Field> {
        match &self.container {
            Container::Listed(listed) => listed.get(slot),
            Container::Indexed(slab) => slab.at(slot),
        }
    }

    /// Returns any field.
    pub(super) fn pick(&self, random: &mut super::random::Random) -> Option<&Field> {
        match &self.container {
            Container::Listed(listed) => listed.get(random.below(listed.len())),
            Container::Indexed(slab) => slab.pick(random, |_| true),
        }
    }

    fn index(&mut self) {
        self.listpack = false;
        if let Container::Listed(listed) = &mut self.container {
            let mut slab = Slab::new();
            for field in listed.drain(..) {
                slab.insert(field);
            }
            self.container = Container::Indexed(slab);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(fields: &Fields) -> Vec<&[u8]> {
        fields.iter().map(Field::name).collect()
    }

    #[test]
    fn fields_stay_in_the_order_in_which_they_came() {
        let mut fields = Fields::with_capacity(2);
        for name in [b"c", b"a", b"b"] {
            assert!(fields.set(name, b"1"));
        }
        assert!(!fields.set(b"a", b"longer than before"));
        assert!(fields.remove(b"c") && !fields.remove(b"c"));
        assert!(fields.set(b"c", b"2"));
        assert_eq!(names(&fields), [b"a", b"b", b"c"]);
        assert_eq!(fields.value(b"a"), Some(&b"longer than before"[..]));
        assert_eq!(fields.value(b"d"), None);
    }

    #[test]
    fn the_hundred_and_twenty_ninth_field_brings_an_index_for_good() {
        let mut fields = Fields::with_capacity(0);
        let named: Vec<String> = (0..129).map(|name| name.to_string()).collect();
        for (at, name) in named.iter().enumerate() {
            assert_eq!(fields.is_listed(), at <= 128);
            fields.set(name.as_bytes(), b"v");
        }
        assert!(!fields.is_listed() && !fields.is_listpack());
        assert_eq!(names(&fields), named.iter().map(String::as_bytes).collect::<Vec<_>>());
        for name in named.iter().skip(1) {
            assert!(fields.remove(name.as_bytes()));
        }
        assert!(!fields.is_listed());
        assert_eq!((fields.len(), fields.value(b"0")), (1, Some(&b"v"[..])));
    }

    #[test]
    fn a_value_of_the_same_length_stays_where_it_is() {
        let mut fields = Fields::with_capacity(1);
        fields.set(b"name", b"12345678");
        let before = fields.value(b"name").unwrap().as_ptr();
        fields.set(b"name", b"87654321");
        fields.set(b"name", b"1");
        assert_eq!(fields.value(b"name").unwrap().as_ptr(), before);
    }

    #[test]
    fn memory_of_a_long_value_is_given_back_and_the_estimate_follows() {
        let mut fields = Fields::with_capacity(1);
        fields.set(b"name", b"short");
        let before = fields.bytes();
        fields.set(b"name", &[b'x'; 100_000]);
        assert!(fields.bytes() > 100_000 && !fields.is_listpack());
        fields.set(b"name", b"short");
        assert!(fields.bytes() < before + 200);
        fields.remove(b"name");
        assert_eq!(fields.bytes(), 0);
    }
}
