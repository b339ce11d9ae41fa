//! From a row of the residual stream to logits and the most likely token.

use std::sync::Arc;

use gpu::{CudaFunction, CudaSlice, CudaStream, Device, Kernels, LaunchConfig, Pinned, PushKernelArg};

use crate::error::Result;

const FATBIN: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/head.fatbin"));
/// What the kernel is written for.
const THREADS: u32 = 1024;

/// The last logits and how they leave the device.
pub(crate) struct Head {
    stream: Arc<CudaStream>,
    argmax: CudaFunction,
    /// `[vocab]`
    pub(crate) logits: CudaSlice<f32>,
    token: CudaSlice<u32>,
    host_logits: Pinned<f32>,
    host_token: Pinned<u32>,
}

impl Head {
    pub(crate) fn new(device: &Device, stream: &Arc<CudaStream>, vocab: usize) -> Result<Self> {
        Ok(Self {
            stream: Arc::clone(stream),
            argmax: Kernels::load(device, "head", FATBIN)?.function("argmax")?,
            logits: device.zeros(stream, "logits", vocab)?,
            token: device.zeros(stream, "a token", 1)?,
            host_logits: Pinned::zeros(device, vocab)?,
            host_token: Pinned::zeros(device, 1)?,
        })
    }

    /// Waits for the logits, `[vocab]`.
    pub(crate) fn download(&mut self) -> Result<Vec<f32>> {
        let vocab = self.logits.len();
        self.host_logits.copy_from(&self.stream, vocab, &self.logits)?;
        self.stream.synchronize().map_err(gpu::Error::from)?;
        Ok(self.host_logits.as_slice()?.to_vec())
    }

    /// Waits for the most likely token, the first of equals.
    pub(crate) fn greedy(&mut self) -> Result<u32> {
        let vocab = self.logits.len() as u32;
        let mut launch = self.stream.launch_builder(&self.argmax);
        launch.arg(&self.logits).arg(&vocab).arg(&mut self.token);
        let config = LaunchConfig { grid_dim: (1, 1, 1), block_dim: (THREADS, 1, 1), shared_mem_bytes: 0 };
        // SAFETY: the buffers have these shapes.
        unsafe { launch.launch(config) }.map_err(gpu::Error::from)?;
        self.host_token.copy_from(&self.stream, 1, &self.token)?;
        self.stream.synchronize().map_err(gpu::Error::from)?;
        Ok(self.host_token.as_slice()?[0])
    }
}
