//! Launches that may start before the kernel ahead of them has ended (programmatic dependent launch).

use std::ffi::c_void;
use std::marker::PhantomData;

use cudarc::driver::{CudaFunction, CudaStream, DeviceRepr, sys};

use crate::error::Result;

/// One argument of a kernel.
#[derive(Debug, Clone, Copy)]
pub struct Argument<'a> {
    value: *mut c_void,
    of: PhantomData<&'a ()>,
}

impl<'a> Argument<'a> {
    /// Passes `value`, as it is when the launch is queued.
    #[must_use]
    pub fn of<T: DeviceRepr>(value: &'a T) -> Self {
        Self { value: std::ptr::from_ref(value).cast_mut().cast(), of: PhantomData }
    }
}

/// How a kernel is launched.
#[derive(Debug, Clone, Copy)]
pub struct Launch<'a> {
    /// The kernel.
    pub function: &'a CudaFunction,
    /// Blocks in x and y.
    pub grid: (usize, usize),
    /// Threads of a block.
    pub threads: usize,
    /// Bytes of dynamic shared memory.
    pub shared: usize,
    /// Whether its blocks may start while those of the kernel before still run: the kernel waits itself (`griddepcontrol.wait`) before it
    /// touches anything that others write. Cards before compute capability 9.0 refuse it.
    pub early: bool,
}

impl Launch<'_> {
    /// Queues the launch.
    ///
    /// # Safety
    /// The arguments must be what the kernel takes, and memory that they point to valid for it until the stream is through.
    ///
    /// # Errors
    /// When the driver refuses the launch.
    pub unsafe fn queue(&self, stream: &CudaStream, arguments: &[Argument<'_>]) -> Result<()> {
        let mut pointers: Vec<_> = arguments.iter().map(|argument| argument.value).collect();
        let value = sys::CUlaunchAttributeValue { programmaticStreamSerializationAllowed: 1 };
        let id = sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION;
        let mut attribute = sys::CUlaunchAttribute { id, pad: [0; 4], value };
        let config = sys::CUlaunchConfig {
            gridDimX: self.grid.0 as u32,
            gridDimY: self.grid.1 as u32,
            gridDimZ: 1,
            blockDimX: self.threads as u32,
            blockDimY: 1,
            blockDimZ: 1,
            sharedMemBytes: self.shared as u32,
            hStream: stream.cu_stream(),
            attrs: &raw mut attribute,
            numAttrs: u32::from(self.early),
        };
        stream.context().bind_to_thread()?;
        // SAFETY: the caller vouches for the arguments; configuration and pointers outlive the call, which copies them.
        unsafe {
            let function = self.function.cu_function();
            sys::cuLaunchKernelEx(&raw const config, function, pointers.as_mut_ptr(), std::ptr::null_mut())
                .result()?;
        }
        Ok(())
    }
}
