//! Documents that the axes never see: steps, tables and ratios are measured on them.

use codec::TokenFeatures;
use codec::fit::Predictor;
use half::bf16;
use indicatif::MultiProgress;
use model::{KvCache, LogitsOf, Sequence};
use node::Loaded;
use openai::Tokenizer;

use super::collect::{Document, Sample};
use super::documents::Documents;
use super::{Args, bar};

/// Tokens of the held-out documents.
pub(super) const TOKENS: usize = 16_384;

/// Rows of all held-out documents, one after the other.
#[derive(Debug, Default)]
pub(super) struct HeldOut {
    /// `[rows, features]`, RoPE undone.
    pub(super) keys: Vec<f32>,
    /// `[rows, features]`.
    pub(super) values: Vec<f32>,
    /// Token of each row.
    pub(super) ids: Vec<u32>,
    /// Shift of each row.
    pub(super) shifts: Vec<i8>,
    /// Rows of each document, and the tokens before the first of them.
    documents: Vec<(usize, Vec<u32>)>,
}

/// Tokens before a document's rows that predictions may look at.
const LEAD: usize = 3;

impl HeldOut {
    /// Runs documents through the model; `layers` says what their attention is worth.
    pub(super) fn run(
        loaded: &Loaded,
        documents: Vec<Vec<u32>>,
        layers: &[f32],
        bars: &MultiProgress,
    ) -> anyhow::Result<Self> {
        let bar = bar(bars, documents.len() as u64, "held-out documents");
        let mut all = Self::default();
        for ids in documents {
            let document = Document::run(loaded, ids, Some(layers))?;
            all.keys.extend_from_slice(&document.keys);
            all.values.extend_from_slice(&document.values);
            all.ids.extend_from_slice(document.row_ids(0));
            all.shifts.extend_from_slice(document.row_shifts());
            all.documents.push((document.row_shifts().len(), document.row_ids(LEAD)[..LEAD].to_vec()));
            bar.inc(1);
        }
        bar.finish_with_message(format!("held-out documents: {} tokens", all.ids.len()));
        Ok(all)
    }

    /// Takes what the predictor says off the rows, and returns which share of the variance of keys and of values that leaves.
    pub(super) fn remove(
        &mut self,
        predictor: &Predictor,
        source: &dyn TokenFeatures,
        features: usize,
    ) -> codec::Result<(f64, f64)> {
        let before = (spread(&self.keys, features), spread(&self.values, features));
        let mut start = 0;
        for (rows, lead) in &self.documents {
            let ids = [lead, &self.ids[start..start + rows]].concat();
            let range = start * features..(start + rows) * features;
            let (keys, values) = (&mut self.keys[range.clone()], &mut self.values[range]);
            predictor.remove(source, (&ids, lead.len()), keys, values)?;
            start += rows;
        }
        let after = (spread(&self.keys, features), spread(&self.values, features));
        Ok((after.0 / before.0, after.1 / before.1))
    }

    /// Documents and rows.
    pub(super) fn sample(&self) -> Sample {
        Sample { documents: self.documents.len(), tokens: self.ids.len() }
    }
}

/// Squared distance of rows from their mean, summed.
fn spread(rows: &[f32], features: usize) -> f64 {
    let count = (rows.len() / features).max(1) as f64;
    let (mut sums, mut squares) = (vec![0.0; features], 0.0);
    for row in rows.chunks_exact(features) {
        for (sum, &x) in sums.iter_mut().zip(row) {
            *sum += f64::from(x);
            squares += f64::from(x).powi(2);
        }
    }
    squares - sums.iter().map(|sum| sum * sum / count).sum::<f64>()
}

/// Takes documents that nothing else will see.
pub(super) fn choose(documents: &mut Documents<'_>) -> anyhow::Result<Vec<Vec<u32>>> {
    let (mut chosen, mut seen) = (Vec::new(), 0);
    while seen < TOKENS
        && let Some(ids) = documents.next()?
    {
        seen += ids.len();
        chosen.push(ids);
    }
    Ok(chosen)
}

/// A token, and its keys and values.
type FirstRow = (u32, Vec<bf16>, Vec<bf16>);

/// Begin-of-text and its cache alone at position 0, keys and values; none where the model has no such token.
pub(super) fn first_row(args: &Args, loaded: &Loaded) -> anyhow::Result<Option<FirstRow>> {
    let Some(token) = Tokenizer::load(&args.model)?.begin_of_text() else { return Ok(None) };
    let mut cache = KvCache::<bf16>::new(loaded.llama.config(), 1);
    let sequence = Sequence { cache: &mut cache, tokens: &[token], received: None };
    loaded.llama.forward(&mut [sequence], LogitsOf::LastToken)?;
    let (keys, values) = cache.read_range(0..1)?;
    Ok(Some((token, keys, values)))
}
