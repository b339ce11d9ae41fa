//! Memory that an encoder or decoder keeps from one request to the next, and that grows with the longest.

use std::sync::Arc;

use gpu::{CUdeviceptr, CudaSlice, CudaStream, Device, DevicePtr as _, DeviceRepr, Pinned, Result};

/// A buffer is made this much longer than what is asked for, so that slightly longer requests need no other.
const SLACK: usize = 8;

/// Device memory of one stream.
#[derive(Debug)]
pub(super) struct Grown<T> {
    what: &'static str,
    memory: Option<CudaSlice<T>>,
}

impl<T: DeviceRepr + gpu::ValidAsZeroBits> Grown<T> {
    pub(super) fn new(what: &'static str) -> Self {
        Self { what, memory: None }
    }

    /// Room for `len` elements, whose content is arbitrary but was zeros when it was made.
    pub(super) fn reserve(
        &mut self,
        device: &Device,
        stream: &Arc<CudaStream>,
        len: usize,
    ) -> Result<&mut CudaSlice<T>> {
        if self.memory.as_ref().is_none_or(|memory| memory.len() < len) {
            self.memory = None;
            self.memory = Some(device.zeros(stream, self.what, len + len / SLACK)?);
        }
        Ok(self.memory.as_mut().expect("it was just made; this is a bug"))
    }

    /// As [`Self::reserve`], and its first `len` elements are set to zeros.
    pub(super) fn zeros(
        &mut self,
        device: &Device,
        stream: &Arc<CudaStream>,
        len: usize,
    ) -> Result<CUdeviceptr> {
        let memory = self.reserve(device, stream, len)?;
        if len > 0 {
            stream.memset_zeros(&mut memory.slice_mut(..len))?;
        }
        Ok(memory.device_ptr(stream).0)
    }

    /// First element; 0 where nothing was reserved.
    pub(super) fn pointer(&self) -> CUdeviceptr {
        self.memory.as_ref().map_or(0, |memory| memory.device_ptr(memory.stream()).0)
    }

    /// What was reserved.
    pub(super) fn memory(&self) -> Option<&CudaSlice<T>> {
        self.memory.as_ref()
    }

    /// The same, to be written.
    pub(super) fn memory_mut(&mut self) -> Option<&mut CudaSlice<T>> {
        self.memory.as_mut()
    }

    /// Bytes held.
    pub(super) fn bytes(&self) -> usize {
        self.memory.as_ref().map_or(0, CudaSlice::num_bytes)
    }
}

/// Page-locked memory of the host.
#[derive(Debug, Default)]
pub(super) struct GrownPinned<T: DeviceRepr> {
    memory: Option<Pinned<T>>,
}

impl<T: DeviceRepr + gpu::ValidAsZeroBits> GrownPinned<T> {
    pub(super) fn new() -> Self {
        Self { memory: None }
    }

    /// Room for `len` elements. No copy may be in flight.
    pub(super) fn reserve(&mut self, device: &Device, len: usize) -> Result<&mut Pinned<T>> {
        if self.memory.as_ref().is_none_or(|memory| memory.len() < len) {
            self.memory = None;
            self.memory = Some(Pinned::zeros(device, len + len / SLACK)?);
        }
        Ok(self.memory.as_mut().expect("it was just made; this is a bug"))
    }
}

impl<T: DeviceRepr + gpu::ValidAsZeroBits + Copy> GrownPinned<T> {
    /// Queues a copy of `from` through this memory to the start of `to`. No earlier one may be in flight.
    pub(super) fn upload(
        &mut self,
        device: &Device,
        stream: &Arc<CudaStream>,
        from: &[T],
        to: &mut Grown<T>,
    ) -> Result<()> {
        let host = self.reserve(device, from.len())?;
        host.as_mut_slice()?[..from.len()].copy_from_slice(from);
        host.copy_to(stream, from.len(), to.reserve(device, stream, from.len())?)
    }
}

/// First element of a buffer.
pub(super) fn pointer<T: DeviceRepr>(memory: &CudaSlice<T>) -> CUdeviceptr {
    memory.device_ptr(memory.stream()).0
}

/// Copies in pieces, on several threads: one thread does not saturate memory, nor the page faults of a fresh vector.
pub(super) fn copy(from: &[u8], to: &mut [u8]) {
    use rayon::prelude::*;
    const PIECE: usize = 256 << 10;
    to.par_chunks_mut(PIECE).zip(from.par_chunks(PIECE)).for_each(|(to, from)| to.copy_from_slice(from));
}
