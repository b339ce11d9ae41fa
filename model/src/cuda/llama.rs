//! A Llama on the device: what is loaded, and what it tells of itself.

use std::path::Path;
use std::sync::Arc;

use gpu::{CudaStream, Device, Gemm, KvShape};

use super::attention::AttentionKernels;
use super::decode::Steps;
use super::head::Head;
use super::received::ReceivedKernels;
use super::rope::CudaRope;
use super::rows::RowKernels;
use super::timeline::Timeline;
use super::vocabulary::CudaVocabulary;
use super::weights::{CudaWeights, check_supported};
use super::workspace::Workspace;
use crate::config::Config;
use crate::error::{Error, Result};
use crate::rope::{RopeTable, inv_freq};
use crate::sampling::{Drawn, Draws};
use crate::weights::Weights;

/// A loaded Llama. All its work goes to one stream in order; nothing waits for the device unless it says so.
pub struct CudaLlama {
    pub(crate) config: Config,
    fingerprint: [u8; 16],
    inv_freq: Vec<f32>,
    pub(crate) device: Device,
    pub(crate) stream: Arc<CudaStream>,
    pub(crate) weights: Arc<CudaWeights>,
    pub(crate) rope: CudaRope,
    pub(crate) gemm: Gemm,
    pub(crate) rows: RowKernels,
    pub(crate) attention: AttentionKernels,
    pub(crate) received: ReceivedKernels,
    pub(crate) head: Head,
    pub(crate) workspace: Workspace,
    pub(crate) timeline: Option<Timeline>,
    vocabulary: CudaVocabulary,
    pub(crate) steps: Option<Steps>,
}

impl std::fmt::Debug for CudaLlama {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CudaLlama").field("config", &self.config).finish_non_exhaustive()
    }
}

impl CudaLlama {
    /// Loads a Hugging Face model directory to the device as bf16. `max_chunk` is the most tokens that go through together; activations
    /// take memory for so many.
    ///
    /// # Errors
    /// As [`crate::Llama::load`]; when the kernels are not made for the model's dimensions; [`gpu::Error::OutOfMemory`].
    pub fn load(device: &Device, model_dir: &Path, max_chunk: usize) -> Result<Self> {
        let config = Config::load(model_dir)?;
        check_supported(&config)?;
        let files = Weights::open(model_dir)?;
        let stream = device.stream()?;
        let weights = CudaWeights::load(device, &stream, &files, &config)?;
        Self::new(device, stream, config, weights, files.fingerprint()?, max_chunk)
    }

    /// A model of `config`'s shape with random weights, normal with deviation 0.02, that depend on the seed alone: what it says is noise,
    /// but it takes the time of a real one. Its fingerprint is the seed.
    ///
    /// # Errors
    /// When the kernels are not made for the model's dimensions; [`gpu::Error::OutOfMemory`].
    pub fn random(device: &Device, config: Config, seed: u64, max_chunk: usize) -> Result<Self> {
        check_supported(&config)?;
        let stream = device.stream()?;
        let weights = CudaWeights::random(device, &stream, &config, seed)?;
        let mut fingerprint = [0; 16];
        fingerprint[..8].copy_from_slice(&seed.to_le_bytes());
        Self::new(device, stream, config, weights, fingerprint, max_chunk)
    }

    fn new(
        device: &Device,
        stream: Arc<CudaStream>,
        config: Config,
        weights: CudaWeights,
        fingerprint: [u8; 16],
        max_chunk: usize,
    ) -> Result<Self> {
        if max_chunk == 0 {
            return Err(Error::InvalidArgument("chunks of 0 tokens".into()));
        }
        let weights = Arc::new(weights);
        let inv_freq = inv_freq(&config.rope, config.head_dim);
        let table = RopeTable::new(&inv_freq, config.max_position_embeddings);
        Ok(Self {
            rope: CudaRope::upload(device, &stream, &table)?,
            gemm: Gemm::new(device, &stream)?,
            rows: RowKernels::load(device, &stream)?,
            attention: AttentionKernels::load(device, &stream, config.head_dim)?,
            received: ReceivedKernels::load(device, config.head_dim)?,
            head: Head::new(device, &stream, config.vocab_size)?,
            workspace: Workspace::new(device, &stream, &config, max_chunk)?,
            vocabulary: CudaVocabulary::new(device, &weights, config.rms_norm_eps)?,
            steps: None,
            timeline: None,
            device: device.clone(),
            config,
            fingerprint,
            inv_freq,
            stream,
            weights,
        })
    }

    /// Dimensions and constants.
    #[must_use]
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// See [`Weights::fingerprint`]; the same as the CPU's.
    #[must_use]
    pub fn fingerprint(&self) -> [u8; 16] {
        self.fingerprint
    }

    /// Frequencies of the rotary embedding, `[head_dim / 2]`.
    #[must_use]
    pub fn inv_freq(&self) -> &[f32] {
        &self.inv_freq
    }

    /// The device that it is loaded on.
    #[must_use]
    pub fn device(&self) -> &Device {
        &self.device
    }

    /// The stream that all its work is queued on.
    #[must_use]
    pub fn stream(&self) -> &Arc<CudaStream> {
        &self.stream
    }

    /// Shape that a pool must have for its caches.
    #[must_use]
    pub fn kv_shape(&self) -> KvShape {
        let c = &self.config;
        KvShape { layers: c.layers, kv_heads: c.kv_heads, head_dim: c.head_dim }
    }

    /// Normalised embeddings, for other threads and streams.
    #[must_use]
    pub fn vocabulary(&self) -> CudaVocabulary {
        self.vocabulary.clone()
    }

    /// Waits for the logits that the last call left, `[vocab]`.
    ///
    /// # Errors
    /// What earlier work failed with.
    pub fn logits(&mut self) -> Result<Vec<f32>> {
        self.head.download()
    }

    /// Waits until everything that was asked for is computed.
    ///
    /// # Errors
    /// What earlier work failed with.
    pub fn synchronize(&self) -> Result<()> {
        Ok(self.stream.synchronize().map_err(gpu::Error::from)?)
    }

    /// Waits for the token that the last call's logits give at `position` of the sequence. Only a greedy one of which nothing else is asked
    /// leaves the logits where they are.
    ///
    /// # Errors
    /// What earlier work failed with.
    pub fn draw(&mut self, draws: &Draws, position: usize) -> Result<Drawn> {
        if draws.is_plain() && draws.sampling().is_greedy() {
            return Ok(self.greedy()?.into());
        }
        Ok(draws.draw(&mut self.logits()?, position))
    }

    /// Waits for the most likely token by the last call's logits, the first of equals.
    ///
    /// # Errors
    /// What earlier work failed with.
    pub fn greedy(&mut self) -> Result<u32> {
        self.head.greedy()
    }
}
