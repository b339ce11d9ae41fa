//! A model directory and its plan, loaded and checked against each other, and the identity they make.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use codec::{Coding, Decoder, Encoder, KvLayout, Limits, Plan, TokenFeatures};
use model::{Config, Llama};
use transport::message::ModelIdentity;

use crate::args::served_name;
use crate::features::Vocabulary;

/// Name of the plan that is picked up from a model directory by default.
pub const PLAN_FILE: &str = "plan.kvtc";

/// A model ready to run with the plan ready to code its cache. Cheap to share behind an `Arc`.
#[derive(Debug)]
pub struct Loaded {
    /// Served model id.
    pub model_id: String,
    /// The model.
    pub llama: Arc<Llama>,
    /// What the codec has to know of its cache.
    pub layout: KvLayout,
    /// Calibrated plan; without it only plan-free codecs can be spoken.
    pub plan: Option<Arc<Plan>>,
}

/// Why a model or plan cannot be served.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LoadError {
    /// The model directory.
    #[error(transparent)]
    Model(#[from] model::Error),
    /// The plan cannot be read.
    #[error("cannot read plan {path}: {source}")]
    PlanIo {
        /// The plan's file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The plan is damaged or belongs to another model.
    #[error("plan {path}: {source}; make one for this model with `kvferry calibrate`")]
    Plan {
        /// The plan's file.
        path: PathBuf,
        /// What the codec said.
        source: codec::Error,
    },
    /// A GPU was asked for that this build cannot use.
    #[error(
        "this binary is built without CUDA; build it with `--features cuda` (docs/gpu.md), or run with --device cpu"
    )]
    NotBuilt,
    /// The GPU.
    #[cfg(feature = "cuda")]
    #[error(transparent)]
    Gpu(#[from] gpu::Error),
    /// The codec on the GPU.
    #[cfg(feature = "cuda")]
    #[error("the codec cannot use the GPU: {0}")]
    Codec(#[from] codec::Error),
}

impl Loaded {
    /// Loads `model_dir` and `plan`, or the directory's own `plan.kvtc` if it has one.
    ///
    /// # Errors
    /// For a directory that is no Llama, or a plan that is damaged or of another model.
    pub fn load(model_dir: &Path, plan: Option<&Path>, model_id: String) -> Result<Self, LoadError> {
        let mut loaded = Self::without_plan(model_dir)?;
        loaded.plan = find_plan(model_dir, plan, &loaded.layout, loaded.llama.fingerprint())?;
        loaded.model_id = model_id;
        Ok(loaded)
    }

    /// Loads `model_dir` alone, under its directory's name.
    ///
    /// # Errors
    /// For a directory that is no Llama.
    pub fn without_plan(model_dir: &Path) -> Result<Self, LoadError> {
        let llama = Arc::new(Llama::load(model_dir)?);
        let layout = layout(llama.config(), llama.inv_freq());
        Ok(Self { model_id: served_name(None, model_dir), llama, layout, plan: None })
    }

    /// An encoder for a prompt of these tokens.
    ///
    /// # Errors
    /// What the codec refuses: no plan where one is needed, a tier that it does not have.
    pub fn encoder(&self, coding: Coding, prompt: &[u32]) -> codec::Result<Encoder> {
        let (layout, plan) = (self.layout.clone(), self.plan.clone());
        let encoder = Encoder::new(layout, self.llama.fingerprint(), plan, coding, prompt.len())?;
        encoder.predicting(self.token_features(), Arc::from(prompt))
    }

    /// A decoder for chunks of this model's caches.
    ///
    /// # Errors
    /// What the codec refuses.
    pub fn decoder(&self, limits: Limits) -> codec::Result<Decoder> {
        let (layout, plan) = (self.layout.clone(), self.plan.clone());
        let decoder = Decoder::new(layout, self.llama.fingerprint(), plan, limits)?;
        Ok(decoder.predicting(self.token_features()))
    }

    /// What attention in each layer is worth to the codec's choice of steps.
    #[must_use]
    pub fn layer_weights(&self) -> Option<&[f32]> {
        self.plan.as_deref().and_then(Plan::layer_weights)
    }

    /// What the codec may know of tokens.
    #[must_use]
    pub fn token_features(&self) -> Arc<dyn TokenFeatures> {
        Arc::new(Vocabulary(Arc::clone(&self.llama)))
    }
}

/// What peers compare before a cache may pass between them.
pub(crate) fn identity(
    model_id: &str,
    config: &Config,
    fingerprint: [u8; 16],
    plan: Option<&Plan>,
) -> ModelIdentity {
    ModelIdentity {
        model_id: model_id.to_owned(),
        fingerprint,
        kv_dtype: "bf16".into(),
        layers: config.layers as u32,
        kv_heads: config.kv_heads as u32,
        head_dim: config.head_dim as u32,
        plan_id: plan.map(|plan| plan.id().0),
        kv_format_versions: vec![codec::FORMAT_VERSION],
    }
}

/// What the codec has to know of a model's cache.
#[must_use]
pub fn layout(config: &Config, inv_freq: &[f32]) -> KvLayout {
    let (layers, kv_heads, head_dim) = (config.layers, config.kv_heads, config.head_dim);
    KvLayout { layers, kv_heads, head_dim, inv_freq: inv_freq.to_vec() }
}

/// The plan that was named, or the model directory's own if it has one.
pub(crate) fn find_plan(
    model_dir: &Path,
    named: Option<&Path>,
    layout: &KvLayout,
    fingerprint: [u8; 16],
) -> Result<Option<Arc<Plan>>, LoadError> {
    let beside = model_dir.join(PLAN_FILE);
    let path = named.map(Path::to_owned).or_else(|| beside.exists().then_some(beside));
    Ok(path.map(|path| read_plan(&path, layout, fingerprint)).transpose()?.map(Arc::new))
}

fn read_plan(path: &Path, layout: &KvLayout, fingerprint: [u8; 16]) -> Result<Plan, LoadError> {
    let bytes = std::fs::read(path).map_err(|source| LoadError::PlanIo { path: path.to_owned(), source })?;
    let refused = |source| LoadError::Plan { path: path.to_owned(), source };
    let plan = Plan::from_bytes(&bytes).map_err(refused)?;
    plan.check(layout, fingerprint).map_err(refused)?;
    Ok(plan)
}
