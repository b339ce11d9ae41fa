//! A GPU as the place: the device, the model's memory, the pages of all caches, and a few encoders and decoders to go round.

use std::ops::Range;
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Instant;

use codec::cuda::{CudaCodec, CudaDecoder, CudaEncoder, DeviceTokenFeatures};
use codec::{CodecKind, Coding, KvLayout, Limits, Plan, importance};
use gpu::{CUdeviceptr, CudaStream, KvPages, KvPool};
use model::cuda::{CudaCache, CudaLlama, CudaReceived, CudaVocabulary};
use model::{Config, Drawn};
use transport::message::{Failure, FailureKind};

use super::cache::Cache;
use super::runner::{Runner, Step};
use super::served::Sizes;
use crate::failure::{fail, internal};
use crate::loaded::{LoadError, find_plan, layout};

/// Tokens of one prefill call: enough to keep every unit of the card busy, and scratch memory of half a gigabyte for Llama 3.2 1B.
pub const MAX_CHUNK: usize = 8_192;
/// Tokens of the prompt that warms the device up.
const WARM_UP_TOKENS: usize = 1_024;
/// Encoders (and decoders) per node: while one's bytes are copied and sealed by the host, the other has the card.
const CODERS: usize = 2;

/// What a node holds of one GPU.
#[derive(Debug)]
pub(crate) struct Device {
    device: gpu::Device,
    stream: Arc<CudaStream>,
    llama: Mutex<Option<Box<CudaLlama>>>,
    pool: Arc<KvPool>,
    encoders: Arc<Lot<CudaEncoder>>,
    decoders: Arc<Lot<CudaDecoder>>,
}

/// A loaded device and what there is to know of its model.
pub(crate) struct LoadedDevice {
    pub(crate) device: Device,
    pub(crate) facts: (Config, [u8; 16], KvLayout, Option<Arc<Plan>>),
}

impl Device {
    pub(crate) fn load(
        ordinal: usize,
        model_dir: &Path,
        plan: Option<&Path>,
        sizes: Sizes,
    ) -> Result<LoadedDevice, LoadError> {
        let started = Instant::now();
        let device = gpu::Device::open(ordinal)?;
        let llama = CudaLlama::load(&device, model_dir, MAX_CHUNK)?;
        let layout = layout(llama.config(), llama.inv_freq());
        let plan = find_plan(model_dir, plan, &layout, llama.fingerprint())?;
        let loaded_s = started.elapsed().as_secs_f64();
        let made = Self::around(device, llama, &layout, plan.clone(), sizes)?;
        tracing::info!(
            device = %made.device.device.name()?,
            load_s = loaded_s,
            warm_up_s = started.elapsed().as_secs_f64() - loaded_s,
            kv_tokens = sizes.kv_tokens,
            kv_bytes = made.device.pool.bytes(),
            "the model is on the GPU"
        );
        Ok(made)
    }

    /// Everything else that a node needs of the card, warmed up.
    fn around(
        device: gpu::Device,
        mut llama: CudaLlama,
        layout: &KvLayout,
        plan: Option<Arc<Plan>>,
        sizes: Sizes,
    ) -> Result<LoadedDevice, LoadError> {
        let stream = device.stream()?;
        // A session's last page is half empty on average, and may be all but empty.
        let tokens = sizes.kv_tokens + sizes.sessions * gpu::PAGE_TOKENS;
        let pool = KvPool::new(&device, &stream, llama.kv_shape(), tokens)?;
        let features: Arc<dyn DeviceTokenFeatures> = Arc::new(Vocabulary(llama.vocabulary()));
        let fingerprint = llama.fingerprint();
        let codec = CudaCodec::new(&device, layout.clone(), fingerprint, plan.clone(), Some(features))?;
        let encoders = (0..CODERS).map(|_| codec.encoder()).collect::<Result<Vec<_>, _>>()?;
        let decoders =
            (0..CODERS).map(|_| codec.decoder(Limits::default())).collect::<Result<Vec<_>, _>>()?;
        let (encoders, decoders) = (Lot::of(encoders), Lot::of(decoders));
        llama.prepare_steps(&pool, sizes.sessions)?;
        warm_up(&mut llama, &pool, &stream, (&encoders, &decoders), plan.is_some())?;
        let facts = (llama.config().clone(), fingerprint, layout.clone(), plan);
        let device =
            Self { device, stream, llama: Mutex::new(Some(Box::new(llama))), pool, encoders, decoders };
        Ok(LoadedDevice { device, facts })
    }

    pub(crate) fn runner(&self) -> Result<Runner, Failure> {
        let taken = self.llama.lock().unwrap_or_else(PoisonError::into_inner).take();
        taken.map(Runner::Device).ok_or_else(|| internal("the model on the GPU has an engine already"))
    }

    pub(crate) fn cache(&self, tokens: usize) -> Result<Cache, Failure> {
        CudaCache::new(&self.pool, &self.stream, tokens).map(Cache::Device).map_err(no_cache)
    }

    pub(crate) fn cache_after(
        &self,
        other: &CudaCache,
        shared: usize,
        tokens: usize,
    ) -> Result<Cache, Failure> {
        CudaCache::after(other, &self.stream, shared, tokens).map(Cache::Device).map_err(no_cache)
    }

    pub(crate) fn coder(&self, coding: Coding, prompt: &[u32]) -> DeviceCoder {
        DeviceCoder { encoders: Arc::clone(&self.encoders), coding, ids: Arc::from(prompt) }
    }

    pub(crate) fn importer(&self, coding: Coding) -> DeviceImporter {
        DeviceImporter { decoders: Arc::clone(&self.decoders), coding }
    }
}

/// Why there is no cache for a session.
fn no_cache(error: model::Error) -> Failure {
    match error {
        model::Error::Gpu(error @ (gpu::Error::NoPages { .. } | gpu::Error::OutOfMemory { .. })) => {
            fail(FailureKind::Busy, error)
        }
        other => internal(other),
    }
}

/// Runs everything once: libraries set themselves up at the first call, and the driver compiles kernels that the binary has no machine
/// code of for this card.
fn warm_up(
    llama: &mut CudaLlama,
    pool: &Arc<KvPool>,
    stream: &Arc<CudaStream>,
    (encoders, decoders): (&Lot<CudaEncoder>, &Lot<CudaDecoder>),
    has_plan: bool,
) -> Result<(), LoadError> {
    let tokens = WARM_UP_TOKENS.min(llama.config().max_position_embeddings).min(pool.free_tokens());
    let ids: Vec<u32> = (0..tokens as u32).map(|i| i % llama.config().vocab_size as u32).collect();
    let mut cache = CudaCache::new(pool, stream, tokens)?;
    let mut received = CudaReceived::of_last(llama, importance::QUERIES, importance::NEAREST, tokens)?;
    llama.prefill(&mut cache, &ids, Some(&mut received))?;
    llama.greedy()?;
    received.into_host()?;
    let kind = if has_plan { CodecKind::Kvtc } else { CodecKind::Raw };
    let coding = Coding { kind, tier: 32 };
    let chunk = encoders.with(|encoder| encoder.encode(coding, &ids, cache.view(), 0..tokens, None))?;
    decoders.with(|decoder| decoder.decode(&chunk, Some(coding), cache.view()))?;
    Ok(())
}

/// Codes the cache of one prompt.
#[derive(Debug)]
pub struct DeviceCoder {
    encoders: Arc<Lot<CudaEncoder>>,
    coding: Coding,
    ids: Arc<[u32]>,
}

impl DeviceCoder {
    pub(super) fn encode(
        &self,
        pages: &KvPages,
        tokens: Range<usize>,
        shifts: Option<&[i8]>,
    ) -> Result<Vec<u8>, Failure> {
        let work =
            |encoder: &mut CudaEncoder| encoder.encode(self.coding, &self.ids, pages.view(), tokens, shifts);
        self.encoders.with(work).map_err(internal)
    }
}

/// Decodes the chunks of one prompt.
#[derive(Debug)]
pub struct DeviceImporter {
    decoders: Arc<Lot<CudaDecoder>>,
    coding: Coding,
}

impl DeviceImporter {
    pub(super) fn decode(&self, chunk: &[u8], cache: &CudaCache) -> codec::Result<Range<usize>> {
        let work = |decoder: &mut CudaDecoder| decoder.decode(chunk, Some(self.coding), cache.view());
        self.decoders.with(work)
    }
}

/// A few equal tools for many hands: one is taken for the time of a call, and whoever finds none waits.
#[derive(Debug)]
struct Lot<T> {
    free: Mutex<Vec<T>>,
    returned: Condvar,
}

impl<T> Lot<T> {
    fn of(free: Vec<T>) -> Arc<Self> {
        Arc::new(Self { free: Mutex::new(free), returned: Condvar::new() })
    }

    fn with<R>(&self, work: impl FnOnce(&mut T) -> R) -> R {
        let mut held = self.take();
        work(held.tool.as_mut().expect("it is held until the end; this is a bug"))
    }

    fn take(&self) -> Held<'_, T> {
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            match free.pop() {
                Some(tool) => return Held { lot: self, tool: Some(tool) },
                None => free = self.returned.wait(free).unwrap_or_else(PoisonError::into_inner),
            }
        }
    }
}

/// A tool that goes back when its work ends, however it ends.
struct Held<'a, T> {
    lot: &'a Lot<T>,
    tool: Option<T>,
}

impl<T> Drop for Held<'_, T> {
    fn drop(&mut self) {
        self.lot.free.lock().unwrap_or_else(PoisonError::into_inner).extend(self.tool.take());
        self.lot.returned.notify_one();
    }
}

/// What the codec may know of tokens, from the model's embedding.
#[derive(Debug)]
struct Vocabulary(CudaVocabulary);

impl DeviceTokenFeatures for Vocabulary {
    fn features(&self) -> usize {
        self.0.hidden_size()
    }

    fn vocabulary(&self) -> usize {
        self.0.vocab_size()
    }

    fn write(
        &self,
        stream: &Arc<CudaStream>,
        ids: CUdeviceptr,
        count: usize,
        out: CUdeviceptr,
    ) -> gpu::Result<()> {
        // SAFETY: the codec hands over ids and room for their features, and keeps both until the stream is through.
        unsafe { self.0.write(stream, ids, count, out) }
    }
}

/// One token for every session of the batch.
pub(super) fn step(llama: &mut CudaLlama, batch: &mut [Step<'_>]) -> model::Result<Vec<Drawn>> {
    let steps = batch.iter_mut().map(|step| match step.cache {
        Cache::Device(cache) => model::cuda::Step { cache, token: step.token, draws: step.draws },
        Cache::Host(_) => panic!("a cache of another machine; this is a bug"),
    });
    llama.step(&mut steps.collect::<Vec<_>>())
}
