//! The decoder on the device: [`crate::Decoder`] straight into a session's pages.
//!
//! Everything that can be checked on the host is checked before anything is written; what only kernels see sets a flag that fails the call
//! at its end. Kernels take no address from a payload without checking it, so that a bad chunk spoils its own tokens at most.

use std::{ops::Range, sync::Arc};

use gpu::{CudaStream, KvView};

use super::{
    block::Blocks,
    codec::{CudaCodec, Direction},
    kvtc::decode::Work,
};
use crate::{
    coding::{Coding, Limits},
    decode::Decoder,
    error::Result,
    format::{chunk::CodecId, digest::unseal},
};

/// Decodes one chunk after the other, straight into a session's pages.
#[derive(Debug)]
pub struct CudaDecoder {
    codec: Arc<CudaCodec>,
    stream: Arc<CudaStream>,
    decoder: Decoder,
    /// Without a plan there is nothing to reconstruct with.
    work: Option<Work>,
    blocks: Blocks,
}

impl CudaDecoder {
    pub(super) fn new(codec: Arc<CudaCodec>, limits: Limits) -> Result<Self> {
        let stream = codec.device.stream()?;
        let decoder = Decoder::new(codec.layout.clone(), codec.model, codec.plan.clone(), limits)?;
        let work =
            codec.tables(Direction::Decoding, &stream)?.map(|tables| Work::new(&codec, &stream, tables));
        Ok(Self { blocks: Blocks::new(), work: work.transpose()?, codec, stream, decoder })
    }

    /// Decodes one chunk into the pages of `kv` and says which of the prompt's tokens it holds. They are there when the call returns.
    /// After an error the chunk's tokens, and no others, hold anything.
    ///
    /// # Errors
    /// Those of [`Decoder::decode`](crate::Decoder::decode), [`Error::LimitExceeded`] for tokens that the pages have no room for, [`Error::Gpu`].
    pub fn decode(&mut self, bytes: &[u8], announced: Option<Coding>, kv: KvView) -> Result<Range<usize>> {
        let codec = Arc::clone(&self.codec);
        let decoder = match announced {
            Some(coding) => self.decoder.clone().announced(coding),
            None => self.decoder.clone(),
        };
        let (header, reader) = decoder.open_unverified(bytes)?;
        let place = header.place();
        let tokens = place.first_token..place.first_token + place.tokens;
        codec.check_view(&kv, tokens.end)?;
        codec.device.context().bind_to_thread().map_err(gpu::Error::from)?;
        let (stream, blocks) = (&self.stream, &mut self.blocks);
        let decoded = match (header.codec, &codec.plan, &mut self.work) {
            (CodecId::Kvtc, Some(plan), Some(work)) => {
                work.decode(&codec, stream, plan.kvtc(), header, (bytes, reader), kv)
            }
            (CodecId::Raw, ..) => {
                unseal("chunk", bytes).and_then(|_| blocks.decode_raw(&codec, stream, &header, reader, kv))
            }
            _ => blocks.decode(&codec, stream, decoder, bytes, kv, place),
        };
        if decoded.is_err() {
            // Nothing may be in flight when buffers are used again.
            stream.synchronize().map_err(gpu::Error::from)?;
            if let Some(work) = &mut self.work {
                // The first failure is the answer; what segments have to say must not wait for the next chunk.
                _ = work.inflater.check(stream);
            }
        }
        decoded.map(|()| tokens)
    }

    /// Device memory held beside the plan's tables, in bytes.
    #[must_use]
    pub fn scratch_bytes(&self) -> usize {
        self.work.as_ref().map_or(0, Work::bytes)
    }

    /// Measures stages from now on, or stops.
    #[doc(hidden)]
    pub fn measure(&mut self, is_on: bool) {
        if let Some(work) = &mut self.work {
            work.stopwatch.switch(is_on);
        }
    }

    /// Milliseconds of the last call's stages on the device.
    #[doc(hidden)]
    pub fn stages(&self) -> Result<Vec<(&'static str, f32)>> {
        Ok(self.work.as_ref().map_or(Ok(Vec::new()), |work| work.stopwatch.stages())?)
    }
}
