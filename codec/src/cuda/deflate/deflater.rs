//! Payload to segments: kernels/deflate.cu.

use std::sync::Arc;

use gpu::{
    CUdeviceptr, CudaFunction, CudaSlice, CudaStream, Device, DevicePtr, DeviceRepr, Kernels, LaunchConfig,
    Pinned, PushKernelArg,
};

use super::Payload;
use crate::error::{Error, Result};

/// Threads of a block: `THREADS` of the kernel.
const THREADS: u32 = 256;
/// Longest segment that is written: `MAX_SEGMENT` of the kernel.
const MAX_SEGMENT_BYTES: usize = 32 * 1024;
/// Content, tokens and bits of a segment lie in shared memory.
const SHARED_SLOTS: usize = 3;

/// `DeflateJob` of the kernel.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
struct Job {
    payload: CUdeviceptr,
    breaks: CUdeviceptr,
    slots: CUdeviceptr,
    lengths: CUdeviceptr,
    payload_bytes: u64,
    segment_bytes: u32,
    segments: u32,
    break_count: u32,
    slot_bytes: u32,
}

// SAFETY: plain integers in C's layout, the same as the kernel's struct.
unsafe impl DeviceRepr for Job {}

/// `CompactJob` of the kernel.
#[derive(Debug, Clone, Copy)]
#[repr(C)]
struct CompactJob {
    slots: CUdeviceptr,
    lengths: CUdeviceptr,
    coded: CUdeviceptr,
    ends: CUdeviceptr,
    segments: u32,
    slot_bytes: u32,
}

// SAFETY: plain integers in C's layout, the same as the kernel's struct.
unsafe impl DeviceRepr for CompactJob {}

/// What a call wrote, in host memory.
#[derive(Debug, Clone, Copy)]
pub struct Deflated<'a> {
    /// Where each segment ends in `coded`.
    pub ends: &'a [u32],
    /// The segments one after the other.
    pub coded: &'a [u8],
}

/// Deflates on one stream.
#[derive(Debug)]
pub struct Deflater {
    device: Device,
    deflate: CudaFunction,
    compact: CudaFunction,
    breaks: CudaSlice<u32>,
    slots: CudaSlice<u8>,
    lengths: CudaSlice<u32>,
    coded: CudaSlice<u8>,
    ends: CudaSlice<u32>,
    segments: usize,
    host_ends: Pinned<u32>,
    host_coded: Pinned<u8>,
}

impl Deflater {
    /// Loads the kernels. All work is to be queued on `stream`. Buffers grow with what they are used for.
    ///
    /// # Errors
    /// When the device refuses the kernels or has no memory left.
    pub fn new(device: &Device, stream: &Arc<CudaStream>) -> gpu::Result<Self> {
        let fatbin = include_bytes!(concat!(env!("OUT_DIR"), "/deflate.fatbin"));
        let kernels = Kernels::load(device, "deflate", fatbin)?;
        let most_shared = SHARED_SLOTS * slot_bytes(MAX_SEGMENT_BYTES);
        Ok(Self {
            deflate: kernels.function_with_shared("deflate_segments", most_shared)?,
            compact: kernels.function("compact_segments")?,
            breaks: device.buffer(stream, "a table of breaks", 1)?,
            slots: device.buffer(stream, "segments", 1)?,
            lengths: device.buffer(stream, "a table of segments", 1)?,
            coded: device.buffer(stream, "segments", 1)?,
            ends: device.buffer(stream, "a table of segments", 1)?,
            segments: 0,
            host_ends: Pinned::zeros(device, 1)?,
            host_coded: Pinned::zeros(device, 1)?,
            device: device.clone(),
        })
    }

    /// Queues the coding of `payload`; `breaks` are offsets in it, increasing, where statistics change. It replaces what the last call wrote.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for segments over 32 KiB, [`Error::LimitExceeded`] for 4 GiB and more.
    pub fn deflate(&mut self, stream: &Arc<CudaStream>, payload: Payload, breaks: &[usize]) -> Result<()> {
        check(payload)?;
        self.segments = payload.segments();
        if self.segments == 0 {
            return Ok(());
        }
        self.reserve(stream, payload, breaks.len())?;
        if !breaks.is_empty() {
            let breaks: Vec<u32> = breaks.iter().map(|&at| u32::try_from(at).unwrap_or(u32::MAX)).collect();
            stream.memcpy_htod(&breaks, &mut self.breaks).map_err(gpu::Error::from)?;
        }
        self.launch_deflate(stream, payload, breaks.len())?;
        self.launch_compact(stream, payload)?;
        Ok(self.host_ends.copy_from(stream, self.segments, &self.ends)?)
    }

    /// Segments on the device, one after the other; [`Self::ends`] says where they end.
    #[must_use]
    pub fn coded(&self) -> &CudaSlice<u8> {
        &self.coded
    }

    /// Ends of the segments, on the device; the first [`Payload::segments`] of the last call count.
    #[must_use]
    pub fn ends(&self) -> &CudaSlice<u32> {
        &self.ends
    }

    /// Device memory held, in bytes.
    #[must_use]
    pub fn bytes(&self) -> usize {
        let tables = self.breaks.num_bytes() + self.lengths.num_bytes() + self.ends.num_bytes();
        tables + self.slots.num_bytes() + self.coded.num_bytes()
    }

    /// Waits for the last call's work and fetches what it wrote.
    ///
    /// # Errors
    /// When the device fails or has no page-locked memory left.
    pub fn download(&mut self, stream: &Arc<CudaStream>) -> gpu::Result<Deflated<'_>> {
        stream.synchronize()?;
        let bytes = match self.segments {
            0 => 0,
            segments => self.host_ends.as_slice()?[segments - 1] as usize,
        };
        if self.host_coded.len() < bytes {
            self.host_coded = Pinned::zeros(&self.device, bytes.next_power_of_two())?;
        }
        self.host_coded.copy_from(stream, bytes, &self.coded)?;
        stream.synchronize()?;
        Ok(Deflated {
            ends: &self.host_ends.as_slice()?[..self.segments],
            coded: &self.host_coded.as_slice()?[..bytes],
        })
    }

    fn reserve(&mut self, stream: &Arc<CudaStream>, payload: Payload, breaks: usize) -> gpu::Result<()> {
        let (device, segments) = (&self.device, payload.segments());
        grow(device, stream, &mut self.breaks, breaks)?;
        grow(device, stream, &mut self.slots, segments * slot_bytes(payload.segment_bytes))?;
        grow(device, stream, &mut self.lengths, segments)?;
        grow(device, stream, &mut self.coded, payload.bytes)?;
        grow(device, stream, &mut self.ends, segments)?;
        if self.host_ends.len() < segments {
            stream.synchronize()?;
            self.host_ends = Pinned::zeros(device, segments.next_power_of_two())?;
        }
        Ok(())
    }

    fn launch_deflate(
        &self,
        stream: &Arc<CudaStream>,
        payload: Payload,
        break_count: usize,
    ) -> gpu::Result<()> {
        let slot_bytes = slot_bytes(payload.segment_bytes);
        let job = Job {
            payload: payload.pointer,
            breaks: self.breaks.device_ptr(stream).0,
            slots: self.slots.device_ptr(stream).0,
            lengths: self.lengths.device_ptr(stream).0,
            payload_bytes: payload.bytes as u64,
            segment_bytes: payload.segment_bytes as u32,
            segments: self.segments as u32,
            break_count: break_count as u32,
            slot_bytes: slot_bytes as u32,
        };
        let config = LaunchConfig {
            grid_dim: (job.segments, 1, 1),
            block_dim: (THREADS, 1, 1),
            shared_mem_bytes: (SHARED_SLOTS * slot_bytes) as u32,
        };
        // SAFETY: the buffers hold what the job says of them; the caller's payload is as long as it says.
        unsafe { stream.launch_builder(&self.deflate).arg(&job).launch(config)? };
        Ok(())
    }

    fn launch_compact(&self, stream: &Arc<CudaStream>, payload: Payload) -> gpu::Result<()> {
        let job = CompactJob {
            slots: self.slots.device_ptr(stream).0,
            lengths: self.lengths.device_ptr(stream).0,
            coded: self.coded.device_ptr(stream).0,
            ends: self.ends.device_ptr(stream).0,
            segments: self.segments as u32,
            slot_bytes: slot_bytes(payload.segment_bytes) as u32,
        };
        let config =
            LaunchConfig { grid_dim: (job.segments, 1, 1), block_dim: (THREADS, 1, 1), shared_mem_bytes: 0 };
        // SAFETY: no segment is longer than its content, so that all of them fit where the payload does.
        unsafe { stream.launch_builder(&self.compact).arg(&job).launch(config)? };
        Ok(())
    }
}

/// Room of a segment: bits are put by words, and copied by 16 bytes.
fn slot_bytes(segment_bytes: usize) -> usize {
    segment_bytes.next_multiple_of(16) + 16
}

fn check(payload: Payload) -> Result<()> {
    if !(1..=MAX_SEGMENT_BYTES).contains(&payload.segment_bytes) {
        let reason = format!(
            "segments of {} bytes; the device writes 1 to {MAX_SEGMENT_BYTES}",
            payload.segment_bytes
        );
        return Err(Error::InvalidArgument(reason));
    }
    if u32::try_from(payload.bytes).is_err() {
        let (limit, got) = (u32::MAX.into(), payload.bytes as u64);
        return Err(Error::LimitExceeded { what: "payload bytes of a chunk", limit, got });
    }
    Ok(())
}

fn grow<T: DeviceRepr>(
    device: &Device,
    stream: &Arc<CudaStream>,
    buffer: &mut CudaSlice<T>,
    len: usize,
) -> gpu::Result<()> {
    if buffer.len() < len {
        *buffer = device.buffer(stream, "segments of a payload", len.next_power_of_two())?;
    }
    Ok(())
}
