//! The codec on a GPU under evaluation: caches go to the device's pages and back as they are, and through its encoder and decoder between.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use anyhow::Context;
use codec::cuda::{CudaCodec, CudaDecoder, CudaEncoder, DeviceFeatureTable, DeviceTokenFeatures};
use codec::{Coding, Decoder, Encoder, Limits};
use gpu::{CudaStream, Device, KvPages, KvPool, KvShape};
use node::Loaded;

use super::subject::{Crossing, Piece};

/// Both ends of the codec on one device.
#[derive(Debug)]
pub(super) struct DeviceCodec {
    stream: Arc<CudaStream>,
    pool: Arc<KvPool>,
    ends: Mutex<(CudaEncoder, CudaDecoder)>,
}

impl DeviceCodec {
    /// The codec of `loaded` on device `ordinal`, for prompts that its model was made for.
    pub(super) fn new(ordinal: usize, loaded: &Loaded) -> anyhow::Result<Self> {
        let device = Device::open(ordinal)?;
        let stream = device.stream()?;
        let config = loaded.llama.config();
        let (layers, kv_heads, head_dim) = (config.layers, config.kv_heads, config.head_dim);
        let tokens = config.max_position_embeddings + gpu::PAGE_TOKENS;
        let pool = KvPool::new(&device, &stream, KvShape { layers, kv_heads, head_dim }, 2 * tokens)?;
        let features = DeviceFeatureTable::new(&device, loaded.token_features().as_ref())?;
        let features: Arc<dyn DeviceTokenFeatures> = Arc::new(features);
        let (layout, plan) = (loaded.layout.clone(), loaded.plan.clone());
        let codec = CudaCodec::new(&device, layout, loaded.llama.fingerprint(), plan, Some(features))?;
        let ends = Mutex::new((codec.encoder()?, codec.decoder(Limits::default())?));
        Ok(Self { stream, pool, ends })
    }

    /// Codes the pieces of a prompt's cache and decodes them again.
    pub(super) fn cross(
        &self,
        loaded: &Loaded,
        coding: Coding,
        ids: &[u32],
        pieces: &[Piece],
    ) -> anyhow::Result<Crossing> {
        let mut ends = self.ends.lock().unwrap_or_else(PoisonError::into_inner);
        let (encoder, decoder) = &mut *ends;
        let (here, there) =
            (self.pool.take(&self.stream, ids.len())?, self.pool.take(&self.stream, ids.len())?);
        put(loaded, decoder, ids.len(), pieces, &here)?;
        let started = Instant::now();
        let code = |piece: &Piece| {
            let tokens = piece.block.first_token..piece.block.first_token + piece.block.tokens;
            encoder.encode(coding, ids, here.view(), tokens, piece.shifts.as_deref())
        };
        let chunks = pieces.iter().map(code).collect::<codec::Result<Vec<_>>>()?;
        let encode = started.elapsed();
        let started = Instant::now();
        let tokens = chunks.iter().map(|chunk| decoder.decode(chunk, Some(coding), there.view()));
        let tokens = tokens.collect::<codec::Result<Vec<_>>>()?;
        let decode = started.elapsed();
        let raw = Decoder::new(loaded.layout.clone(), loaded.llama.fingerprint(), None, Limits::default())?;
        let decoded = tokens
            .into_iter()
            .map(|tokens| raw.decode(&encoder.encode(Coding::RAW, ids, there.view(), tokens, None)?));
        let decoded =
            decoded.collect::<codec::Result<_>>().context("the decoded cache cannot be read back")?;
        Ok(Crossing { chunks, decoded, encode, decode })
    }
}

/// Puts a cache into pages as it is.
fn put(
    loaded: &Loaded,
    decoder: &mut CudaDecoder,
    prompt_tokens: usize,
    pieces: &[Piece],
    pages: &KvPages,
) -> anyhow::Result<()> {
    let (layout, model) = (loaded.layout.clone(), loaded.llama.fingerprint());
    let encoder = Encoder::new(layout, model, None, Coding::RAW, prompt_tokens)?;
    for piece in pieces {
        decoder.decode(&encoder.encode(&piece.block)?, None, pages.view())?;
    }
    Ok(())
}
