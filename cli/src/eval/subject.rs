//! The model under evaluation, and one prompt's cache before and after the wire, bit for bit as a cluster would have it.

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use anyhow::Context;
use codec::{Coding, Decoder, Encoder, KvBlock, Limits};
use half::bf16;
use model::{KvCache, LogitsOf, Sampling, Sequence};
use node::prompt::{Progress, export, import};
use node::{KvDigest, Loaded, PromptPass};
use openai::{ChatTemplate, Tokenizer};
use transport::frame::{HEADER_BYTES, encode_message};
use transport::ids::Ticket;
use transport::message::{KvCoding, KvMode, KvStream, PrefillStats};

use super::body::{Body, body_bytes, errors};
use super::score::Transfers;

/// Tokens per chunk, as prefill nodes have it by default (`--chunk-tokens`).
const CHUNK: usize = 256;

/// A model with everything that evaluating it takes.
#[derive(Debug)]
pub struct Subject {
    /// Model and plan.
    pub loaded: Loaded,
    /// Its tokenizer.
    pub tokenizer: Tokenizer,
    /// Its chat template, where rows with messages are asked.
    pub template: Option<ChatTemplate>,
}

/// A prompt after its pass through the model.
#[derive(Debug)]
pub(super) struct Prefilled {
    pub(super) tokens: usize,
    /// The cache as it was, with room for more tokens.
    pub(super) cache: KvCache<bf16>,
    /// The same in the pieces in which a prefill node codes it.
    pub(super) blocks: Vec<KvBlock>,
    /// Greedily drawn after the prompt; it travels beside the cache.
    pub(super) first_token: u32,
}

impl Subject {
    /// Loads a model directory, its plan and its tokenizer.
    ///
    /// # Errors
    /// When one of them cannot be loaded.
    pub fn load(model: &Path, plan: Option<&Path>) -> anyhow::Result<Self> {
        let loaded = Loaded::load(model, plan, String::new()).context("cannot load the model")?;
        Ok(Self { loaded, tokenizer: Tokenizer::load(model)?, template: None })
    }

    /// Runs a prompt as a prefill node does. The cache has room for `room` tokens after it.
    pub(super) fn prefill(&self, tokens: Vec<u32>, room: usize) -> anyhow::Result<Prefilled> {
        let llama = &self.loaded.llama;
        let count = tokens.len();
        let mut cache = KvCache::<bf16>::new(llama.config(), count + room);
        let mut blocks = Vec::new();
        let mut pass = PromptPass::new(tokens, CHUNK);
        loop {
            let (range, progress) = pass.advance(llama, &mut cache, &Sampling::GREEDY)?;
            blocks.push(export(&cache, range)?);
            if let Progress::FirstToken(first_token) = progress {
                return Ok(Prefilled { tokens: count, cache, blocks, first_token });
            }
        }
    }

    /// Codes a prompt's cache to bytes, and those bytes to a fresh cache with the same room.
    pub(super) fn transfer(
        &self,
        coding: Coding,
        prompt: &Prefilled,
    ) -> anyhow::Result<(KvCache<bf16>, Transfers)> {
        let encoder = self.encoder(coding, prompt.tokens)?;
        let decoder = self.decoder()?;
        let started = Instant::now();
        let chunks =
            prompt.blocks.iter().map(|block| encoder.encode(block)).collect::<codec::Result<Vec<_>>>()?;
        let encode = started.elapsed();
        let started = Instant::now();
        let decoded = chunks.iter().map(|chunk| decoder.decode(chunk)).collect::<codec::Result<Vec<_>>>()?;
        let decode = started.elapsed();
        let mut cache = KvCache::<bf16>::new(self.loaded.llama.config(), prompt.cache.capacity());
        decoded.iter().try_for_each(|block| import(&mut cache, block))?;
        cache.set_len(prompt.tokens)?;
        let body = Body::of(prompt.tokens);
        let (keys, values) = errors(&self.loaded.layout, &body, &prompt.blocks, &decoded)?;
        let raw = self.encoder(Coding::RAW, prompt.tokens)?;
        let (body_raw_bytes, body_coded_bytes) =
            body_bytes(&self.loaded.layout, &body, &prompt.blocks, &chunks, &encoder, &raw)?;
        let transfers = Transfers {
            caches: 1,
            raw_bytes: prompt.tokens * self.loaded.layout.bytes_per_token(),
            wire_bytes: stream_bytes(coding, prompt, &chunks)?,
            body_raw_bytes,
            body_coded_bytes,
            encode,
            decode,
            keys,
            values,
        };
        Ok((cache, transfers))
    }

    /// Refuses a coding that this model or plan does not allow.
    pub(super) fn check(&self, coding: Coding) -> anyhow::Result<()> {
        self.encoder(coding, 1).map(drop).with_context(|| {
            format!("cannot code with {coding} (--plan names a plan, `kvferry calibrate` makes one)")
        })
    }

    /// Feeds `tokens` after what the cache holds; the logits of the last or of every one of them.
    pub(super) fn feed(
        &self,
        cache: &mut KvCache<bf16>,
        tokens: &[u32],
        logits: LogitsOf,
    ) -> model::Result<Vec<f32>> {
        self.loaded.llama.forward(&mut [Sequence { cache, tokens, received: None }], logits)
    }

    /// A text's tokens without begin-of-text, for what continues another text.
    pub(super) fn continuation(&self, text: &str) -> anyhow::Result<Vec<u32>> {
        let mut ids = self.tokenizer.encode(text)?;
        if ids.first().is_some_and(|first| Some(*first) == self.tokenizer.begin_of_text()) {
            ids.remove(0);
        }
        Ok(ids)
    }

    fn encoder(&self, coding: Coding, prompt_tokens: usize) -> codec::Result<Encoder> {
        let (layout, plan) = (self.loaded.layout.clone(), self.loaded.plan.as_ref().map(Arc::clone));
        Encoder::new(layout, self.loaded.llama.fingerprint(), plan, coding, prompt_tokens)
    }

    fn decoder(&self) -> codec::Result<Decoder> {
        let (layout, plan) = (self.loaded.layout.clone(), self.loaded.plan.as_ref().map(Arc::clone));
        Decoder::new(layout, self.loaded.llama.fingerprint(), plan, Limits::default())
    }
}

/// Every byte that a prefill node writes to the KV stream for these chunks: frames, opening and closing message included.
fn stream_bytes(coding: Coding, prompt: &Prefilled, chunks: &[Vec<u8>]) -> anyhow::Result<usize> {
    let begin = KvStream::Begin {
        ticket: Ticket::random(),
        coding: KvCoding { codec: coding.kind.name().into(), tier: coding.tier, mode: KvMode::Stream },
        prompt_tokens: prompt.tokens as u32,
    };
    let mut digest = KvDigest::default();
    chunks.iter().for_each(|chunk| digest.add(chunk));
    let (count, digest) = digest.finish();
    let stats = PrefillStats::default();
    let end = KvStream::End { chunks: count, digest, first_token: prompt.first_token, stats };
    let data: usize = chunks.iter().map(|chunk| HEADER_BYTES + chunk.len()).sum();
    Ok(encode_message(&begin)?.len() + data + encode_message(&end)?.len())
}
