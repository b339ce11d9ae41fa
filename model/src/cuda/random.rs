//! Random weights, made on the device: the speed of a shape can be measured without its checkpoint.

use std::sync::Arc;

use gpu::{CudaFunction, CudaSlice, CudaStream, Device, Kernels, LaunchConfig, PushKernelArg};
use half::bf16;

use super::weights::{CudaBlock, CudaWeights, Matrix};
use crate::config::Config;
use crate::error::Result;

const FATBIN: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/random.fatbin"));
/// As Hugging Face initialises Llamas.
const DEVIATION: f32 = 0.02;

struct Filler<'a> {
    device: &'a Device,
    stream: &'a Arc<CudaStream>,
    kernel: CudaFunction,
    seed: u64,
}

impl CudaWeights {
    /// Weights of `config`'s shape that depend on the seed alone; norms are 1.
    pub(crate) fn random(device: &Device, stream: &Arc<CudaStream>, c: &Config, seed: u64) -> Result<Self> {
        let kernel = Kernels::load(device, "random", FATBIN)?.function("fill_random")?;
        let mut filler = Filler { device, stream, kernel, seed };
        let embedding = filler.matrix(c.vocab_size, c.hidden_size)?;
        let head =
            if c.tie_word_embeddings { None } else { Some(filler.matrix(c.vocab_size, c.hidden_size)?) };
        let blocks = (0..c.layers).map(|_| filler.block(c)).collect::<Result<_>>()?;
        Ok(Self::assemble(embedding, blocks, filler.ones(c.hidden_size)?, head))
    }
}

impl Filler<'_> {
    fn block(&mut self, c: &Config) -> Result<CudaBlock> {
        let queries = c.heads * c.head_dim;
        Ok(CudaBlock {
            input_norm: self.ones(c.hidden_size)?,
            qkv: self.matrix(queries + 2 * c.kv_heads * c.head_dim, c.hidden_size)?,
            output: self.matrix(c.hidden_size, queries)?,
            post_norm: self.ones(c.hidden_size)?,
            gate_up: self.matrix(2 * c.intermediate_size, c.hidden_size)?,
            down: self.matrix(c.hidden_size, c.intermediate_size)?,
        })
    }

    fn ones(&self, len: usize) -> Result<CudaSlice<f32>> {
        Ok(self.device.upload(self.stream, "a norm", &vec![1.0; len])?)
    }

    /// Each matrix takes the next seed of the series.
    fn matrix(&mut self, outputs: usize, inputs: usize) -> Result<Matrix> {
        let count = (outputs * inputs) as u64;
        let mut data: CudaSlice<bf16> = self.device.buffer(self.stream, "the weights", outputs * inputs)?;
        self.seed = self.seed.wrapping_mul(0x5851_f42d_4c95_7f2d).wrapping_add(1);
        let mut launch = self.stream.launch_builder(&self.kernel);
        launch.arg(&mut data).arg(&count).arg(&self.seed).arg(&DEVIATION);
        let config = LaunchConfig { grid_dim: (1024, 1, 1), block_dim: (256, 1, 1), shared_mem_bytes: 0 };
        // SAFETY: the buffer has `count` elements.
        unsafe { launch.launch(config) }.map_err(gpu::Error::from)?;
        Ok(Matrix { data, outputs, inputs })
    }
}
