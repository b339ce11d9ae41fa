//! Every codec at many tiers: a table and the rate-distortion picture.

use std::path::Path;

use anyhow::Context;
use codec::CodecKind;

use super::score::Score;
use super::subject::Way;
use super::{plot, report, ways as each};

const TIERS: [u8; 9] = [4, 8, 16, 24, 32, 48, 64, 96, 128];

/// What a sweep measures.
pub(super) fn ways() -> Vec<Way> {
    each(&CodecKind::ALL, &TIERS, None)
}

/// Writes sweep.md, sweep.svg and sweep.png into `dir`, which is made if need be.
pub(super) fn write(scores: &[Score], dir: &Path) -> anyhow::Result<()> {
    std::fs::create_dir_all(dir).with_context(|| format!("cannot make {}", dir.display()))?;
    let table = dir.join("sweep.md");
    let text = format!("{}\n", report::markdown(scores));
    std::fs::write(&table, text).with_context(|| format!("cannot write {}", table.display()))?;
    plot::write(scores, &dir.join("sweep.svg"), &dir.join("sweep.png"))?;
    eprintln!("sweep.md, sweep.svg and sweep.png written to {}", dir.display());
    Ok(())
}

#[cfg(test)]
mod tests {
    use codec::Coding;

    use super::*;
    use crate::eval::score::Tally;

    #[test]
    fn a_sweep_leaves_a_table_and_two_pictures() {
        let dir = tempfile::tempdir().unwrap();
        let mut scores = Vec::new();
        for (index, way) in ways().into_iter().enumerate() {
            let mut score = Tally::default().score(way);
            score.whole_ratio = 1.0 + 3.0 * index as f64;
            score.kl = Some(0.001 * index as f64);
            scores.push(score);
        }
        write(&scores, dir.path()).unwrap();
        let read = |name: &str| std::fs::read(dir.path().join(name)).unwrap();
        let table = String::from_utf8(read("sweep.md")).unwrap();
        assert_eq!(table.lines().count(), 2 + scores.len());
        assert!(String::from_utf8(read("sweep.svg")).unwrap().contains("kvtc"));
        assert!(read("sweep.png").starts_with(b"\x89PNG"));
    }

    #[test]
    fn without_a_kl_there_is_nothing_to_draw() {
        let dir = tempfile::tempdir().unwrap();
        let scores = [Tally::default().score(Way::usual(Coding::RAW))];
        let error = write(&scores, dir.path()).unwrap_err().to_string();
        assert!(error.contains("nothing to draw"), "{error}");
    }
}
