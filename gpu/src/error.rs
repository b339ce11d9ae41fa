//! What can go wrong on a device.

use cudarc::driver::DriverError;

/// Result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Everything that using a device can fail with.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A library of the CUDA installation cannot be opened.
    #[error("no CUDA device: {library} is missing; {remedy}, or run on the CPU with --device cpu")]
    Library {
        /// Its file name.
        library: &'static str,
        /// Where it comes from.
        remedy: &'static str,
    },
    /// The driver is there, but no device or no device of this number.
    #[error(
        "no CUDA device {ordinal}: {reason}; `nvidia-smi` shows what the driver sees, --device cpu runs without one"
    )]
    NoDevice {
        /// The device asked for.
        ordinal: usize,
        /// What the driver said.
        reason: String,
    },
    /// The card is older than what the kernels are built for.
    #[error(
        "{name} has compute capability {major}.{minor}, kvferry needs 8.0 or later; run on the CPU with --device cpu"
    )]
    TooOld {
        /// The card.
        name: String,
        /// Its compute capability.
        major: i32,
        /// Its compute capability.
        minor: i32,
    },
    /// The device's memory is used up.
    #[error(
        "out of device memory: {what}: {bytes} bytes are needed, {free} are free; end what else uses the device, or take fewer sessions or tokens (--kv-capacity-tokens)"
    )]
    OutOfMemory {
        /// What was to be held.
        what: String,
        /// Its size.
        bytes: usize,
        /// What the driver has left.
        free: usize,
    },
    /// All pages of a KV pool are taken.
    #[error("{wanted} pages of KV cache wanted, {free} free")]
    NoPages {
        /// Pages asked for.
        wanted: usize,
        /// Pages left.
        free: usize,
    },
    /// A call of the driver failed.
    #[error("CUDA: {0}; if this comes again, check the card with `nvidia-smi`")]
    Driver(String),
    /// A matrix product failed.
    #[error("cuBLASLt: {0}")]
    Blas(String),
    /// Kernels that this build does not contain, or that the card refuses.
    #[error(
        "kernel `{name}` cannot be loaded: {reason}; was the binary built for this card (KVFERRY_CUDA_ARCHS)?"
    )]
    Kernel {
        /// Kernel or module.
        name: String,
        /// What the driver said.
        reason: String,
    },
    /// An argument no caller should pass.
    #[error("invalid argument: {0}")]
    InvalidArgument(String),
}

impl From<DriverError> for Error {
    fn from(error: DriverError) -> Self {
        Self::Driver(describe(error))
    }
}

/// The driver's name and sentence of an error.
pub(crate) fn describe(error: DriverError) -> String {
    let text = |part: Result<&std::ffi::CStr, DriverError>| {
        part.map_or_else(|_| format!("{:?}", error.0), |text| text.to_string_lossy().into_owned())
    };
    format!("{} ({})", text(error.error_string()), text(error.error_name()))
}
