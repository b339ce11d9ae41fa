//! One CUDA device as codec and model share it.
//!
//! Without the feature `cuda` this crate is empty. With it, no CUDA library is linked: driver and cuBLASLt are opened when a `Device`
//! is, so that the same binary runs on machines without them, and says what is missing when a device is asked for.
//!
//! # Streams and buffers
//! Work is queued on streams; nothing here waits unless it says so. cudarc's tracking of who uses a buffer is switched off (it would put an
//! event around every launch and cannot be captured into graphs), so two rules hold instead. A buffer belongs to the stream that it was
//! made on: another stream uses it only between two `CudaStream::wait`s on events, or after a
//! synchronisation. And it is dropped only when no other stream still works on it, since its memory goes back in the order of its own stream.
#![cfg(feature = "cuda")]
#![allow(unsafe_code)] // launches and foreign libraries; every block says why it holds

mod device;
mod error;
mod gemm;
mod graph;
mod kernels;
mod launch;
mod page_book;
mod page_map;
mod pages;
mod pinned;

pub use cudarc::driver::{
    CudaEvent, CudaFunction, CudaSlice, CudaStream, CudaView, CudaViewMut, DevicePtr, DevicePtrMut,
    DeviceRepr, LaunchConfig, PushKernelArg, ValidAsZeroBits, sys::CUdeviceptr,
};
pub use device::Device;
pub use error::{Error, Result};
pub use gemm::{Element, Gemm, Operand, Product};
pub use graph::Graph;
pub use kernels::Kernels;
pub use launch::{Argument, Launch};
pub use page_map::PageMap;
pub use pages::{KvPages, KvPool, KvShape, KvView, PAGE_TOKENS};
pub use pinned::Pinned;
