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
mod received;
mod rope;
mod rows;
mod upload;
mod vocabulary;
mod weights;
mod workspace;

pub use cache::CudaCache;
pub use decode::Step;
pub use llama::CudaLlama;
pub use received::CudaReceived;
pub use vocabulary::CudaVocabulary;
