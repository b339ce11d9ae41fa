//! The codec on an NVIDIA GPU: caches stay in the device's pages, only coded bytes cross the bus.
//!
//! The container is the same, and from the quantized integers on every bit is: the CPU decodes what the GPU encoded, and the reverse. Matrix
//! products run on tensor cores with f16 inputs and f32 sums, so a symbol differs from the CPU's where its coefficient lies within that rounding
//! of a border, and a decoded entry by less than 2^-7 of its side's largest.
//!
//! `kvtc` has kernels for all stages. `raw` is copied between pages and page-locked memory; the other codecs go through the CPU's
//! [`Encoder`](crate::Encoder) and [`Decoder`](crate::Decoder) from there.
//!
//! # Reading order
//! `kvtc/encode` and `kvtc/decode` list the stages; `order` is what the host tells kernels of a chunk; `tables` is the plan in the form that matrix
//! products want; `kernels/kvtc_*.cu` are the stages.

mod block;
mod buffers;
mod codec;
mod decode;
pub(crate) mod deflate;
mod encode;
mod escapes;
mod features;
mod kernels;
mod kvtc;
mod order;
mod products;
mod stopwatch;
mod tables;

pub use codec::CudaCodec;
pub use decode::CudaDecoder;
pub use encode::CudaEncoder;
pub use features::{DeviceFeatureTable, DeviceTokenFeatures};
