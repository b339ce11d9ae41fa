//! A target by quality: the cheapest tier of a fresh plan whose predictions stay close to those of the uncompressed cache.

use std::path::Path;

use anyhow::ensure;
use codec::CodecKind;

use crate::eval::{Protocol, Sets, Subject, cheapest};

/// Windows of text measured on: with fewer, one odd window decides.
const WINDOWS: usize = 12;

/// Searches with texts that the plan has not seen, and says what it found.
pub(super) fn find(model: &Path, plan: &Path, texts: &[String], max_kl: f64) -> anyhow::Result<()> {
    let subject = Subject::load(model, Some(plan))?;
    let protocol = Protocol::default();
    ensure!(
        !texts.is_empty(),
        "the corpus has no text left to measure quality on; give more, or use `kvferry eval`"
    );
    let windows = protocol.windows(&subject, texts, WINDOWS)?;
    let sets = Sets { prompts: Vec::new(), windows, protocol };
    match cheapest(&subject, &sets, CodecKind::Kvtc, None, max_kl)? {
        Some((tier, kl)) => eprintln!(
            "cheapest tier with a KL of at most {max_kl}: {tier} (KL {kl:.4}); ask for it with kv_tier"
        ),
        None => eprintln!("no tier keeps a KL of at most {max_kl}; the lowest is {}", codec::TIERS.start()),
    }
    Ok(())
}
