//! What is wrong with a configuration, where, and how it is told.

use std::fmt;

/// Says where a faulty text came from.
#[derive(Clone, Debug, Eq, Ord, PartialEq, PartialOrd)]
pub enum Origin {
    /// A flag or an environment variable, by its name.
    Named(String),
    /// A whole file, such as one that cannot be read.
    File(String),
    /// A place in a file; lines and columns count from 1, columns in characters.
    Place {
        /// The file as it was named.
        file: String,
        /// The line.
        line: usize,
        /// The column.
        column: usize,
    },
}

impl fmt::Display for Origin {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Named(name) | Self::File(name) => formatter.write_str(name),
            Self::Place { file, line, column } => write!(formatter, "{file}:{line}:{column}"),
        }
    }
}

/// Describes one fault: where it is, what is wrong and what to do. Holds no secrets.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Fault {
    /// Where the fault is.
    pub origin: Origin,
    /// What is wrong and what to do, in one line.
    pub text: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}: {}", self.origin, self.text)
    }
}

/// Holds all faults of a configuration, never none. Displays one per line.
#[derive(Clone, Debug, Eq, PartialEq)]
pub struct Faults(Vec<Fault>);

impl Faults {
    /// Orders the faults by place: flags and variables first, then down the file.
    pub(super) fn new(mut faults: Vec<Fault>) -> Self {
        faults.sort_by(|left, right| left.origin.cmp(&right.origin));
        faults.dedup();
        Self(faults)
    }

    /// Returns the faults in the order in which they are displayed.
    pub fn iter(&self) -> impl Iterator<Item = &Fault> {
        self.0.iter()
    }
}

impl fmt::Display for Faults {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (at, fault) in self.0.iter().enumerate() {
            let line_end = if at == 0 { "" } else { "\n" };
            write!(formatter, "{line_end}{fault}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Faults {}
