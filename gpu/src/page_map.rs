//! How the copy engine of Hopper finds its way in a KV pool.

use cudarc::driver::{DeviceRepr, sys};

use crate::error::{Error, Result};
use crate::pages::{KvView, PAGE_TOKENS};

/// Columns of a box: rows of 128 bytes are what the widest swizzle works on.
const BOX_COLUMNS: u32 = 64;

/// A pool as a matrix of rows of `head_dim` elements, `[layers * 2 * pool_pages * kv_heads * PAGE_TOKENS, head_dim]`, that is read in boxes
/// of one page of one head and 64 columns, with the 128-byte swizzle. Kernels take it by value, as a `__grid_constant__`.
#[derive(Debug, Clone, Copy)]
#[repr(transparent)]
pub struct PageMap(sys::CUtensorMap);

// SAFETY: 128 opaque bytes that the driver wrote for kernels to take by value.
unsafe impl DeviceRepr for PageMap {}

impl PageMap {
    /// The map of the pool that `view` lies in.
    ///
    /// # Errors
    /// When the driver refuses, as it does where the card has no such engine, or `head_dim` is no multiple of 64.
    pub fn new(view: &KvView) -> Result<Self> {
        let planes = u64::from(view.layers) * 2 * u64::from(view.pool_pages);
        let rows = planes * u64::from(view.kv_heads) * PAGE_TOKENS as u64;
        if !view.head_dim.is_multiple_of(BOX_COLUMNS) || rows > i32::MAX as u64 {
            return Err(Error::InvalidArgument(format!(
                "a map of {rows} rows of {} elements",
                view.head_dim
            )));
        }
        let dimensions = [u64::from(view.head_dim), rows];
        let row_bytes = [u64::from(view.head_dim) * 2];
        let (box_shape, steps) = ([BOX_COLUMNS, PAGE_TOKENS as u32], [1u32, 1]);
        let mut map = Self(sys::CUtensorMap { opaque: [0; 16] });
        // SAFETY: the arrays have as many entries as the rank says, and nothing is read from the pool.
        unsafe {
            sys::cuTensorMapEncodeTiled(
                &raw mut map.0,
                sys::CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
                2,
                view.pool as *mut _,
                dimensions.as_ptr(),
                row_bytes.as_ptr(),
                box_shape.as_ptr(),
                steps.as_ptr(),
                sys::CUtensorMapInterleave::CU_TENSOR_MAP_INTERLEAVE_NONE,
                sys::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_128B,
                sys::CUtensorMapL2promotion::CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
                sys::CUtensorMapFloatOOBfill::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
            )
            .result()?;
        }
        Ok(map)
    }
}
