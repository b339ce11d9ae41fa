//! Launches of `kernels/attend.cu` and `kernels/attend_hopper.cu`: causal grouped-query attention over a paged cache.

use std::sync::Arc;

use gpu::{
    CUdeviceptr, CudaFunction, CudaStream, CudaView, CudaViewMut, Device, DevicePtr, DevicePtrMut,
    DeviceRepr, Kernels, KvView, LaunchConfig, PAGE_TOKENS, PageMap, PushKernelArg,
};
use half::bf16;

use crate::error::Result;

const FATBIN: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/attend.fatbin"));
const HOPPER_FATBIN: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/attend_hopper.fatbin"));

/// Where an attention call's queries stand.
#[derive(Debug, Clone, Copy)]
pub struct Queries {
    /// Query heads.
    pub heads: usize,
    /// Position of the first query.
    pub position: usize,
    /// Which layer's keys and values they meet.
    pub layer: usize,
}

/// `struct Prompt` of the kernels.
#[derive(Clone, Copy)]
#[repr(C)]
struct Prompt {
    qkv: CUdeviceptr,
    out: CUdeviceptr,
    lse: CUdeviceptr,
    heads: u32,
    tokens: u32,
    position: u32,
    layer: u32,
}

// SAFETY: plain integers in C's layout, the same as the kernels' struct.
unsafe impl DeviceRepr for Prompt {}

/// Which kernel runs, and how it is launched.
#[derive(Debug)]
struct Kernel {
    function: CudaFunction,
    is_for_hopper: bool,
    /// Queries of one block.
    queries: u32,
    threads: u32,
    shared_bytes: usize,
}

impl Kernel {
    /// For any card: 128 queries meet a page of keys and values at a time, two of each in shared memory.
    fn portable(device: &Device, head_dim: usize) -> Result<Self> {
        let shared_bytes = 4 * PAGE_TOKENS * head_dim * size_of::<bf16>();
        let kernels = Kernels::load(device, "attend", FATBIN)?;
        let function = kernels.function_with_shared(&format!("attend_{head_dim}"), shared_bytes)?;
        Ok(Self { function, is_for_hopper: false, queries: 128, threads: 256, shared_bytes })
    }

    /// For Hopper, if this is one: groups of 64 queries meet two pages at a time, two pairs of keys and of values in shared memory.
    fn hopper(device: &Device, head_dim: usize) -> Result<Option<Self>> {
        let kernels = Kernels::load(device, "attend_hopper", HOPPER_FATBIN)?;
        let name = format!("attend_hopper_{head_dim}");
        if !kernels.is_for_hopper(&name)? {
            return Ok(None);
        }
        let groups = if head_dim == 64 { 3 } else { 2 };
        let rows = 64 * groups + 4 * 2 * PAGE_TOKENS;
        let shared_bytes = rows * head_dim * size_of::<bf16>() + BARRIER_BYTES;
        let function = kernels.function_with_shared(&name, shared_bytes)?;
        let (queries, threads) = (64 * groups as u32, 128 * (groups as u32 + 1));
        Ok(Some(Self { function, is_for_hopper: true, queries, threads, shared_bytes }))
    }
}

/// Four kinds of barriers for two stages.
const BARRIER_BYTES: usize = 64;

/// The kernels for one head width, on one stream.
#[derive(Debug)]
pub struct AttentionKernels {
    stream: Arc<CudaStream>,
    kernel: Kernel,
    head_dim: usize,
}

impl AttentionKernels {
    /// The fastest for heads of `head_dim` elements, 64 or 128, that the card can run.
    ///
    /// # Errors
    /// When there is none.
    pub fn load(device: &Device, stream: &Arc<CudaStream>, head_dim: usize) -> Result<Self> {
        match Kernel::hopper(device, head_dim)? {
            Some(kernel) => Ok(Self { stream: Arc::clone(stream), kernel, head_dim }),
            None => Self::portable(device, stream, head_dim),
        }
    }

    /// The one for any card.
    ///
    /// # Errors
    /// When there is none for this width.
    pub fn portable(device: &Device, stream: &Arc<CudaStream>, head_dim: usize) -> Result<Self> {
        Ok(Self { stream: Arc::clone(stream), kernel: Kernel::portable(device, head_dim)?, head_dim })
    }

    /// `out` `[tokens, heads, head_dim]` of the queries in `qkv` `[tokens, heads + 2 * kv_heads, head_dim]`, whose keys and values are in
    /// `kv` already; `lse` `[heads, tokens]` takes the base-2 logarithm of each softmax's denominator.
    ///
    /// # Errors
    /// When the driver fails.
    ///
    /// # Panics
    /// For buffers of other sizes.
    pub fn attend(
        &self,
        queries: Queries,
        qkv: &CudaView<'_, bf16>,
        kv: &KvView,
        out: &mut CudaViewMut<'_, bf16>,
        lse: &mut CudaViewMut<'_, f32>,
    ) -> Result<()> {
        let (width, features) = (queries.heads * self.head_dim, queries.heads + 2 * kv.kv_heads as usize);
        let tokens = out.len() / width;
        assert_eq!(kv.head_dim as usize, self.head_dim, "another head width; this is a bug");
        assert_eq!(qkv.len(), tokens * features * self.head_dim, "a query per row out; this is a bug");
        assert_eq!(lse.len(), tokens * queries.heads, "one sum per query; this is a bug");
        let prompt = Prompt {
            qkv: qkv.device_ptr(&self.stream).0,
            out: out.device_ptr_mut(&self.stream).0,
            lse: lse.device_ptr_mut(&self.stream).0,
            heads: queries.heads as u32,
            tokens: tokens as u32,
            position: queries.position as u32,
            layer: queries.layer as u32,
        };
        let config = LaunchConfig {
            grid_dim: (prompt.heads, prompt.tokens.div_ceil(self.kernel.queries), 1),
            block_dim: (self.kernel.threads, 1, 1),
            shared_mem_bytes: self.kernel.shared_bytes as u32,
        };
        let map = if self.kernel.is_for_hopper { Some(PageMap::new(kv)?) } else { None };
        let mut launch = self.stream.launch_builder(&self.kernel.function);
        if let Some(map) = &map {
            launch.arg(map);
        }
        launch.arg(&prompt).arg(kv);
        // SAFETY: the buffers have these shapes, and the kernel reads no key beyond the pages.
        unsafe { launch.launch(config) }.map_err(gpu::Error::from)?;
        Ok(())
    }
}
