//! What the first block sees of tokens, for others than the forward pass.

use std::sync::Arc;

use gpu::{CUdeviceptr, CudaFunction, CudaStream, Device, Kernels, LaunchConfig, PushKernelArg};

use super::weights::CudaWeights;
use crate::error::Result;

const FATBIN: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/rows.fatbin"));

/// Normalised embeddings, as [`crate::Llama::token_features`]; clones share the weights and may be used on any thread and stream.
#[derive(Debug, Clone)]
pub struct CudaVocabulary {
    weights: Arc<CudaWeights>,
    kernel: CudaFunction,
    eps: f32,
}

impl CudaVocabulary {
    pub(crate) fn new(device: &Device, weights: &Arc<CudaWeights>, eps: f64) -> Result<Self> {
        let kernel = Kernels::load(device, "rows", FATBIN)?.function("token_features")?;
        Ok(Self { weights: Arc::clone(weights), kernel, eps: eps as f32 })
    }

    /// Width of a row.
    #[must_use]
    pub fn hidden_size(&self) -> usize {
        self.weights.embedding.inputs
    }

    /// Tokens that there are.
    #[must_use]
    pub fn vocab_size(&self) -> usize {
        self.weights.embedding.outputs
    }

    /// Queues on `stream`: `out` `[count, hidden]` f16 = what the first block's attention sees of the tokens `ids` `[count]` u32, zeros for
    /// ids outside of the vocabulary.
    ///
    /// # Safety
    /// Both must be device memory of these sizes, `out` on a 16-byte boundary, until the stream is through.
    ///
    /// # Errors
    /// When the driver fails.
    pub unsafe fn write(
        &self,
        stream: &Arc<CudaStream>,
        ids: CUdeviceptr,
        count: usize,
        out: CUdeviceptr,
    ) -> gpu::Result<()> {
        if count == 0 {
            return Ok(());
        }
        let embedding = &self.weights.embedding;
        let norm = &self.weights.blocks[0].input_norm;
        let (vocab, hidden) = (embedding.outputs as u32, embedding.inputs as u32);
        let mut launch = stream.launch_builder(&self.kernel);
        launch.arg(&ids).arg(&embedding.data).arg(norm).arg(&vocab).arg(&hidden).arg(&self.eps).arg(&out);
        let config =
            LaunchConfig { grid_dim: (count as u32, 1, 1), block_dim: (256, 1, 1), shared_mem_bytes: 0 };
        // SAFETY: the weights have these shapes, the caller vouches for the rest; the kernel checks the ids.
        unsafe { launch.launch(config) }?;
        Ok(())
    }
}
