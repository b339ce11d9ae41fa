//! KV cache on the device: one pool made at start, handed out in pages, so that a session's memory is certain once it is reserved and
//! never moves. Sessions that begin alike may hold the same pages.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use cudarc::driver::{CudaSlice, CudaStream, DevicePtr, sys::CUdeviceptr};
use half::bf16;

use crate::device::Device;
use crate::error::Result;
use crate::page_book::PageBook;

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
    book: Mutex<PageBook>,
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
        let book = Mutex::new(PageBook::new(pages));
        Ok(Arc::new(Self { device: device.clone(), shape, pages, memory, book }))
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
        self.book().free() * PAGE_TOKENS
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
        self.take_after(stream, &[], tokens)
    }

    /// Pages for `tokens` tokens, the first of which are another session's: both hold them, and neither may write there any more.
    ///
    /// # Errors
    /// [`Error::NoPages`]; nothing is taken then.
    ///
    /// # Panics
    /// For more shared pages than are wanted in all, or such that nobody holds.
    pub fn take_after(
        self: &Arc<Self>,
        stream: &Arc<CudaStream>,
        shared: &[u32],
        tokens: usize,
    ) -> Result<KvPages> {
        let list = self.book().take_after(shared, tokens.div_ceil(PAGE_TOKENS))?;
        // From here on the pages go back by drop.
        let mut pages = KvPages { pool: Arc::clone(self), list, table: None };
        pages.table = Some(self.device.upload(stream, "a page table", &pages.list)?);
        stream.synchronize()?;
        Ok(pages)
    }

    fn book(&self) -> MutexGuard<'_, PageBook> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
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
        self.pool.book().give_back(&self.list);
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
