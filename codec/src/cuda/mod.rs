//! The codec on an NVIDIA GPU: caches stay in the device's pages, only coded bytes cross the bus.
//!
//! The container is the same, and from the quantized integers on every bit is: the CPU decodes what the GPU encoded, and the reverse. Matrix
//! products run on tensor cores with f16 inputs and f32 sums. That moves a coefficient by less than 1/64 of a step of tier 32, so a symbol
//! differs from the CPU's only where its coefficient lies that near to a border, and a decoded entry by at most two units in the last place
//! of the chunk's largest.
//!
//! `kvtc` has kernels for all stages. The other codecs are copied between pages and page-locked memory and go through the CPU's
//! [`Encoder`](crate::Encoder) and [`Decoder`](crate::Decoder) from there.
//!
//! # Reading order
//! `encode` and `decode` list the stages; `chunk` and `order` are what the host tells kernels of a chunk; `tables` is the plan in the form
//! that matrix products want; `kernels/kvtc_*.cu` are the stages.

mod block;
mod buffers;
mod chunk;
mod codec;
mod decode;
pub(crate) mod deflate;
mod encode;
mod escapes;
mod features;
mod kernels;
mod listed;
mod order;
mod products;
mod stopwatch;
mod tables;

pub use codec::CudaCodec;
pub use decode::CudaDecoder;
pub use encode::CudaEncoder;
pub use features::{DeviceFeatureTable, DeviceTokenFeatures};
