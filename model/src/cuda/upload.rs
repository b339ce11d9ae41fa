//! Tensors of a mapped checkpoint to bf16 on the device, through two page-locked buffers: one is filled while the other is copied.

use std::sync::Arc;

use gpu::{CudaEvent, CudaSlice, CudaStream, Device, Pinned};
use half::{bf16, f16};
use rayon::prelude::*;
use safetensors::Dtype;

use crate::error::{Error, Result};
use crate::kv_cache::KvElement;
use crate::weights::Weights;

/// Elements of one staging buffer: 64 MiB.
const STAGED: usize = 32 << 20;
/// Elements that one thread converts at a time: enough to be worth a task.
const PER_TASK: usize = 1 << 16;

/// Reads named tensors of one checkpoint.
pub(crate) struct Uploader<'a> {
    device: &'a Device,
    stream: &'a Arc<CudaStream>,
    weights: &'a Weights,
    staging: [(Pinned<bf16>, CudaEvent); 2],
    next: usize,
}

impl<'a> Uploader<'a> {
    pub(crate) fn new(device: &'a Device, stream: &'a Arc<CudaStream>, weights: &'a Weights) -> Result<Self> {
        let buffer = || -> Result<_> { Ok((Pinned::zeros(device, STAGED)?, device.event()?)) };
        Ok(Self { device, stream, weights, staging: [buffer()?, buffer()?], next: 0 })
    }

    /// The named tensors, each `[outputs, inputs]`, on top of each other.
    pub(crate) fn stack(&mut self, inputs: usize, parts: &[(String, usize)]) -> Result<CudaSlice<bf16>> {
        let outputs: usize = parts.iter().map(|(_, outputs)| outputs).sum();
        let mut all = self.device.buffer(self.stream, "the weights", outputs * inputs)?;
        let mut start = 0;
        for (name, outputs) in parts {
            let view = self.weights.view(name, &[*outputs, inputs])?;
            let size = element_size(name, view.dtype())?;
            for bytes in view.data().chunks(STAGED * size) {
                self.copy(view.dtype(), bytes, &mut all, start)?;
                start += bytes.len() / size;
            }
        }
        Ok(all)
    }

    /// A vector `[len]` as f32: norms are small, and their products are made in f32 anyway.
    pub(crate) fn vector(&self, name: &str, len: usize) -> Result<CudaSlice<f32>> {
        Ok(self.device.upload(self.stream, name, &self.weights.get(name, &[len])?)?)
    }

    /// Waits for the last copies, which the staging buffers must outlive.
    pub(crate) fn finish(self) -> Result<()> {
        Ok(self.stream.synchronize().map_err(gpu::Error::from)?)
    }

    fn copy(&mut self, dtype: Dtype, bytes: &[u8], to: &mut CudaSlice<bf16>, start: usize) -> Result<()> {
        let (staging, copied) = &mut self.staging[self.next];
        self.next = 1 - self.next;
        copied.synchronize().map_err(gpu::Error::from)?;
        let len = convert(dtype, bytes, staging.as_mut_slice()?);
        staging.copy_to_range(self.stream, len, to, start)?;
        copied.record(self.stream).map_err(gpu::Error::from)?;
        Ok(())
    }
}

fn element_size(name: &str, dtype: Dtype) -> Result<usize> {
    match dtype {
        Dtype::F32 => Ok(4),
        Dtype::F16 | Dtype::BF16 => Ok(2),
        other => Err(Error::ElementType { name: name.into(), got: format!("{other:?}") }),
    }
}

/// Rounds little-endian elements to bf16 and returns how many there were. `to` has room for them.
fn convert(dtype: Dtype, bytes: &[u8], to: &mut [bf16]) -> usize {
    match dtype {
        Dtype::F32 => convert_each(bytes, to, |b: [u8; 4]| bf16::from_f32(f32::from_le_bytes(b))),
        Dtype::F16 => {
            convert_each(bytes, to, |b| <bf16 as KvElement>::from_f32(f16::from_le_bytes(b).to_f32()))
        }
        _ => convert_each(bytes, to, bf16::from_le_bytes),
    }
}

fn convert_each<const N: usize>(
    bytes: &[u8],
    to: &mut [bf16],
    element: impl Fn([u8; N]) -> bf16 + Sync,
) -> usize {
    let (elements, _) = bytes.as_chunks::<N>();
    elements.par_chunks(PER_TASK).zip(to.par_chunks_mut(PER_TASK)).for_each(|(from, to)| {
        for (from, to) in from.iter().zip(to) {
            *to = element(*from);
        }
    });
    elements.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_types_become_the_same_bf16() {
        let values = [1.0f32, -0.5, 3.0, 0.0, 1024.0];
        let mut expected = [bf16::ZERO; 5];
        expected.iter_mut().zip(values).for_each(|(to, x)| *to = bf16::from_f32(x));
        let single: Vec<u8> = values.iter().flat_map(|x| x.to_le_bytes()).collect();
        let half: Vec<u8> = values.iter().flat_map(|x| f16::from_f32(*x).to_le_bytes()).collect();
        let brain: Vec<u8> = expected.iter().flat_map(|x| x.to_le_bytes()).collect();
        for (dtype, bytes) in [(Dtype::F32, single), (Dtype::F16, half), (Dtype::BF16, brain)] {
            let mut out = [bf16::ZERO; 5];
            assert_eq!(convert(dtype, &bytes, &mut out), 5);
            assert_eq!(out, expected, "{dtype:?}");
        }
        assert!(matches!(element_size("x", Dtype::I8), Err(Error::ElementType { .. })));
    }
}
