//! Reads the Prometheus text format and is strict about it.

use std::collections::HashMap;

/// The samples of one scrape.
pub(crate) struct Metrics {
    samples: Vec<Sample>,
}

struct Sample {
    name: String,
    labels: Vec<(String, String)>,
    value: f64,
}

impl Metrics {
    /// Parses a scrape; panics with the line that is not in the format.
    #[track_caller]
    pub(crate) fn parse(text: &str) -> Metrics {
        assert!(text.is_empty() || text.ends_with('\n'), "the last line has no end");
        let mut types: HashMap<String, String> = HashMap::new();
        let mut samples: Vec<Sample> = Vec::new();
        for line in text.lines().filter(|line| !line.is_empty()) {
            if let Some(declared) = line.strip_prefix("# TYPE ") {
                let (name, kind) = declared.split_once(' ').expect("a name and a type");
                let known = ["counter", "gauge", "histogram", "summary", "untyped"];
                assert!(known.contains(&kind), "unknown metric type: {line}");
                let before = types.insert(name.to_owned(), kind.to_owned());
                assert!(before.is_none(), "the type of a metric is declared twice: {line}");
            } else if !line.starts_with('#') {
                let sample = Sample::parse(line).unwrap_or_else(|| panic!("no sample: {line}"));
                assert!(family_type(&types, &sample.name).is_some(), "no type before: {line}");
                samples.push(sample);
            }
        }
        Metrics { samples }
    }

    /// The names of all samples.
    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.samples.iter().map(|sample| sample.name.as_str())
    }

    /// The sum over all samples of `name` that carry the given labels.
    pub(crate) fn sum(&self, name: &str, labels: &[(&str, &str)]) -> f64 {
        let carries = |sample: &&Sample| {
            labels
                .iter()
                .all(|(label, value)| sample.labels.iter().any(|(l, v)| l == label && v == value))
        };
        let samples = self.samples.iter().filter(|sample| sample.name == name);
        samples.filter(carries).map(|sample| sample.value).sum()
    }
}

impl Sample {
    fn parse(line: &str) -> Option<Sample> {
        let name_end = line.find(['{', ' '])?;
        let (name, rest) = line.split_at(name_end);
        let (labels, value) = match rest.strip_prefix('{') {
            Some(rest) => parse_labels(rest)?,
            None => (Vec::new(), rest),
        };
        let value = value.trim().split(' ').next()?;
        let value = match value {
            "+Inf" => f64::INFINITY,
            "-Inf" => f64::NEG_INFINITY,
            number => number.parse().ok()?,
        };
        is_name(name).then(|| Sample { name: name.to_owned(), labels, value })
    }
}

type Labels = Vec<(String, String)>;

fn parse_labels(mut rest: &str) -> Option<(Labels, &str)> {
    let mut labels = Vec::new();
    loop {
        if let Some(value) = rest.strip_prefix('}') {
            return Some((labels, value));
        }
        let (name, after) = rest.split_once("=\"")?;
        let mut end = 0;
        let bytes = after.as_bytes();
        while *bytes.get(end)? != b'"' {
            end += if bytes[end] == b'\\' { 2 } else { 1 };
        }
        if !is_name(name) {
            return None;
        }
        labels.push((name.to_owned(), after.get(..end)?.to_owned()));
        rest = after.get(end + 1..)?;
        rest = rest.strip_prefix(',').unwrap_or(rest);
    }
}

fn is_name(name: &str) -> bool {
    let mut characters = name.chars();
    characters.next().is_some_and(|first| first.is_ascii_alphabetic() || first == '_')
        && characters.all(|next| next.is_ascii_alphanumeric() || next == '_' || next == ':')
}

fn family_type<'a>(types: &'a HashMap<String, String>, sample: &str) -> Option<&'a String> {
    let mut families = vec![sample];
    families
        .extend(["_bucket", "_sum", "_count"].iter().filter_map(|end| sample.strip_suffix(end)));
    families.iter().find_map(|family| types.get(*family))
}

#[test]
fn samples_are_read_with_their_labels() {
    let metrics =
        Metrics::parse("# TYPE a_total counter\na_total{x=\"1\",y=\"q\\\"}\"} 2\na_total 3\n");
    assert!((metrics.sum("a_total", &[]) - 5.0).abs() < 1e-9);
    assert!((metrics.sum("a_total", &[("x", "1")]) - 2.0).abs() < 1e-9);
    assert!(metrics.sum("a_total", &[("x", "2")]).abs() < 1e-9);
}

#[test]
#[should_panic(expected = "no type before")]
fn a_sample_without_a_type_is_refused() {
    Metrics::parse("a_total 3\n");
}

#[test]
#[should_panic(expected = "no sample")]
fn a_line_that_is_no_sample_is_refused() {
    Metrics::parse("# TYPE a counter\na{x=1} 3\n");
}
