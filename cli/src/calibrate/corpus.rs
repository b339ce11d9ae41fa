//! Text to calibrate on: JSON lines with a `text` field or plain text, each plain, gzip- or xz-compressed.

use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use indicatif::ProgressBar;
use rand::{Rng, RngExt};
use serde::Deserialize;

/// Documents kept; the corpus is sampled uniformly down to so many, which bounds memory.
const KEPT_DOCUMENTS: usize = 8192;
/// Longest part of a document that is kept, in bytes: more than any calibration document uses.
const KEPT_BYTES: usize = 1 << 17;
/// A plain text file is cut into documents of about this size, in bytes.
const PLAIN_DOCUMENT_BYTES: usize = 1 << 15;

#[derive(Deserialize)]
struct Line {
    text: String,
}

/// Uniform sample of the documents of `files`, in random order. `progress` counts compressed bytes.
///
/// # Errors
/// For files that cannot be read or are not what their name says.
pub(super) fn sample(
    files: &[PathBuf],
    rng: &mut impl Rng,
    progress: &ProgressBar,
) -> anyhow::Result<Vec<String>> {
    let mut reservoir = Reservoir { kept: Vec::new(), seen: 0 };
    for path in files {
        read(path, progress, &mut |document| reservoir.offer(document, rng))
            .with_context(|| format!("cannot read corpus {}", path.display()))?;
    }
    if reservoir.kept.is_empty() {
        bail!("the corpus holds no text");
    }
    let mut documents = reservoir.kept;
    for i in (1..documents.len()).rev() {
        documents.swap(i, rng.random_range(0..=i));
    }
    Ok(documents)
}

/// Uniform sampling of a stream of unknown length (algorithm R; Vitter, ACM TOMS 11(1), 1985).
struct Reservoir {
    kept: Vec<String>,
    seen: usize,
}

impl Reservoir {
    fn offer(&mut self, mut document: String, rng: &mut impl Rng) {
        let mut cut = document.len().min(KEPT_BYTES);
        while !document.is_char_boundary(cut) {
            cut -= 1;
        }
        document.truncate(cut);
        document.shrink_to_fit();
        self.seen += 1;
        if self.kept.len() < KEPT_DOCUMENTS {
            self.kept.push(document);
        } else {
            let place = rng.random_range(0..self.seen);
            if let Some(old) = self.kept.get_mut(place) {
                *old = document;
            }
        }
    }
}

fn read(path: &Path, progress: &ProgressBar, take: &mut impl FnMut(String)) -> anyhow::Result<()> {
    let file = progress.wrap_read(File::open(path)?);
    let extension = |path: &Path| path.extension().map(|e| e.to_string_lossy().to_lowercase());
    let (reader, inner): (Box<dyn Read>, PathBuf) = match extension(path).as_deref() {
        Some("xz") => (Box::new(liblzma::read::XzDecoder::new(file)), path.with_extension("")),
        Some("gz") => (Box::new(flate2::read::MultiGzDecoder::new(file)), path.with_extension("")),
        _ => (Box::new(file), path.to_owned()),
    };
    let reader = BufReader::with_capacity(1 << 20, reader);
    match extension(&inner).as_deref() {
        Some("jsonl" | "ndjson") => read_json_lines(reader, take),
        _ => read_plain(reader, take),
    }
}

fn read_json_lines(reader: impl BufRead, take: &mut impl FnMut(String)) -> anyhow::Result<()> {
    for (number, line) in (1..).zip(reader.lines()) {
        let line = line?;
        if line.trim().is_empty() {
            continue;
        }
        let parsed: Line = serde_json::from_str(&line)
            .with_context(|| format!("line {number} is no JSON object with a `text` field"))?;
        take(parsed.text);
    }
    Ok(())
}

fn read_plain(reader: impl BufRead, take: &mut impl FnMut(String)) -> anyhow::Result<()> {
    let mut document = String::new();
    for line in reader.lines() {
        document.push_str(&line?);
        document.push('\n');
        if document.len() >= PLAIN_DOCUMENT_BYTES {
            take(std::mem::take(&mut document));
        }
    }
    if !document.trim().is_empty() {
        take(document);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use rand::SeedableRng;
    use rand_chacha::ChaCha8Rng;

    use super::*;

    fn sampled(name: &str, bytes: &[u8]) -> anyhow::Result<Vec<String>> {
        let dir = tempfile::tempdir()?;
        let path = dir.path().join(name);
        std::fs::write(&path, bytes)?;
        sample(&[path], &mut ChaCha8Rng::seed_from_u64(1), &ProgressBar::hidden())
    }

    #[test]
    fn every_form_of_corpus_is_read() {
        let lines = b"{\"text\":\"one\"}\n\n{\"text\":\"two\",\"source\":\"x\"}\n";
        let mut gz = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        gz.write_all(lines).unwrap();
        let mut xz = liblzma::write::XzEncoder::new(Vec::new(), 1);
        xz.write_all(lines).unwrap();
        for (name, bytes) in [
            ("a.jsonl", lines.to_vec()),
            ("a.jsonl.gz", gz.finish().unwrap()),
            ("a.jsonl.xz", xz.finish().unwrap()),
        ] {
            let mut documents = sampled(name, &bytes).unwrap();
            documents.sort();
            assert_eq!(documents, ["one", "two"], "{name}");
        }
        assert_eq!(sampled("a.txt", b"plain\ntext").unwrap(), ["plain\ntext\n"]);
    }

    #[test]
    fn a_corpus_that_is_none_is_refused_with_its_name_and_line() {
        let error = format!("{:#}", sampled("a.jsonl", b"{\"text\":\"one\"}\n{\"txt\":1}\n").unwrap_err());
        assert!(error.contains("a.jsonl") && error.contains("line 2"), "{error}");
        assert!(sampled("a.jsonl.gz", b"not gzip").is_err());
        assert!(sampled("a.txt", b"").is_err());
    }
}
