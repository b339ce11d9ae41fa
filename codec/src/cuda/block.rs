//! Between a session's pages and a block in host memory, through page-locked memory: for the codecs that have no kernels.

use std::sync::Arc;

use gpu::{CudaStream, KvView, PushKernelArg as _};
use half::bf16;

use super::{
    buffers::{Grown, GrownPinned, copy},
    codec::CudaCodec,
    kernels::{launch, threads},
};
use crate::{
    error::Result,
    layout::{KvBlock, KvLayout},
    tokens::Place,
};

/// Memory on both sides of the bus.
#[derive(Debug)]
pub(super) struct BlockCopy {
    device: Grown<u16>,
    host: GrownPinned<u16>,
}

impl BlockCopy {
    pub(super) fn new() -> Self {
        Self { device: Grown::new("a block of cache"), host: GrownPinned::new() }
    }

    /// Copies tokens out of the pages; waits.
    pub(super) fn take(
        &mut self,
        codec: &CudaCodec,
        stream: &Arc<CudaStream>,
        kv: &KvView,
        place: Place,
    ) -> Result<KvBlock> {
        let elements = elements(&codec.layout, place.tokens);
        self.device.reserve(&codec.device, stream, elements)?;
        self.move_pages(codec, stream, kv, place, false)?;
        let host = self.host.reserve(&codec.device, elements)?;
        let device = self.device.reserve(&codec.device, stream, elements)?;
        host.copy_from(stream, elements, device)?;
        stream.synchronize().map_err(gpu::Error::from)?;
        let (keys, values) = host.as_slice()?[..elements].split_at(elements / 2);
        let of = |bits: &[u16]| bits.iter().map(|&bits| bf16::from_bits(bits)).collect();
        let (first_token, tokens) = (place.first_token, place.tokens);
        Ok(KvBlock { first_token, tokens, keys: of(keys), values: of(values) })
    }

    /// Copies a block into the pages; waits.
    pub(super) fn put(
        &mut self,
        codec: &CudaCodec,
        stream: &Arc<CudaStream>,
        kv: &KvView,
        block: &KvBlock,
    ) -> Result<()> {
        let elements = elements(&codec.layout, block.tokens);
        let host = self.host.reserve(&codec.device, elements)?;
        let both = block.keys.iter().chain(&block.values);
        host.as_mut_slice()?.iter_mut().zip(both).for_each(|(to, from)| *to = from.to_bits());
        host.copy_to(stream, elements, self.device.reserve(&codec.device, stream, elements)?)?;
        let place = Place { first_token: block.first_token, tokens: block.tokens, prompt_tokens: 0 };
        self.move_pages(codec, stream, kv, place, true)?;
        Ok(stream.synchronize().map_err(gpu::Error::from)?)
    }

    fn move_pages(
        &self,
        codec: &CudaCodec,
        stream: &Arc<CudaStream>,
        kv: &KvView,
        place: Place,
        to_pages: bool,
    ) -> gpu::Result<()> {
        let functions = &codec.functions;
        let kernels = if to_pages { &functions.block_to_pages } else { &functions.block_from_pages };
        let (function, each) = kernels.of(codec.layout.head_dim);
        let grid = threads(elements(&codec.layout, place.tokens) / each, 1);
        let (kv, first, tokens) = (*kv, place.first_token as u32, place.tokens as u32);
        let block = self.device.pointer();
        // SAFETY: the block has room for the tokens, which lie in the view's pages.
        unsafe { launch!(stream, function, grid, kv, first, tokens, block) }
    }
}

fn elements(layout: &KvLayout, tokens: usize) -> usize {
    2 * layout.features() * tokens
}

/// A copy of `bytes` behind `head`, with room for `more`.
pub(super) fn joined(mut head: Vec<u8>, bytes: &[u8], more: usize) -> Vec<u8> {
    let start = head.len();
    head.reserve_exact(bytes.len() + more);
    head.resize(start + bytes.len(), 0);
    copy(bytes, &mut head[start..]);
    head
}
