//! The forward pass on an NVIDIA GPU, in bf16: the same Llama as [`crate::Llama`], which is its reference.
//!
//! The residual stream is f32, everything between is bf16 with f32 sums. Keys and values go straight into the pages of a [`gpu::KvPool`].
//! Linear layers are cuBLASLt's; all else are the kernels of `kernels/`.

mod attention;
mod cache;
mod decode;
mod head;
mod linear;
mod llama;
mod prompt;
mod random;
mod received;
mod rope;
mod rows;
mod timeline;
mod tune;
mod upload;
mod vocabulary;
mod weights;
mod workspace;

pub use cache::CudaCache;
pub use decode::Step;
pub use llama::CudaLlama;
pub use received::CudaReceived;
pub use timeline::Stage;
pub use vocabulary::CudaVocabulary;

/// The kernels themselves, for tests that compare each with its CPU twin.
#[doc(hidden)]
pub mod kernels {
    pub use super::attention::{AttentionKernels, Queries};
    pub use super::rope::CudaRope;
    pub use super::rows::RowKernels;
}
