//! One session's KV cache on the device.

use std::sync::Arc;

use gpu::{CudaStream, KvPages, KvPool, KvView};

use crate::error::{Error, Result};

/// Keys (after RoPE) and values of one session, in pages of a pool. Drop it when no stream works on it any more.
#[derive(Debug)]
pub struct CudaCache {
    pages: Arc<KvPages>,
    len: usize,
}

impl CudaCache {
    /// An empty cache with room for `tokens` tokens.
    ///
    /// # Errors
    /// [`gpu::Error::NoPages`]; nothing is taken then.
    pub fn new(pool: &Arc<KvPool>, stream: &Arc<CudaStream>, tokens: usize) -> Result<Self> {
        Ok(Self { pages: Arc::new(pool.take(stream, tokens)?), len: 0 })
    }

    /// A cache with room for `tokens` tokens that begins as another does: the first `shared` tokens are there already, in the other's
    /// pages, to which neither may write from now on.
    ///
    /// # Errors
    /// [`gpu::Error::NoPages`], with nothing taken; [`Error::Range`] for tokens that the other does not hold or that do not fill their
    /// pages.
    pub fn after(other: &Self, stream: &Arc<CudaStream>, shared: usize, tokens: usize) -> Result<Self> {
        if shared > other.len || shared > tokens || !shared.is_multiple_of(gpu::PAGE_TOKENS) {
            return Err(Error::Range { start: 0, end: shared, len: other.len.min(tokens) });
        }
        let (pool, pages) = (other.pages.pool(), &other.pages.list()[..shared / gpu::PAGE_TOKENS]);
        Ok(Self { pages: Arc::new(pool.take_after(stream, pages, tokens)?), len: shared })
    }

    /// Tokens held.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether no token is held.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Tokens there is room for.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.pages.capacity()
    }

    /// Declares that the first `len` tokens are held, after they were written by others.
    ///
    /// # Errors
    /// [`Error::CacheFull`] beyond the capacity.
    pub fn set_len(&mut self, len: usize) -> Result<()> {
        if len > self.capacity() {
            return Err(Error::CacheFull { wanted: len, capacity: self.capacity() });
        }
        self.len = len;
        Ok(())
    }

    /// The pages it lies in. Whoever keeps them, to read tokens that are there already, keeps them from other sessions.
    #[must_use]
    pub fn pages(&self) -> &Arc<KvPages> {
        &self.pages
    }

    /// What kernels take.
    #[must_use]
    pub fn view(&self) -> KvView {
        self.pages.view()
    }
}
