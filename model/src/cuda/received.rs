//! Attention that each token received from a prompt's last queries, summed on the device.

use std::sync::Arc;

use gpu::{CudaFunction, CudaSlice, CudaStream, Kernels, LaunchConfig, Pinned, PushKernelArg};

use super::llama::CudaLlama;
use crate::attention::ReceivedAttention;
use crate::error::Result;

const FATBIN: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/received.fatbin"));
const THREADS: usize = 256;

/// [`ReceivedAttention`] of one prompt on the device; see there what counts.
///
/// Each key/value head sums for itself, in the order of the layers, so that the same prompt gives the same bits every time.
pub struct CudaReceived {
    stream: Arc<CudaStream>,
    fold: CudaFunction,
    host: Pinned<f32>,
    folded: CudaSlice<f32>,          // [earlier | nearest, prompt_tokens]
    pub(crate) sums: CudaSlice<f32>, // [kv_heads, earlier | nearest, prompt_tokens]
    pub(crate) first_query: usize,
    pub(crate) first_nearest: usize,
    pub(crate) prompt_tokens: usize,
    kv_heads: usize,
    layer_weights: Vec<f32>,
}

impl std::fmt::Debug for CudaReceived {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CudaReceived").field("prompt_tokens", &self.prompt_tokens).finish_non_exhaustive()
    }
}

impl CudaReceived {
    /// Counts the attention from the last `queries` of a prompt of `prompt_tokens`, the last `nearest` of them apart, as
    /// [`ReceivedAttention::of_last`].
    ///
    /// # Errors
    /// [`gpu::Error::OutOfMemory`].
    pub fn of_last(model: &CudaLlama, queries: usize, nearest: usize, prompt_tokens: usize) -> Result<Self> {
        let (device, stream, what) = (&model.device, &model.stream, "the attention received");
        let (kv_heads, first_query) = (model.config.kv_heads, prompt_tokens.saturating_sub(queries));
        Ok(Self {
            stream: Arc::clone(stream),
            fold: Kernels::load(device, "received", FATBIN)?.function("fold_received")?,
            host: Pinned::zeros(device, 2 * prompt_tokens)?,
            folded: device.buffer(stream, what, 2 * prompt_tokens)?,
            sums: device.zeros(stream, what, kv_heads * 2 * prompt_tokens)?,
            first_query,
            first_nearest: prompt_tokens.saturating_sub(nearest).max(first_query),
            prompt_tokens,
            kv_heads,
            layer_weights: Vec::new(),
        })
    }

    /// Lets each layer's attention count as much as its weight says, those beyond the list 1.
    #[must_use]
    pub fn weighted(self, layer_weights: &[f32]) -> Self {
        Self { layer_weights: layer_weights.to_vec(), ..self }
    }

    pub(crate) fn weight(&self, layer: usize) -> f32 {
        self.layer_weights.get(layer).copied().unwrap_or(1.0)
    }

    /// Sums over the heads, on the device: `[earlier | nearest, prompt_tokens]`, on the model's stream.
    ///
    /// # Errors
    /// When the driver fails.
    pub fn folded(&mut self) -> Result<&CudaSlice<f32>> {
        let outputs = 2 * self.prompt_tokens;
        let (kv_heads, count) = (self.kv_heads as u32, outputs as u32);
        let mut launch = self.stream.launch_builder(&self.fold);
        launch.arg(&self.sums).arg(&kv_heads).arg(&count).arg(&mut self.folded);
        let config = LaunchConfig {
            grid_dim: (outputs.div_ceil(THREADS).max(1) as u32, 1, 1),
            block_dim: (THREADS as u32, 1, 1),
            shared_mem_bytes: 0,
        };
        // SAFETY: the buffers have these shapes.
        unsafe { launch.launch(config) }.map_err(gpu::Error::from)?;
        Ok(&self.folded)
    }

    /// Waits for the sums and takes them to the host.
    ///
    /// # Errors
    /// When the driver fails.
    pub fn into_host(mut self) -> Result<ReceivedAttention> {
        self.folded()?;
        self.host.copy_from(&self.stream, 2 * self.prompt_tokens, &self.folded)?;
        self.stream.synchronize().map_err(gpu::Error::from)?;
        let (earlier, rest) = self.host.as_slice()?.split_at(self.prompt_tokens);
        Ok(ReceivedAttention {
            first_query: self.first_query,
            first_nearest: self.first_nearest,
            earlier: earlier.to_vec(),
            nearest: rest[..self.prompt_tokens].to_vec(),
            layer_weights: self.layer_weights,
        })
    }
}
