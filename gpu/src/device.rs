//! Opening a device, and the buffers and streams on it.

use std::sync::Arc;

use cudarc::driver::{CudaContext, CudaEvent, CudaSlice, CudaStream, DeviceRepr, ValidAsZeroBits, sys};

use crate::error::{Error, Result, describe};

/// Oldest compute capability that the kernels are built for: Ampere.
const MIN_MAJOR: i32 = 8;

/// An open device; clones share it.
#[derive(Debug, Clone)]
pub struct Device {
    context: Arc<CudaContext>,
}

impl Device {
    /// Opens device `ordinal` as `CUDA_VISIBLE_DEVICES` numbers them.
    ///
    /// # Errors
    /// [`Error::Library`] without a driver or cuBLASLt, [`Error::NoDevice`] without such a device, [`Error::TooOld`].
    pub fn open(ordinal: usize) -> Result<Self> {
        require_libraries()?;
        let no_device = |error| Error::NoDevice { ordinal, reason: describe(error) };
        let context = CudaContext::new(ordinal).map_err(no_device)?;
        let (major, minor) = context.compute_capability()?;
        if major < MIN_MAJOR {
            return Err(Error::TooOld { name: context.name()?, major, minor });
        }
        // SAFETY: the crate's two rules about streams and buffers stand in for the tracking; see the crate's documentation.
        unsafe { context.disable_event_tracking() };
        keep_freed_memory(&context)?;
        Ok(Self { context })
    }

    /// What the driver calls it.
    ///
    /// # Errors
    /// When the driver fails.
    pub fn name(&self) -> Result<String> {
        Ok(self.context.name()?)
    }

    /// Free and total bytes of memory.
    ///
    /// # Errors
    /// When the driver fails.
    pub fn memory(&self) -> Result<(usize, usize)> {
        Ok(self.context.mem_get_info()?)
    }

    /// Streaming multiprocessors.
    ///
    /// # Errors
    /// When the driver fails.
    pub fn multiprocessors(&self) -> Result<usize> {
        let attribute = sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT;
        Ok(self.context.attribute(attribute)? as usize)
    }

    /// Most bytes of shared memory that a block can have.
    ///
    /// # Errors
    /// When the driver fails.
    pub fn shared_memory(&self) -> Result<usize> {
        let attribute = sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN;
        Ok(self.context.attribute(attribute)? as usize)
    }

    /// Whether kernels can be launched early: see [`crate::Launch`].
    ///
    /// # Errors
    /// When the driver fails.
    pub fn launches_early(&self) -> Result<bool> {
        Ok(self.context.compute_capability()?.0 >= 9)
    }

    /// A stream of its own, whose work runs beside that of others.
    ///
    /// # Errors
    /// When the driver fails.
    pub fn stream(&self) -> Result<Arc<CudaStream>> {
        Ok(self.context.new_stream()?)
    }

    /// An event that measures time.
    ///
    /// # Errors
    /// When the driver fails.
    pub fn event(&self) -> Result<CudaEvent> {
        Ok(self.context.new_event(Some(sys::CUevent_flags::CU_EVENT_DEFAULT))?)
    }

    /// Waits for everything on the device.
    ///
    /// # Errors
    /// What earlier work failed with.
    pub fn synchronize(&self) -> Result<()> {
        Ok(self.context.synchronize()?)
    }

    /// The driver's context.
    #[must_use]
    pub fn context(&self) -> &Arc<CudaContext> {
        &self.context
    }

    /// A buffer of `len` elements whose content is arbitrary.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] naming `what`.
    pub fn buffer<T: DeviceRepr>(
        &self,
        stream: &Arc<CudaStream>,
        what: &str,
        len: usize,
    ) -> Result<CudaSlice<T>> {
        // SAFETY: callers write a buffer before they read it; all element types take any bits.
        let made = unsafe { stream.alloc::<T>(len.max(1)) };
        made.map_err(|error| self.no_memory(what, len * size_of::<T>(), error))
    }

    /// A buffer of `len` zeros.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] naming `what`.
    pub fn zeros<T: DeviceRepr + ValidAsZeroBits>(
        &self,
        stream: &Arc<CudaStream>,
        what: &str,
        len: usize,
    ) -> Result<CudaSlice<T>> {
        let made = stream.alloc_zeros::<T>(len.max(1));
        made.map_err(|error| self.no_memory(what, len * size_of::<T>(), error))
    }

    /// A copy of `from` on the device; the call returns when `from` has been read.
    ///
    /// # Errors
    /// [`Error::OutOfMemory`] naming `what`.
    pub fn upload<T: DeviceRepr>(
        &self,
        stream: &Arc<CudaStream>,
        what: &str,
        from: &[T],
    ) -> Result<CudaSlice<T>> {
        let mut buffer = self.buffer(stream, what, from.len())?;
        if !from.is_empty() {
            stream.memcpy_htod(from, &mut buffer)?;
        }
        Ok(buffer)
    }

    fn no_memory(&self, what: &str, bytes: usize, error: cudarc::driver::DriverError) -> Error {
        if error.0 != sys::CUresult::CUDA_ERROR_OUT_OF_MEMORY {
            return error.into();
        }
        let free = self.memory().map_or(0, |(free, _)| free);
        Error::OutOfMemory { what: what.into(), bytes, free }
    }
}

/// Lets the process keep memory that was freed for the next buffer: by default the driver gives it back at every synchronisation, and each
/// buffer pays for pages anew.
fn keep_freed_memory(context: &CudaContext) -> Result<()> {
    let mut pool = std::ptr::null_mut();
    let mut threshold = u64::MAX;
    // SAFETY: both calls get places of the types that they ask for.
    unsafe {
        sys::cuDeviceGetDefaultMemPool(&raw mut pool, context.cu_device()).result()?;
        let attribute = sys::CUmemPool_attribute::CU_MEMPOOL_ATTR_RELEASE_THRESHOLD;
        sys::cuMemPoolSetAttribute(pool, attribute, (&raw mut threshold).cast()).result()?;
    }
    Ok(())
}

/// cudarc panics when a call needs a library that is not there; a user gets a sentence instead.
fn require_libraries() -> Result<()> {
    // SAFETY: the functions only try to open the libraries, whose initialisers are NVIDIA's.
    let present = unsafe {
        [
            (
                "libcuda.so.1",
                cudarc::driver::sys::is_culib_present(),
                "install NVIDIA's driver (in a container: start it with --gpus)",
            ),
            (
                "libcublasLt.so.13",
                cudarc::cublaslt::sys::is_culib_present(),
                "install the libraries of CUDA 13 and name their folder in LD_LIBRARY_PATH",
            ),
        ]
    };
    match present.into_iter().find(|(_, is_present, _)| !is_present) {
        Some((library, _, remedy)) => Err(Error::Library { library, remedy }),
        None => Ok(()),
    }
}
