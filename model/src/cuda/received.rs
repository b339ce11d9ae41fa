//! Attention that each token received from a prompt's last queries, summed on the device.

use std::sync::Arc;

use gpu::{
    CUdeviceptr, CudaFunction, CudaSlice, CudaStream, CudaView, Device, DevicePtr, DeviceRepr, Kernels,
    KvView, LaunchConfig, PAGE_TOKENS, PushKernelArg,
};
use half::bf16;

use super::attention::Queries;
use super::llama::CudaLlama;
use crate::attention::ReceivedAttention;
use crate::error::Result;

const FATBIN: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/received.fatbin"));
const FOLD_THREADS: usize = 256;
const ADD_THREADS: u32 = 128;

/// [`ReceivedAttention`] of one prompt on the device; see there what counts.
///
/// Each key/value head sums for itself, in the order of the layers, so that the same prompt gives the same bits every time.
pub struct CudaReceived {
    stream: Arc<CudaStream>,
    kernels: ReceivedKernels,
    folded: CudaSlice<f32>, // [earlier | nearest, prompt_tokens]
    sums: CudaSlice<f32>,   // [kv_heads, earlier | nearest, prompt_tokens]
    first_query: usize,
    first_nearest: usize,
    prompt_tokens: usize,
    kv_heads: usize,
    layer_weights: Vec<f32>,
}

/// `kernels/received.cu` for one head width.
#[derive(Debug, Clone)]
pub(crate) struct ReceivedKernels {
    add: CudaFunction,
    fold: CudaFunction,
}

impl ReceivedKernels {
    pub(crate) fn load(device: &Device, head_dim: usize) -> Result<Self> {
        let kernels = Kernels::load(device, "received", FATBIN)?;
        Ok(Self {
            add: kernels.function(&format!("add_received_{head_dim}"))?,
            fold: kernels.function("fold_received")?,
        })
    }
}

/// `struct Counted` of the kernels.
#[derive(Clone, Copy)]
#[repr(C)]
struct Counted {
    qkv: CUdeviceptr,
    lse: CUdeviceptr,
    lse_stride: u32,
    heads: u32,
    count: u32,
    position: u32,
    first_nearest: u32,
    layer: u32,
}

// SAFETY: plain integers in C's layout, the same as the kernels' struct.
unsafe impl DeviceRepr for Counted {}

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
            kernels: model.received.clone(),
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

    /// Tokens of the prompt that it is made for.
    #[must_use]
    pub fn prompt_tokens(&self) -> usize {
        self.prompt_tokens
    }

    /// The first of the queries from `position` to `end` that counts; `end` where none does.
    pub(crate) fn first_counted(&self, position: usize, end: usize) -> usize {
        self.first_query.clamp(position, end)
    }

    /// Adds what the queries in `qkv` `[count, heads + 2 * kv_heads, head_dim]` give, all of which count. `lse` holds the logarithms of
    /// their softmaxes' denominators, `lse_stride` of them for each head, the queries' own at the end.
    pub(crate) fn add(
        &mut self,
        queries: Queries,
        qkv: &CudaView<'_, bf16>,
        kv: &KvView,
        lse: &CudaView<'_, f32>,
        lse_stride: usize,
    ) -> Result<()> {
        let features = (queries.heads + 2 * kv.kv_heads as usize) * kv.head_dim as usize;
        let count = qkv.len() / features;
        assert_eq!(lse.len(), queries.heads * lse_stride, "sums of every head; this is a bug");
        assert!(count <= lse_stride, "a sum for every query; this is a bug");
        let end = queries.position + count;
        let lse = lse.slice(lse_stride - count..);
        let (weight, prompt_tokens) =
            (self.layer_weights.get(queries.layer).copied().unwrap_or(1.0), self.prompt_tokens as u32);
        let counted = Counted {
            qkv: qkv.device_ptr(&self.stream).0,
            lse: lse.device_ptr(&self.stream).0,
            lse_stride: lse_stride as u32,
            heads: queries.heads as u32,
            count: count as u32,
            position: queries.position as u32,
            first_nearest: self.first_nearest as u32,
            layer: queries.layer as u32,
        };
        let config = LaunchConfig {
            grid_dim: (end.div_ceil(PAGE_TOKENS) as u32, kv.kv_heads, 1),
            block_dim: (ADD_THREADS, 1, 1),
            shared_mem_bytes: 0,
        };
        let mut launch = self.stream.launch_builder(&self.kernels.add);
        launch.arg(&counted).arg(kv).arg(&weight).arg(&prompt_tokens).arg(&mut self.sums);
        // SAFETY: the buffers have these shapes; the kernel reads no page and writes no token beyond the last.
        unsafe { launch.launch(config) }.map_err(gpu::Error::from)?;
        Ok(())
    }

    /// Sums over the heads, on the device: `[earlier | nearest, prompt_tokens]`, on the model's stream.
    ///
    /// # Errors
    /// When the driver fails.
    pub fn folded(&mut self) -> Result<&CudaSlice<f32>> {
        let outputs = 2 * self.prompt_tokens;
        let (kv_heads, count) = (self.kv_heads as u32, outputs as u32);
        let mut launch = self.stream.launch_builder(&self.kernels.fold);
        launch.arg(&self.sums).arg(&kv_heads).arg(&count).arg(&mut self.folded);
        let config = LaunchConfig {
            grid_dim: (outputs.div_ceil(FOLD_THREADS).max(1) as u32, 1, 1),
            block_dim: (FOLD_THREADS as u32, 1, 1),
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
        let folded = self.stream.clone_dtoh(&self.folded).map_err(gpu::Error::from)?;
        let (earlier, nearest) = folded[..2 * self.prompt_tokens].split_at(self.prompt_tokens);
        Ok(ReceivedAttention {
            first_query: self.first_query,
            first_nearest: self.first_nearest,
            earlier: earlier.to_vec(),
            nearest: nearest.to_vec(),
            layer_weights: self.layer_weights,
        })
    }
}
