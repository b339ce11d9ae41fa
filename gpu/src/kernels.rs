//! Kernels of one compiled source file.

use std::sync::Arc;

use cudarc::driver::{CudaFunction, CudaModule, sys};
use cudarc::nvrtc::Ptx;

use crate::device::Device;
use crate::error::{Error, Result, describe};

/// The kernels of one `kernels/NAME.cu`, as a build script compiled it.
#[derive(Debug, Clone)]
pub struct Kernels {
    module: Arc<CudaModule>,
}

impl Kernels {
    /// Loads a fat binary: `include_bytes!(concat!(env!("OUT_DIR"), "/NAME.fatbin"))`. Where it holds no machine code for the card, the
    /// driver compiles its PTX, once: it keeps the outcome on disk.
    ///
    /// # Errors
    /// [`Error::Kernel`] when the card cannot run it.
    pub fn load(device: &Device, name: &str, fatbin: &[u8]) -> Result<Self> {
        let loaded = device.context().load_module(Ptx::from_binary(fatbin.to_vec()));
        let refused = |error| Error::Kernel { name: name.into(), reason: describe(error) };
        Ok(Self { module: loaded.map_err(refused)? })
    }

    /// The kernel of this name (`extern "C"`).
    ///
    /// # Errors
    /// [`Error::Kernel`] when there is none.
    pub fn function(&self, name: &str) -> Result<CudaFunction> {
        let refused = |error| Error::Kernel { name: name.into(), reason: describe(error) };
        self.module.load_function(name).map_err(refused)
    }

    /// Whether what runs of the kernel of this name was compiled for Hopper's own instructions, not for any card.
    ///
    /// # Errors
    /// [`Error::Kernel`] when there is none.
    pub fn is_for_hopper(&self, name: &str) -> Result<bool> {
        let attribute = |which| Ok::<_, Error>(self.function(name)?.get_attribute(which)?);
        let compiled_for = attribute(sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_PTX_VERSION)?;
        let runs_on = attribute(sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_BINARY_VERSION)?;
        Ok(compiled_for == 90 && runs_on == 90)
    }

    /// The kernel of this name, to be launched with `bytes` of dynamic shared memory.
    ///
    /// # Errors
    /// [`Error::Kernel`] when there is none, or the card has less.
    pub fn function_with_shared(&self, name: &str, bytes: usize) -> Result<CudaFunction> {
        let function = self.function(name)?;
        let attribute = sys::CUfunction_attribute::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
        let refused = |error| Error::Kernel { name: name.into(), reason: describe(error) };
        function.set_attribute(attribute, bytes as i32).map_err(refused)?;
        Ok(function)
    }
}
