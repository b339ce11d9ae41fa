//! The model as a node serves it: what it is, and the place where it runs.

use std::path::Path;
use std::sync::Arc;

use codec::{KvLayout, Plan};
use half::bf16;
use model::{Config, KvCache};
use transport::ids::NodeId;
use transport::message::{Failure, Hello, ModelIdentity, Role};

use super::cache::Cache;
use super::choice::DeviceChoice;
use super::runner::Runner;
use crate::args::NodeArgs;
use crate::failure::internal;
use crate::loaded::{LoadError, Loaded, identity};

/// What a place has to be made for.
#[derive(Debug, Clone, Copy)]
pub struct Sizes {
    /// KV cache over all sessions, in tokens.
    pub kv_tokens: usize,
    /// Sessions at once.
    pub sessions: usize,
}

impl Sizes {
    /// As a node's flags ask.
    #[must_use]
    pub fn of(args: &NodeArgs) -> Self {
        Self { kv_tokens: args.kv_capacity_tokens as usize, sessions: args.max_num_seqs as usize }
    }
}

/// A model ready to be served. Cheap to share behind an `Arc`.
#[derive(Debug)]
pub struct Served {
    /// Served model id.
    pub model_id: String,
    /// Dimensions and constants.
    pub config: Config,
    /// Digest of the model's files.
    pub fingerprint: [u8; 16],
    /// What the codec has to know of its cache.
    pub layout: KvLayout,
    /// Calibrated plan; without it only plan-free codecs can be spoken.
    pub plan: Option<Arc<Plan>>,
    place: Place,
}

#[derive(Debug)]
pub(crate) enum Place {
    Host(Arc<Loaded>),
    #[cfg(feature = "cuda")]
    Device(super::cuda::Device),
}

impl Served {
    /// Loads a model to where `device` says. `plan` is the model directory's own where none is named.
    ///
    /// # Errors
    /// For a directory that is no Llama, a plan that is damaged or of another model, a device that is not there or too small.
    pub fn load(
        device: DeviceChoice,
        model_dir: &Path,
        plan: Option<&Path>,
        model_id: String,
        sizes: Sizes,
    ) -> Result<Self, LoadError> {
        match device {
            DeviceChoice::Cpu => Ok(Self::on_host(Arc::new(Loaded::load(model_dir, plan, model_id)?))),
            DeviceChoice::Cuda(ordinal) => Self::on_cuda(ordinal, model_dir, plan, model_id, sizes),
        }
    }

    /// A model that runs in this process.
    #[must_use]
    pub fn on_host(loaded: Arc<Loaded>) -> Self {
        Self {
            model_id: loaded.model_id.clone(),
            config: loaded.llama.config().clone(),
            fingerprint: loaded.llama.fingerprint(),
            layout: loaded.layout.clone(),
            plan: loaded.plan.clone(),
            place: Place::Host(loaded),
        }
    }

    #[cfg(feature = "cuda")]
    fn on_cuda(
        ordinal: usize,
        model_dir: &Path,
        plan: Option<&Path>,
        model_id: String,
        sizes: Sizes,
    ) -> Result<Self, LoadError> {
        let loaded = super::cuda::Device::load(ordinal, model_dir, plan, sizes)?;
        let (config, fingerprint, layout, plan) = loaded.facts;
        Ok(Self { model_id, config, fingerprint, layout, plan, place: Place::Device(loaded.device) })
    }

    #[cfg(not(feature = "cuda"))]
    fn on_cuda(
        _ordinal: usize,
        _model_dir: &Path,
        _plan: Option<&Path>,
        _model_id: String,
        _sizes: Sizes,
    ) -> Result<Self, LoadError> {
        Err(LoadError::NotBuilt)
    }

    pub(crate) fn place(&self) -> &Place {
        &self.place
    }

    /// The model for an engine's thread. On a GPU there is one, for the node's one engine.
    ///
    /// # Errors
    /// When it was taken already.
    pub fn runner(&self) -> Result<Runner, Failure> {
        match &self.place {
            Place::Host(loaded) => Ok(Runner::Host(Arc::clone(&loaded.llama))),
            #[cfg(feature = "cuda")]
            Place::Device(device) => device.runner(),
        }
    }

    /// A cache with room for `tokens` tokens.
    ///
    /// # Errors
    /// [`FailureKind::Busy`](transport::message::FailureKind::Busy) when the device's pages are taken.
    pub fn cache(&self, tokens: usize) -> Result<Cache, Failure> {
        match &self.place {
            Place::Host(_) => Ok(Cache::Host(KvCache::<bf16>::new(&self.config, tokens))),
            #[cfg(feature = "cuda")]
            Place::Device(device) => device.cache(tokens),
        }
    }

    /// A cache with room for `tokens` tokens that begins with another's first `shared`, of which [`Self::shareable`] says how many
    /// may be. Neither cache may be changed there any more.
    ///
    /// # Errors
    /// As [`Self::cache`].
    pub fn cache_after(&self, other: &Cache, shared: usize, tokens: usize) -> Result<Cache, Failure> {
        match (&self.place, other) {
            (Place::Host(_), Cache::Host(other)) => {
                KvCache::after(other, shared, tokens).map(Cache::Host).map_err(internal)
            }
            #[cfg(feature = "cuda")]
            (Place::Device(device), Cache::Device(other)) => device.cache_after(other, shared, tokens),
            #[cfg(feature = "cuda")]
            _ => panic!("a cache of another machine; this is a bug"),
        }
    }

    /// How many of `tokens` tokens that two caches begin with one may take from the other: all in host memory, whole pages on a GPU.
    #[must_use]
    pub fn shareable(&self, tokens: usize) -> usize {
        match &self.place {
            Place::Host(_) => tokens,
            #[cfg(feature = "cuda")]
            Place::Device(_) => tokens - tokens % gpu::PAGE_TOKENS,
        }
    }

    /// Whether caches that are kept lie in memory that other sessions have no use for meanwhile.
    #[must_use]
    pub fn keeps_in_pool(&self) -> bool {
        !matches!(self.place, Place::Host(_))
    }

    /// Tokens that a prompt goes through the model at a time where it need not be shared out or sent meanwhile; `usual` is what the
    /// node was told.
    #[must_use]
    pub fn long_chunk(&self, usual: usize) -> usize {
        match &self.place {
            Place::Host(_) => usual,
            #[cfg(feature = "cuda")]
            Place::Device(_) => usual.max(super::cuda::MAX_CHUNK),
        }
    }

    /// What attention in each layer is worth to the codec's choice of steps.
    #[must_use]
    pub fn layer_weights(&self) -> Option<&[f32]> {
        self.plan.as_deref().and_then(Plan::layer_weights)
    }

    /// What peers compare before a cache may pass between them.
    #[must_use]
    pub fn identity(&self) -> ModelIdentity {
        identity(&self.model_id, &self.config, self.fingerprint, self.plan.as_deref())
    }

    /// A node's first message on every connection.
    #[must_use]
    pub fn hello(&self, node: NodeId, role: Role) -> Hello {
        Hello::new(node, role, self.identity())
    }
}
