//! Host memory that the device copies to and from at full speed and without the CPU.

use std::ffi::c_void;

use cudarc::driver::{CudaSlice, CudaStream, DeviceRepr, PinnedHostSlice, ValidAsZeroBits, sys};

use crate::device::Device;
use crate::error::{Error, Result};

/// A fixed piece of page-locked memory.
#[derive(Debug)]
pub struct Pinned<T: DeviceRepr> {
    memory: PinnedHostSlice<T>,
    /// Its address: cudarc tells it only after a wait, which cannot be recorded into a graph.
    address: usize,
}

impl<T: DeviceRepr + ValidAsZeroBits> Pinned<T> {
    /// Room for `len` elements, all 0.
    ///
    /// # Errors
    /// When the system refuses to lock so much memory.
    pub fn zeros(device: &Device, len: usize) -> Result<Self> {
        // SAFETY: the elements are written below before anybody can read them.
        let memory = unsafe {
            device.context().alloc_pinned_with_flags::<T>(len.max(1), sys::CU_MEMHOSTALLOC_PORTABLE)
        };
        let mut memory = memory?;
        // SAFETY: the pointer is valid for the length, and zero bits are valid elements.
        unsafe { std::ptr::write_bytes(memory.as_mut_ptr()?, 0, len.max(1)) };
        let address = memory.as_mut_ptr()? as usize;
        Ok(Self { memory, address })
    }

    /// Elements there is room for.
    #[must_use]
    pub fn len(&self) -> usize {
        self.memory.len()
    }

    /// Whether there is room for nothing.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.memory.is_empty()
    }

    /// What is there. Synchronise the stream of a copy first: nothing here knows of it.
    ///
    /// # Errors
    /// When the driver fails.
    pub fn as_slice(&self) -> Result<&[T]> {
        Ok(self.memory.as_slice()?)
    }

    /// To be written, once no copy from it is in flight.
    ///
    /// # Errors
    /// When the driver fails.
    pub fn as_mut_slice(&mut self) -> Result<&mut [T]> {
        Ok(self.memory.as_mut_slice()?)
    }

    /// Queues a copy of the first `len` elements to the start of `to`. The memory must not be written until `stream` is through.
    ///
    /// # Errors
    /// For more elements than either has.
    pub fn copy_to(&self, stream: &CudaStream, len: usize, to: &mut CudaSlice<T>) -> Result<()> {
        self.copy_to_range(stream, len, to, 0)
    }

    /// Queues a copy of the first `len` elements to those of `to` from `start` on. The memory must not be written until `stream` is
    /// through.
    ///
    /// # Errors
    /// For more elements than either has.
    pub fn copy_to_range(
        &self,
        stream: &CudaStream,
        len: usize,
        to: &mut CudaSlice<T>,
        start: usize,
    ) -> Result<()> {
        check(len, self.len(), to.len().saturating_sub(start))?;
        if len == 0 {
            return Ok(());
        }
        // SAFETY: both ends hold `len` elements; the caller keeps the memory until the stream is through.
        unsafe {
            let (to, _guard) = cudarc::driver::DevicePtrMut::device_ptr_mut(to, stream);
            let from = self.address as *const c_void;
            let to = to + (start * size_of::<T>()) as u64;
            sys::cuMemcpyHtoDAsync_v2(to, from, len * size_of::<T>(), stream.cu_stream()).result()?;
        }
        Ok(())
    }

    /// Queues a copy of the first `len` elements of `from`. They are there once `stream` was synchronised.
    ///
    /// # Errors
    /// For more elements than either has.
    pub fn copy_from(&mut self, stream: &CudaStream, len: usize, from: &CudaSlice<T>) -> Result<()> {
        check(len, self.len(), from.len())?;
        if len == 0 {
            return Ok(());
        }
        // SAFETY: both ends hold `len` elements; reading waits for the stream.
        unsafe {
            let (from, _guard) = cudarc::driver::DevicePtr::device_ptr(from, stream);
            sys::cuMemcpyDtoHAsync_v2(
                self.address as *mut c_void,
                from,
                len * size_of::<T>(),
                stream.cu_stream(),
            )
            .result()?;
        }
        Ok(())
    }
}

fn check(len: usize, here: usize, there: usize) -> Result<()> {
    if len <= here.min(there) {
        return Ok(());
    }
    Err(Error::InvalidArgument(format!("a copy of {len} elements between buffers of {here} and {there}")))
}
