//! Cosines and sines of all positions on the device.

use std::sync::Arc;

use gpu::{CudaSlice, CudaStream, Device};

use crate::error::Result;
use crate::rope::RopeTable;

/// [`RopeTable`], each `[positions, head_dim / 2]` f32, row-major.
#[derive(Debug)]
pub struct CudaRope {
    pub(crate) cos: CudaSlice<f32>,
    pub(crate) sin: CudaSlice<f32>,
    positions: usize,
}

impl CudaRope {
    /// A copy of the tables.
    ///
    /// # Errors
    /// [`gpu::Error::OutOfMemory`].
    pub fn upload(device: &Device, stream: &Arc<CudaStream>, table: &RopeTable) -> Result<Self> {
        let (cos, sin) = table.tables();
        Ok(Self {
            cos: device.upload(stream, "the table of cosines", cos)?,
            sin: device.upload(stream, "the table of sines", sin)?,
            positions: table.positions(),
        })
    }

    /// Positions the tables cover.
    pub fn positions(&self) -> usize {
        self.positions
    }
}
