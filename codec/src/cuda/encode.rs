//! The encoder on the device. [`CudaEncoder::encode`] is the pipeline of [`crate::Encoder`], a chunk a call.
//!
//! One synchronisation in the middle tells how many symbols escaped, which decides where in the payload everything lies.

use std::{ops::Range, sync::Arc};

use gpu::{CudaStream, KvView};

use super::{
    block::Blocks,
    codec::{CudaCodec, Direction},
    kvtc::{Job, encode::Work},
};
use crate::{
    coding::{CodecKind, Coding},
    encode::Encoder,
    error::Result,
    kvtc::header_of,
    tokens::Place,
};

/// Encodes one chunk after the other, straight from a session's pages.
#[derive(Debug)]
pub struct CudaEncoder {
    codec: Arc<CudaCodec>,
    stream: Arc<CudaStream>,
    /// Without a plan there is nothing to project on.
    work: Option<Work>,
    blocks: Blocks,
}

impl CudaEncoder {
    pub(super) fn new(codec: Arc<CudaCodec>) -> Result<Self> {
        let stream = codec.device.stream()?;
        let work =
            codec.tables(Direction::Encoding, &stream)?.map(|tables| Work::new(&codec, &stream, tables));
        Ok(Self { blocks: Blocks::new(), work: work.transpose()?, codec, stream })
    }

    /// Encodes the tokens `tokens` of a prompt, whose ids are `ids` and whose cache lies in `kv`, as one chunk. All tokens of the prompt
    /// count for where its window begins; only those of `tokens` need to be there. As of
    /// [`Encoder::encode_with_shifts`](crate::Encoder::encode_with_shifts), shifts are one for each of `tokens`.
    ///
    /// The pages must not change until the call returns, and whatever fills them must be done before.
    ///
    /// # Errors
    /// Those of [`Encoder::new`](crate::Encoder::new) and [`Encoder::encode_with_shifts`](crate::Encoder::encode_with_shifts),
    /// [`Error::LimitExceeded`] for tokens that are not in the pages, [`Error::Gpu`].
    pub fn encode(
        &mut self,
        coding: Coding,
        ids: &[u32],
        kv: KvView,
        tokens: Range<usize>,
        shifts: Option<&[i8]>,
    ) -> Result<Vec<u8>> {
        let codec = Arc::clone(&self.codec);
        let plan = codec.plan.clone();
        let encoder = Encoder::new(codec.layout.clone(), codec.model, plan.clone(), coding, ids.len())?;
        encoder.check_place(tokens.start, tokens.len(), shifts)?;
        codec.check_view(&kv, tokens.end)?;
        codec.device.context().bind_to_thread().map_err(gpu::Error::from)?;
        let place = Place { first_token: tokens.start, tokens: tokens.len(), prompt_tokens: ids.len() };
        let (stream, blocks) = (&self.stream, &mut self.blocks);
        let coded = match (coding.kind, &plan, &mut self.work) {
            (CodecKind::Kvtc, Some(plan), Some(work)) => {
                let header = header_of(plan, coding.tier, shifts.is_some(), encoder.header(place));
                Job::of(&codec, plan, kv, header, ids, shifts)
                    .and_then(|job| work.encode(&codec, stream, job, ids))
            }
            (CodecKind::Raw, ..) => blocks.encode_raw(&codec, stream, encoder.header(place), kv),
            _ => blocks.encode(&codec, stream, encoder, (ids, shifts), kv, place),
        };
        if coded.is_err() {
            // Nothing may be in flight when buffers are used again.
            stream.synchronize().map_err(gpu::Error::from)?;
        }
        coded
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
