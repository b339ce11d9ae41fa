//! Codecs without kernels of their own: a chunk's cache goes through one block of page-locked memory, which kernels copy to and from a
//! session's pages over the bus.

use std::sync::Arc;

use gpu::{CUdeviceptr, CudaStream, KvView, Pinned, PushKernelArg as _};
use half::bf16;
use rayon::prelude::*;

use super::{
    buffers::{GrownPinned, copy},
    codec::CudaCodec,
    features::HostFeatures,
    kernels::{ByWidth, launch, threads},
};
use crate::{
    decode::{Decoder, check_payload},
    encode::Encoder,
    error::{Error, Result},
    format::{
        bytes::Reader,
        chunk::ChunkHeader,
        digest::{DIGEST_BYTES, seal},
    },
    layout::KvBlock,
    tokens::Place,
};

/// Elements that a task turns from and to bytes.
const PIECE: usize = 128 << 10;

/// The block: bf16 keys, then values, each `[layers, kv_heads, tokens, head_dim]`.
#[derive(Debug)]
pub(super) struct Blocks {
    memory: GrownPinned<u8>,
}

impl Blocks {
    pub(super) fn new() -> Self {
        Self { memory: GrownPinned::new() }
    }

    /// The block's cache as a raw chunk.
    pub(super) fn encode_raw(
        &mut self,
        codec: &CudaCodec,
        stream: &Arc<CudaStream>,
        mut header: ChunkHeader,
        kv: KvView,
    ) -> Result<Vec<u8>> {
        let bytes = self.fetch(codec, stream, kv, header.place())?;
        header.payload_bytes = bytes.len() as u64;
        let mut out = Vec::with_capacity(ChunkHeader::SIZE + bytes.len() + DIGEST_BYTES);
        header.write_to(&mut out);
        out.resize(ChunkHeader::SIZE + bytes.len(), 0);
        copy(bytes, &mut out[ChunkHeader::SIZE..]);
        seal(&mut out);
        Ok(out)
    }

    /// Any codec, by the CPU's encoder.
    pub(super) fn encode(
        &mut self,
        codec: &CudaCodec,
        stream: &Arc<CudaStream>,
        mut encoder: Encoder,
        (ids, shifts): (&[u32], Option<&[i8]>),
        kv: KvView,
        place: Place,
    ) -> Result<Vec<u8>> {
        let bytes = self.fetch(codec, stream, kv, place)?;
        let (keys, values) = bytes.split_at(bytes.len() / 2);
        let block = KvBlock {
            first_token: place.first_token,
            tokens: place.tokens,
            keys: elements(keys),
            values: elements(values),
        };
        let features = host_features(codec, stream);
        if let Some(features) = &features {
            encoder = encoder.predicting(features.clone(), Arc::from(ids))?;
        }
        let coded = encoder.encode_with_shifts(&block, shifts);
        refuse_failure(features.as_deref())?;
        coded
    }

    /// A raw chunk, opened, to the pages.
    pub(super) fn decode_raw(
        &mut self,
        codec: &CudaCodec,
        stream: &Arc<CudaStream>,
        header: &ChunkHeader,
        mut reader: Reader<'_>,
        kv: KvView,
    ) -> Result<()> {
        let len = header.tokens as usize * codec.layout.bytes_per_token();
        check_payload(header, len)?;
        let payload = reader.take(len)?;
        if reader.remaining() > 0 {
            let detail = format!("{} bytes follow the payload", reader.remaining());
            return Err(Error::corrupt("chunk", detail));
        }
        let memory = self.memory.reserve(&codec.device, len)?;
        copy(payload, &mut memory.as_mut_slice()?[..len]);
        store(codec, stream, memory, kv, header.place())
    }

    /// Any codec, by the CPU's decoder, to the pages.
    pub(super) fn decode(
        &mut self,
        codec: &CudaCodec,
        stream: &Arc<CudaStream>,
        mut decoder: Decoder,
        bytes: &[u8],
        kv: KvView,
        place: Place,
    ) -> Result<()> {
        let features = host_features(codec, stream);
        if let Some(features) = &features {
            decoder = decoder.predicting(features.clone());
        }
        let block = decoder.decode(bytes);
        refuse_failure(features.as_deref())?;
        let block = block?;
        let len = place.tokens * codec.layout.bytes_per_token();
        let memory = self.memory.reserve(&codec.device, len)?;
        let (keys, values) = memory.as_mut_slice()?[..len].split_at_mut(len / 2);
        write_elements(&block.keys, keys);
        write_elements(&block.values, values);
        store(codec, stream, memory, kv, place)
    }

    /// Copies a chunk's cache from its pages, and waits for it.
    fn fetch(
        &mut self,
        codec: &CudaCodec,
        stream: &Arc<CudaStream>,
        kv: KvView,
        place: Place,
    ) -> Result<&[u8]> {
        let len = place.tokens * codec.layout.bytes_per_token();
        let memory = self.memory.reserve(&codec.device, len)?;
        run(codec, stream, &codec.functions.block_from_pages, kv, place, memory)?;
        stream.synchronize().map_err(gpu::Error::from)?;
        Ok(&memory.as_slice()?[..len])
    }
}

/// Copies the block to the pages, and waits for it.
fn store(
    codec: &CudaCodec,
    stream: &Arc<CudaStream>,
    memory: &mut Pinned<u8>,
    kv: KvView,
    place: Place,
) -> Result<()> {
    run(codec, stream, &codec.functions.block_to_pages, kv, place, memory)?;
    Ok(stream.synchronize().map_err(gpu::Error::from)?)
}

fn run(
    codec: &CudaCodec,
    stream: &Arc<CudaStream>,
    kernels: &ByWidth,
    kv: KvView,
    place: Place,
    memory: &mut Pinned<u8>,
) -> gpu::Result<()> {
    let (kernel, width) = kernels.of(codec.layout.head_dim);
    let words = 2 * place.tokens * codec.widths.features / width;
    let [first, tokens] = [place.first_token, place.tokens].map(|n| n as u32);
    // Page-locked memory has the same address on the device.
    let block = memory.as_mut_slice()?.as_mut_ptr() as CUdeviceptr;
    let grid = threads(words, 1);
    // SAFETY: the view's pages hold the tokens, which was checked, and the block has room for both their sides.
    unsafe { launch!(stream, kernel, grid, kv, first, tokens, block) }
}

fn host_features(codec: &CudaCodec, stream: &Arc<CudaStream>) -> Option<Arc<HostFeatures>> {
    let features = codec.features.as_ref()?;
    Some(Arc::new(HostFeatures::new(Arc::clone(features), &codec.device, stream)))
}

fn refuse_failure(features: Option<&HostFeatures>) -> Result<()> {
    features.and_then(HostFeatures::failure).map_or(Ok(()), |error| Err(error.into()))
}

fn elements(bytes: &[u8]) -> Vec<bf16> {
    let (pairs, _) = bytes.as_chunks::<2>();
    pairs.par_iter().with_min_len(PIECE).map(|&pair| bf16::from_le_bytes(pair)).collect()
}

fn write_elements(from: &[bf16], to: &mut [u8]) {
    let pieces = to.par_chunks_mut(2 * PIECE).zip(from.par_chunks(PIECE));
    pieces.for_each(|(to, from)| {
        let (pairs, _) = to.as_chunks_mut::<2>();
        pairs.iter_mut().zip(from).for_each(|(to, from)| *to = from.to_le_bytes());
    });
}
