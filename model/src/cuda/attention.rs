//! Launches of `kernels/attend.cu`: causal grouped-query attention over a paged cache.

use std::sync::Arc;

use gpu::{
    CudaFunction, CudaStream, CudaView, CudaViewMut, Device, Kernels, KvView, LaunchConfig, PAGE_TOKENS,
    PushKernelArg,
};
use half::bf16;

use crate::error::Result;

const FATBIN: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/attend.fatbin"));
/// Queries of one block, and its threads.
const QUERIES: u32 = 128;
const THREADS: u32 = 256;

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

/// The kernels for one head width, on one stream.
#[derive(Debug)]
pub struct AttentionKernels {
    stream: Arc<CudaStream>,
    attend: CudaFunction,
    head_dim: usize,
}

impl AttentionKernels {
    /// Those for heads of `head_dim` elements, 64 or 128.
    ///
    /// # Errors
    /// When there are none, or the card cannot run them.
    pub fn load(device: &Device, stream: &Arc<CudaStream>, head_dim: usize) -> Result<Self> {
        let kernels = Kernels::load(device, "attend", FATBIN)?;
        let attend = kernels.function_with_shared(&format!("attend_{head_dim}"), shared_bytes(head_dim))?;
        Ok(Self { stream: Arc::clone(stream), attend, head_dim })
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
        let (heads, rows) = (queries.heads as u32, tokens as u32);
        let (position, layer) = (queries.position as u32, queries.layer as u32);
        let config = LaunchConfig {
            grid_dim: (heads, rows.div_ceil(QUERIES), 1),
            block_dim: (THREADS, 1, 1),
            shared_mem_bytes: shared_bytes(self.head_dim) as u32,
        };
        let mut launch = self.stream.launch_builder(&self.attend);
        launch.arg(qkv).arg(&heads).arg(&rows).arg(&position).arg(&layer).arg(kv).arg(out).arg(lse);
        // SAFETY: the buffers have these shapes, and the kernel reads no key beyond the pages.
        unsafe { launch.launch(config) }.map_err(gpu::Error::from)?;
        Ok(())
    }
}

/// Two pages of keys and two of values.
fn shared_bytes(head_dim: usize) -> usize {
    4 * PAGE_TOKENS * head_dim * size_of::<bf16>()
}
