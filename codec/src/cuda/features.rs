//! What is known of tokens by their ids, on the device.

use std::{
    collections::HashMap,
    fmt::Debug,
    sync::{Arc, Mutex, PoisonError},
};

use gpu::{CUdeviceptr, CudaFunction, CudaSlice, CudaStream, Device, Kernels, PushKernelArg as _};
use half::f16;

use super::{
    buffers::pointer,
    kernels::{launch, threads},
};
use crate::predict::TokenFeatures;

/// Blocks that a grid may have in its second dimension.
const MAX_ROWS: usize = 65_535;

/// [`TokenFeatures`] on the device: for a Llama, rows of its embedding after the first block's `RMSNorm`.
pub trait DeviceTokenFeatures: Send + Sync + Debug {
    /// Numbers per token.
    fn features(&self) -> usize;

    /// Ids below this have features.
    fn vocabulary(&self) -> usize;

    /// Queues a kernel that writes the features of `count` tokens to `out`, f16 `[count, features]`, finite. `ids`, u32 `[count]`, are in
    /// the vocabulary; both lie in device memory.
    ///
    /// # Errors
    /// When the device fails.
    fn write(
        &self,
        stream: &Arc<CudaStream>,
        ids: CUdeviceptr,
        count: usize,
        out: CUdeviceptr,
    ) -> gpu::Result<()>;
}

/// Features of a whole vocabulary in device memory: for models whose embedding does not lie there anyway.
#[derive(Debug)]
pub struct DeviceFeatureTable {
    features: usize,
    vocabulary: usize,
    /// `[vocabulary, features]`.
    table: CudaSlice<f16>,
    function: CudaFunction,
}

impl DeviceFeatureTable {
    /// Uploads all features of `source`: `vocabulary x features` numbers of 2 bytes.
    ///
    /// # Errors
    /// When there is no memory for them.
    pub fn new(device: &Device, source: &dyn TokenFeatures) -> gpu::Result<Self> {
        let (features, vocabulary) = (source.features(), source.vocabulary());
        let mut row = vec![0f32; features];
        let mut table = Vec::with_capacity(vocabulary * features);
        for token in 0..vocabulary {
            source.write(token as u32, &mut row);
            table.extend(row.iter().map(|&x| f16::from_f32(x.clamp(-65_504.0, 65_504.0))));
        }
        let stream = device.stream()?;
        let table = device.upload(&stream, "token features", &table)?;
        stream.synchronize()?;
        let fatbin = include_bytes!(concat!(env!("OUT_DIR"), "/kvtc_rows.fatbin"));
        let function = Kernels::load(device, "kvtc_rows", fatbin)?.function("kvtc_feature_table")?;
        Ok(Self { features, vocabulary, table, function })
    }
}

impl DeviceTokenFeatures for DeviceFeatureTable {
    fn features(&self) -> usize {
        self.features
    }

    fn vocabulary(&self) -> usize {
        self.vocabulary
    }

    fn write(
        &self,
        stream: &Arc<CudaStream>,
        ids: CUdeviceptr,
        count: usize,
        out: CUdeviceptr,
    ) -> gpu::Result<()> {
        let (table, width) = (pointer(&self.table), self.features as u32);
        for first in (0..count).step_by(MAX_ROWS) {
            let rows = (count - first).min(MAX_ROWS);
            let ids = ids + (first * size_of::<u32>()) as u64;
            let out = out + (first * self.features * size_of::<f16>()) as u64;
            // SAFETY: the caller's ids are in the vocabulary, so rows lie in the table; `out` has room for `count` rows.
            unsafe { launch!(stream, self.function, threads(self.features, rows), table, width, ids, out) }?;
        }
        Ok(())
    }
}

/// Device features as the CPU's codecs ask for them, one token at a time: for those that have no kernels.
#[derive(Debug)]
pub(super) struct HostFeatures {
    source: Arc<dyn DeviceTokenFeatures>,
    device: Device,
    stream: Arc<CudaStream>,
    known: Mutex<HashMap<u32, Vec<f32>>>,
    failure: Mutex<Option<gpu::Error>>,
}

impl HostFeatures {
    pub(super) fn new(
        source: Arc<dyn DeviceTokenFeatures>,
        device: &Device,
        stream: &Arc<CudaStream>,
    ) -> Self {
        let (device, stream) = (device.clone(), Arc::clone(stream));
        Self { source, device, stream, known: Mutex::default(), failure: Mutex::default() }
    }

    /// What went wrong meanwhile: the numbers are zeros then.
    pub(super) fn failure(&self) -> Option<gpu::Error> {
        self.failure.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    fn fetch(&self, token: u32) -> gpu::Result<Vec<f32>> {
        let id = self.device.upload(&self.stream, "a token id", &[token])?;
        let row = self.device.zeros::<f16>(&self.stream, "a token's features", self.source.features())?;
        self.source.write(&self.stream, pointer(&id), 1, pointer(&row))?;
        let row = self.stream.clone_dtoh(&row)?;
        self.stream.synchronize()?;
        Ok(row.into_iter().map(f16::to_f32).collect())
    }
}

impl TokenFeatures for HostFeatures {
    fn features(&self) -> usize {
        self.source.features()
    }

    fn vocabulary(&self) -> usize {
        self.source.vocabulary()
    }

    fn write(&self, token: u32, out: &mut [f32]) {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        let row = known.entry(token).or_insert_with(|| {
            self.fetch(token).unwrap_or_else(|error| {
                *self.failure.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
                vec![0.0; out.len()]
            })
        });
        out.copy_from_slice(&row[..out.len()]);
    }
}
