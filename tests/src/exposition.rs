//! Metrics as a scraper reads them: families with their help, type and samples.

use std::collections::BTreeMap;

/// All families of a page, by name.
pub type Families = BTreeMap<String, Family>;

/// One metric.
#[derive(Debug, Default)]
pub struct Family {
    /// What it says of itself.
    pub help: String,
    /// `counter`, `gauge`, `histogram`.
    pub kind: String,
    /// Name and labels of every sample.
    pub samples: Vec<(String, Vec<(String, String)>)>,
}

/// Reads a page in the Prometheus text format and checks its order: help, type, samples, each family once.
///
/// # Panics
/// When it is not in that form.
#[must_use]
pub fn parse(text: &str) -> Families {
    let mut families = Families::new();
    let mut current = String::new();
    for line in text.lines() {
        if let Some((name, help)) = line.strip_prefix("# HELP ").and_then(|rest| rest.split_once(' ')) {
            let family = Family { help: help.to_owned(), ..Family::default() };
            assert!(families.insert(name.to_owned(), family).is_none(), "{name} is there twice");
            current = name.to_owned();
        } else if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' '))
        {
            assert_eq!(name, current, "a type without help before it");
            families.entry(current.clone()).or_default().kind = kind.to_owned();
        } else {
            let (name, labels) = sample(line);
            let family = families.get_mut(&current).expect("samples come behind their family");
            let suffix = name.strip_prefix(&*current).expect("samples are named like their family");
            let fits = match family.kind.as_str() {
                "histogram" => ["_bucket", "_sum", "_count"].contains(&suffix),
                _ => suffix.is_empty(),
            };
            assert!(fits, "{line} in family {current}");
            family.samples.push((name, labels));
        }
    }
    families
}

/// Name and labels; the value must be a number.
fn sample(line: &str) -> (String, Vec<(String, String)>) {
    let (series, value) = line.rsplit_once(' ').expect("a sample has a value");
    assert!(value.parse::<f64>().is_ok(), "{line}");
    let Some((name, labels)) = series.split_once('{') else { return (series.to_owned(), Vec::new()) };
    let labels = labels.strip_suffix('}').expect("labels end");
    let pairs = labels.split("\",").filter(|pair| !pair.is_empty()).map(|pair| {
        let (label, value) = pair.split_once("=\"").expect("a label has a value");
        (label.to_owned(), value.trim_end_matches('"').to_owned())
    });
    (name.to_owned(), pairs.collect())
}
