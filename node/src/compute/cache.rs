//! One session's KV cache, wherever it is.

use std::ops::Range;

use codec::KvBlock;
use half::bf16;
use model::{KvCache, ReceivedAttention};

use crate::prompt;

/// A session's cache.
#[derive(Debug)]
pub enum Cache {
    /// In host memory.
    Host(KvCache<bf16>),
    /// In pages of a GPU's memory.
    #[cfg(feature = "cuda")]
    Device(model::cuda::CudaCache),
}

/// Tokens of a cache on their way to the codec: a copy in host memory, or a hold on the pages that they lie in.
#[derive(Debug)]
pub enum Part {
    /// Copied out.
    Host(KvBlock),
    /// Where they lie; later tokens may be added meanwhile.
    #[cfg(feature = "cuda")]
    Device {
        /// The session's pages, which stay its own for as long as this lives.
        pages: std::sync::Arc<gpu::KvPages>,
        /// Positions in the prompt.
        tokens: Range<usize>,
    },
}

/// Attention that a prompt's tokens received, summed up where the model runs.
#[derive(Debug)]
pub enum Received {
    /// In host memory.
    Host(ReceivedAttention),
    /// On a GPU.
    #[cfg(feature = "cuda")]
    Device(model::cuda::CudaReceived),
}

impl Cache {
    /// Tokens held.
    #[must_use]
    pub fn len(&self) -> usize {
        match self {
            Self::Host(cache) => cache.len(),
            #[cfg(feature = "cuda")]
            Self::Device(cache) => cache.len(),
        }
    }

    /// Whether no token is held.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Declares that the first `len` tokens are held, after an [`Importer`](super::Importer) wrote them.
    ///
    /// # Errors
    /// Beyond the capacity.
    pub fn set_len(&mut self, len: usize) -> model::Result<()> {
        match self {
            Self::Host(cache) => cache.set_len(len),
            #[cfg(feature = "cuda")]
            Self::Device(cache) => cache.set_len(len),
        }
    }

    /// Tokens for the codec; they must have been computed.
    ///
    /// # Errors
    /// For tokens that the cache does not hold.
    pub fn part(&self, tokens: Range<usize>) -> model::Result<Part> {
        match self {
            Self::Host(cache) => prompt::export(cache, tokens).map(Part::Host),
            #[cfg(feature = "cuda")]
            Self::Device(cache) => {
                let (start, end, len) = (tokens.start, tokens.end, cache.len());
                if start > end || end > len {
                    return Err(model::Error::Range { start, end, len });
                }
                Ok(Part::Device { pages: std::sync::Arc::clone(cache.pages()), tokens })
            }
        }
    }
}

impl Received {
    /// Where the model runs on the host.
    pub(crate) fn host(&mut self) -> &mut ReceivedAttention {
        match self {
            Self::Host(received) => received,
            #[cfg(feature = "cuda")]
            Self::Device(_) => panic!("attention of another machine; this is a bug"),
        }
    }

    /// Where it runs on a GPU.
    #[cfg(feature = "cuda")]
    pub(crate) fn device(&mut self) -> &mut model::cuda::CudaReceived {
        match self {
            Self::Device(received) => received,
            Self::Host(_) => panic!("attention of another machine; this is a bug"),
        }
    }

    /// The steps' shifts of the prompt's tokens, by the attention that they received.
    ///
    /// # Errors
    /// When the device fails.
    pub fn shifts(self) -> model::Result<Vec<i8>> {
        match self {
            Self::Host(received) => Ok(prompt::shifts(&received)),
            #[cfg(feature = "cuda")]
            Self::Device(received) => Ok(prompt::shifts(&received.into_host()?)),
        }
    }
}
