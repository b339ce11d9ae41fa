//! A Hugging Face Llama with an open KV cache: token ids in, logits out, and keys and values anyone may read and write.
//!
//! Knows no network and no codec. candle-transformers' Llama hides its cache, so the forward pass is this crate's own:
//! candle reads and widens the weights, the `gemm` crate multiplies. candle-transformers' Llama is the oracle in the
//! tests, beside golden values from Hugging Face Transformers.
//!
//! With the feature `cuda` there is the same model on an NVIDIA GPU, `CudaLlama`; the CPU's is its reference.
//!
//! The cache is bf16 at rest on every path, so that a cache that crossed the wire losslessly gives the same tokens as
//! one that never left.
#![deny(unsafe_code)]

mod attention;
mod block;
mod config;
#[cfg(feature = "cuda")]
#[allow(unsafe_code)] // launches of kernels; every block says why it holds
pub mod cuda;
mod error;
mod kv_cache;
mod linear;
mod llama;
mod matmul;
mod rope;
mod sampling;
mod simd;
mod weights;

pub use attention::ReceivedAttention;
pub use config::{Config, Llama3Scaling, Rope};
#[cfg(feature = "cuda")]
pub use cuda::{CudaCache, CudaLlama, CudaReceived, CudaVocabulary, Stage, Step};
pub use error::{Error, Result};
pub use kv_cache::{KvCache, KvElement};
pub use llama::{Llama, LogitsOf, Sequence};
pub use rope::{RopeTable, inv_freq};
pub use sampling::{Drawn, Draws, Edits, Logprobs, Sampling};
pub use weights::Weights;
