//! Copies between raw addresses on the device, for buffers that kernels lay out themselves.

use cudarc::driver::{CudaStream, sys};

use crate::error::Result;

/// Queues a copy of `bytes` bytes from one place of device memory to another.
///
/// # Safety
/// Both places must be valid device memory of that size, not overlapping, until the stream is through.
///
/// # Errors
/// When the driver fails.
pub unsafe fn copy_on_device(
    stream: &CudaStream,
    from: sys::CUdeviceptr,
    to: sys::CUdeviceptr,
    bytes: usize,
) -> Result<()> {
    if bytes == 0 {
        return Ok(());
    }
    // SAFETY: the caller vouches for both places.
    unsafe { sys::cuMemcpyDtoDAsync_v2(to, from, bytes, stream.cu_stream()).result()? };
    Ok(())
}
