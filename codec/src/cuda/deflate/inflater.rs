//! Segments to payload: kernels/inflate.cu.

use std::sync::Arc;

use gpu::{
    CUdeviceptr, CudaFunction, CudaSlice, CudaStream, Device, DevicePtr, DeviceRepr, Kernels, LaunchConfig,
    Pinned, PushKernelArg,
};

use super::{Coded, Payload};
use crate::{
    error::{Error, Result},
    format::segments::SEGMENT_BYTES_RANGE,
};

/// Threads of a block, and what they may look at together, in words: `THREADS` and `SPARE_WORDS` of the kernel.
const THREADS: u32 = 128;
const SPARE_WORDS: usize = 528;
/// Coded bytes that are held in shared memory at once, in words: all of a segment of the usual size.
const MAX_WINDOW_WORDS: usize = 4_608;
/// Output that is held there: the 32 KiB that references reach back, and as much again for what is being written.
const HISTORY_BYTES: usize = 64 * 1024;
/// No segment is bad.
const NONE: u32 = u32::MAX;

/// `InflateJob` of the kernel.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
struct Job {
    coded: CUdeviceptr,
    ends: CUdeviceptr,
    payload: CUdeviceptr,
    bad: CUdeviceptr,
    payload_bytes: u64,
    segment_bytes: u32,
    segments: u32,
    window_words: u32,
    history_mask: u32,
}

// SAFETY: plain integers in C's layout, the same as the kernel's struct.
unsafe impl DeviceRepr for Job {}

/// Inflates on one stream.
#[derive(Debug)]
pub struct Inflater {
    device: Device,
    inflate: CudaFunction,
    ends: CudaSlice<u32>,
    bad: CudaSlice<u32>,
    found: Pinned<u32>,
}

impl Inflater {
    /// Loads the kernel. All work is to be queued on `stream`.
    ///
    /// # Errors
    /// When the device refuses the kernel or has no memory left.
    pub fn new(device: &Device, stream: &Arc<CudaStream>) -> gpu::Result<Self> {
        let fatbin = include_bytes!(concat!(env!("OUT_DIR"), "/inflate.fatbin"));
        let most_shared = MAX_WINDOW_WORDS * 4 + HISTORY_BYTES;
        let mut found = Pinned::zeros(device, 1)?;
        found.as_mut_slice()?[0] = NONE;
        Ok(Self {
            inflate: Kernels::load(device, "inflate", fatbin)?
                .function_with_shared("inflate_segments", most_shared)?,
            ends: device.buffer(stream, "a table of segments", 4_096)?,
            bad: device.upload(stream, "a flag", &[NONE])?,
            found,
            device: device.clone(),
        })
    }

    /// Queues the inflation of all segments into `payload`: nothing beside it is written. Whether they were valid, [`Self::check`] tells
    /// afterwards.
    ///
    /// # Errors
    /// [`Error::Corrupt`] for ends that `format::segments` refuses too: then nothing is queued.
    pub fn inflate(&mut self, stream: &Arc<CudaStream>, coded: Coded<'_>, payload: Payload) -> Result<()> {
        check_ends(coded.ends, payload)?;
        if payload.bytes == 0 {
            return Ok(());
        }
        if self.ends.len() < coded.ends.len() {
            let len = coded.ends.len().next_power_of_two();
            self.ends = self.device.buffer(stream, "a table of segments", len)?;
        }
        stream.memcpy_htod(coded.ends, &mut self.ends).map_err(gpu::Error::from)?;
        self.launch(stream, coded.pointer, payload)?;
        Ok(self.found.copy_from(stream, 1, &self.bad)?)
    }

    fn launch(&mut self, stream: &Arc<CudaStream>, coded: CUdeviceptr, payload: Payload) -> gpu::Result<()> {
        let window_words =
            (payload.segment_bytes / 4 + 2).clamp(SPARE_WORDS, MAX_WINDOW_WORDS).next_multiple_of(4);
        let whole_bytes = payload.segment_bytes.next_multiple_of(16) + 16;
        let is_whole = whole_bytes <= HISTORY_BYTES;
        let history_bytes = if is_whole { whole_bytes } else { HISTORY_BYTES };
        let job = Job {
            coded,
            ends: self.ends.device_ptr(stream).0,
            payload: payload.pointer,
            bad: self.bad.device_ptr(stream).0,
            payload_bytes: payload.bytes as u64,
            segment_bytes: payload.segment_bytes as u32,
            segments: payload.segments() as u32,
            window_words: window_words as u32,
            history_mask: if is_whole { u32::MAX } else { HISTORY_BYTES as u32 - 1 },
        };
        let config = LaunchConfig {
            grid_dim: (job.segments, 1, 1),
            block_dim: (THREADS, 1, 1),
            shared_mem_bytes: (window_words * 4 + history_bytes) as u32,
        };
        // SAFETY: the ends were checked, so that every segment lies in the caller's buffers; the kernel stays within its segment.
        unsafe { stream.launch_builder(&self.inflate).arg(&job).launch(config)? };
        Ok(())
    }

    /// Whether all segments were valid that were inflated since the last call. Synchronise the stream first.
    ///
    /// # Errors
    /// [`Error::Corrupt`] naming the first that was not: its part of the payload is arbitrary.
    pub fn check(&mut self, stream: &Arc<CudaStream>) -> Result<()> {
        let found = std::mem::replace(&mut self.found.as_mut_slice()?[0], NONE);
        if found == NONE {
            return Ok(());
        }
        stream.memcpy_htod(&[NONE], &mut self.bad).map_err(gpu::Error::from)?;
        let detail = format!("segment {found} does not inflate to exactly its length from exactly its bytes");
        Err(Error::corrupt("segment", detail))
    }
}

/// What the kernel relies on, and the table of a chunk has been asked for before.
fn check_ends(ends: &[u32], payload: Payload) -> Result<()> {
    let is_allowed =
        u32::try_from(payload.segment_bytes).is_ok_and(|bytes| SEGMENT_BYTES_RANGE.contains(&bytes));
    if !is_allowed || ends.len() != payload.segments() {
        let detail = format!(
            "{} segments for {} bytes in segments of {}",
            ends.len(),
            payload.bytes,
            payload.segment_bytes
        );
        return Err(Error::corrupt("segment table", detail));
    }
    let mut start = 0;
    for (i, &end) in ends.iter().enumerate() {
        let inflated_len = payload.segment_bytes.min(payload.bytes - i * payload.segment_bytes);
        if end <= start || (end - start) as usize > inflated_len {
            let detail =
                format!("segment {i} of {inflated_len} bytes spans {start}..{end} of the coded bytes");
            return Err(Error::corrupt("segment table", detail));
        }
        start = end;
    }
    Ok(())
}
