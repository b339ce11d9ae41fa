//! KV cache on the device: one pool made at start, handed out in pages, so that a session's memory is certain once it is reserved and
//! never moves.

use std::sync::{Arc, Mutex, PoisonError};

use cudarc::driver::{CudaSlice, CudaStream, DevicePtr, sys::CUdeviceptr};
use half::bf16;

use crate::device::Device;
use crate::error::{Error, Result};

/// Tokens of a page. The kernels know it too: `include/kv_pages.cuh`.
pub const PAGE_TOKENS: usize = 64;

/// Shape of one token's cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct KvShape {
    /// Transformer blocks.
    pub layers: usize,
    /// Key/value heads per layer.
    pub kv_heads: usize,
    /// Elements per head.
    pub head_dim: usize,
}

impl KvShape {
    /// Elements of one page: keys and values of all layers.
    fn page_elements(&self) -> usize {
        2 * self.layers * self.kv_heads * PAGE_TOKENS * self.head_dim
    }
}

/// All KV memory of a process, bf16: `[layers, keys | values, pages, kv_heads, PAGE_TOKENS, head_dim]`.
#[derive(Debug)]
pub struct KvPool {
    device: Device,
    shape: KvShape,
    pages: usize,
    memory: CudaSlice<bf16>,
    free: Mutex<Vec<u32>>,
}

impl KvPool {
    /// Takes memory for `tokens` tokens, rounded up to pages.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`].
    pub fn new(
        device: &Device,
        stream: &Arc<CudaStream>,
        shape: KvShape,
        tokens: usize,
    ) -> Result<Arc<Self>> {
        let pages = tokens.div_ceil(PAGE_TOKENS).max(1);
        let what = format!("the KV cache of {tokens} tokens");
        let memory = device.zeros(stream, &what, pages * shape.page_elements())?;
        stream.synchronize()?;
        // The last in the list goes out first.
        let free = Mutex::new((0..pages as u32).rev().collect());
        Ok(Arc::new(Self { device: device.clone(), shape, pages, memory, free }))
    }

    /// Shape of one token's cache.
    #[must_use]
    pub fn shape(&self) -> KvShape {
        self.shape
    }

    /// Pages in all.
    #[must_use]
    pub fn pages(&self) -> usize {
        self.pages
    }

    /// Tokens that can still be handed out.
    #[must_use]
    pub fn free_tokens(&self) -> usize {
        self.free.lock().unwrap_or_else(PoisonError::into_inner).len() * PAGE_TOKENS
    }

    /// Bytes of the pool.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.pages * self.shape.page_elements() * size_of::<bf16>()
    }

    /// The pool's first element.
    #[must_use]
    pub fn pointer(&self) -> CUdeviceptr {
        let (pointer, _guard) = self.memory.device_ptr(self.memory.stream());
        pointer
    }

    /// Pages for `tokens` tokens, given back when dropped.
    ///
    /// # Errors
    /// [`Error::NoPages`]; nothing is taken then.
    pub fn take(self: &Arc<Self>, stream: &Arc<CudaStream>, tokens: usize) -> Result<KvPages> {
        let wanted = tokens.div_ceil(PAGE_TOKENS);
        let list = {
            let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
            let Some(rest) = free.len().checked_sub(wanted) else {
                return Err(Error::NoPages { wanted, free: free.len() });
            };
            free.split_off(rest)
        };
        // From here on the pages go back by drop.
        let mut pages = KvPages { pool: Arc::clone(self), list, table: None };
        pages.table = Some(self.device.upload(stream, "a page table", &pages.list)?);
        stream.synchronize()?;
        Ok(pages)
    }
}

/// Pages of one session. Drop it when no stream works on them any more: the next session may get them at once.
#[derive(Debug)]
pub struct KvPages {
    pool: Arc<KvPool>,
    list: Vec<u32>,
    table: Option<CudaSlice<u32>>,
}

impl KvPages {
    /// Numbers of the pages, in the order of the tokens.
    #[must_use]
    pub fn list(&self) -> &[u32] {
        &self.list
    }

    /// Tokens there is room for.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.list.len() * PAGE_TOKENS
    }

    /// The pool that they belong to.
    #[must_use]
    pub fn pool(&self) -> &Arc<KvPool> {
        &self.pool
    }

    /// What kernels take.
    #[must_use]
    pub fn view(&self) -> KvView {
        let table = self.table.as_ref().map_or(0, |table| table.device_ptr(table.stream()).0);
        KvView {
            pool: self.pool.pointer(),
            table,
            pool_pages: self.pool.pages as u32,
            pages: self.list.len() as u32,
            layers: self.pool.shape.layers as u32,
            kv_heads: self.pool.shape.kv_heads as u32,
            head_dim: self.pool.shape.head_dim as u32,
            reserved: 0,
        }
    }
}

impl Drop for KvPages {
    fn drop(&mut self) {
        self.pool.free.lock().unwrap_or_else(PoisonError::into_inner).extend(self.list.drain(..).rev());
    }
}

/// A session's cache as kernels get it, by value: `struct KvView` of `include/kv_pages.cuh`.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
pub struct KvView {
    /// bf16, `[layers, keys | values, pool_pages, kv_heads, PAGE_TOKENS, head_dim]`.
    pub pool: CUdeviceptr,
    /// u32, `[pages]`: where each [`PAGE_TOKENS`] tokens lie.
    pub table: CUdeviceptr,
    /// Pages of the pool.
    pub pool_pages: u32,
    /// Pages of the session.
    pub pages: u32,
    /// Transformer blocks.
    pub layers: u32,
    /// Key/value heads per layer.
    pub kv_heads: u32,
    /// Elements per head.
    pub head_dim: u32,
    /// 0.
    pub reserved: u32,
}

// SAFETY: plain integers in C's layout, the same as the kernels' struct.
unsafe impl cudarc::driver::DeviceRepr for KvView {}
