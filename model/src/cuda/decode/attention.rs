//! Launches of `kernels/decode_attention.cu`: one query per session over its pages.

use std::sync::Arc;

use gpu::{Argument, CUdeviceptr, CudaFunction, CudaStream, Device, DeviceRepr, Kernels, KvView, Launch};

use crate::config::Config;
use crate::error::{Error, Result};

const FATBIN: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/decode_attention.fatbin"));
/// Of a block, in 4 warps.
const THREADS: usize = 128;
/// Of each warp's ring of keys and values.
const STAGES: usize = 3;
/// Most query heads of a KV head.
pub(crate) const GROUP: usize = 8;
/// Blocks that a multiprocessor has room for with either head size.
const BLOCKS_PER_MULTIPROCESSOR: usize = 2;

/// What is attended to, and by whom: `struct Attention`.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub(crate) struct Attention {
    pub(crate) kv: KvView,
    pub(crate) step: CUdeviceptr,
    pub(crate) shares: CUdeviceptr,
    pub(crate) count: CUdeviceptr,
    pub(crate) queries: CUdeviceptr,
    pub(crate) out: CUdeviceptr,
    pub(crate) partial: CUdeviceptr,
    pub(crate) arrived: CUdeviceptr,
    pub(crate) heads: u32,
    pub(crate) layer: u32,
    pub(crate) scale: f32,
}

// SAFETY: plain numbers in C's layout, the same as the kernel's struct.
unsafe impl DeviceRepr for Attention {}

/// The kernel for a model's head size, on one stream.
pub(crate) struct DecodeAttention {
    stream: Arc<CudaStream>,
    function: CudaFunction,
    shared: usize,
    blocks: usize,
    early: bool,
}

impl DecodeAttention {
    pub(crate) fn load(device: &Device, stream: &Arc<CudaStream>, config: &Config) -> Result<Self> {
        if config.group() > GROUP {
            return Err(Error::InvalidArgument(format!(
                "{} query heads per KV head, the GPU's attention is made for up to {GROUP}; run this model on the CPU with --device cpu",
                config.group()
            )));
        }
        // Keys and values of 16 tokens per warp and stage, then the warps' results.
        let shared = 4 * (STAGES * 16 * 2 * config.head_dim * 2 + GROUP * (config.head_dim + 2) * 4);
        let name = format!("decode_attention_{}", config.head_dim);
        let kernels = Kernels::load(device, "decode_attention", FATBIN)?;
        Ok(Self {
            stream: Arc::clone(stream),
            function: kernels.function_with_shared(&name, shared)?,
            shared,
            blocks: (device.multiprocessors()? * BLOCKS_PER_MULTIPROCESSOR).div_ceil(config.kv_heads),
            early: device.launches_early()?,
        })
    }

    /// Blocks that work on one KV head.
    pub(crate) fn blocks(&self) -> usize {
        self.blocks
    }

    /// Elements of `partial` for so many shares.
    pub(crate) fn partial_elements(shares: usize, config: &Config) -> usize {
        shares * config.kv_heads * GROUP * (config.head_dim + 2)
    }

    pub(crate) fn attend(&self, attention: Attention) -> Result<()> {
        let launch = Launch {
            function: &self.function,
            grid: (self.blocks, attention.kv.kv_heads as usize),
            threads: THREADS,
            shared: self.shared,
            early: self.early,
        };
        // SAFETY: the struct is the kernel's, and its buffers have the shapes that it says.
        Ok(unsafe { launch.queue(&self.stream, &[Argument::of(&attention)]) }?)
    }
}
