//! Key and value projections whose cache has a spectrum like the measured one, and the plan for it.
//!
//! Attention and feed-forward layers add next to nothing to the residual stream, so that every layer sees the token's normalised
//! embedding, whose features are independent, with mean 0 and variance 1: what [`Synthetic::projection`] asks for.

use std::path::Path;
use std::sync::Arc;

use anyhow::Context;
use codec::probe::synthetic::{HashedFeatures, Synthetic};
use codec::{KvLayout, Plan, TokenFeatures};
use half::bf16;
use model::{Config, Weights, inv_freq};
use node::args::default_model_dir;
use node::loaded::{PLAN_FILE, layout};
use rayon::prelude::*;

use crate::output::spinner;

use super::shape::{Content, Shape, Tensor};

/// What the layers' outputs are multiplied with to be next to nothing.
const QUIET: f32 = 1e-4;

/// The embedded model's plan, whose spectrum synthetic ones take over.
pub(crate) fn measured_plan() -> anyhow::Result<Plan> {
    let path = default_model_dir().join(PLAN_FILE);
    let bytes = std::fs::read(&path).with_context(|| {
        format!("cannot read {}, whose spectrum is taken over; run this where models/ lies", path.display())
    })?;
    Ok(Plan::from_bytes(&bytes)?)
}

/// A model whose rows are linear in its tokens.
pub(super) struct Linear {
    shape: Shape,
    seed: u64,
    measured: Plan,
}

impl Linear {
    pub(super) fn new(shape: Shape, seed: u64) -> anyhow::Result<Self> {
        Ok(Self { shape, seed, measured: measured_plan()? })
    }

    /// Gives the tensors of `checkpoint` that matter their content.
    pub(super) fn fill(&self, checkpoint: &mut [Tensor]) -> anyhow::Result<()> {
        let spinner = spinner("making key and value projections");
        let of = self.shape.dimensions();
        let per_layer = of.hidden / of.heads * of.kv_heads * of.hidden;
        let layout = KvLayout {
            layers: of.layers,
            kv_heads: of.kv_heads,
            head_dim: of.hidden / of.heads,
            inv_freq: vec![1.0; of.hidden / of.heads / 2],
        };
        let [keys, values] = self.synthetic(&layout, [0; 16])?.projection();
        for (name, matrix) in [("k_proj", keys), ("v_proj", values)] {
            for (layer, part) in matrix.chunks_exact(per_layer).enumerate() {
                let name = format!("model.layers.{layer}.self_attn.{name}.weight");
                let tensor = checkpoint.iter_mut().find(|tensor| tensor.name == name);
                let halves: Vec<bf16> = part.par_iter().map(|&x| bf16::from_f32(x)).collect();
                tensor.context("a layer has no such projection; this is a bug")?.content =
                    Content::Given(halves.into());
            }
        }
        for tensor in checkpoint {
            if tensor.name.ends_with("o_proj.weight") || tensor.name.ends_with("down_proj.weight") {
                tensor.content = Content::Normal(QUIET);
            }
        }
        spinner.finish_and_clear();
        Ok(())
    }

    /// Writes the plan of the model that was written to `dir`.
    pub(super) fn write_plan(&self, dir: &Path) -> anyhow::Result<()> {
        let spinner = spinner("writing the plan");
        let config = Config::load(dir)?;
        let layout = layout(&config, &inv_freq(&config.rope, config.head_dim));
        let fingerprint = Weights::open(dir)?.fingerprint()?;
        let plan = self.synthetic(&layout, fingerprint)?.plan().to_bytes();
        let path = dir.join(PLAN_FILE);
        std::fs::write(&path, plan).with_context(|| format!("cannot write {}", path.display()))?;
        spinner.finish_and_clear();
        Ok(())
    }

    /// The plan needs features of the right size only, which the model's own have.
    fn synthetic(&self, layout: &KvLayout, fingerprint: [u8; 16]) -> anyhow::Result<Synthetic> {
        let of = self.shape.dimensions();
        let features = HashedFeatures { width: of.hidden, vocabulary: of.vocabulary };
        let features: Arc<dyn TokenFeatures> = Arc::new(features);
        Ok(Synthetic::linear(layout, fingerprint, &self.measured, features, self.seed)?)
    }
}
