//! The model under evaluation, and one prompt's cache before and after the wire, bit for bit as a cluster would have it.

use std::fmt;
use std::ops::Range;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Context;
use codec::{CodecKind, Coding, Encoder, KvBlock, Limits};
use half::bf16;
use model::{Draws, KvCache, LogitsOf, Sequence};
use node::compute::Received;
use node::prompt::{AFTER_CHUNK_TOKENS, Progress, export, import, pieces};
use node::{DeviceChoice, KvDigest, Loaded, PromptPass};
use openai::{ChatTemplate, Tokenizer};
use transport::frame::{HEADER_BYTES, encode_message};
use transport::ids::Ticket;
use transport::message::{KvCoding, KvMode, KvStream, PrefillStats};

use super::body::{Body, body_bytes, errors};
use super::score::{Transfers, has_tiers};
use super::seed::{self, Replica};

/// Tokens per chunk, as prefill nodes have it by default (`--chunk-tokens`).
const CHUNK: usize = 256;

/// What codes a cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    /// A codec that clusters speak.
    Codec(Coding),
    /// The replica of the seed's method, which is only measured: a body so many times smaller is aimed at.
    Seed {
        /// That many.
        tier: u8,
    },
}

impl Method {
    /// Its name in tables.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Codec(coding) => coding.kind.name(),
            Self::Seed { .. } => seed::NAME,
        }
    }

    /// Its tier, where it has tiers.
    #[must_use]
    pub fn tier(self) -> Option<u8> {
        match self {
            Self::Codec(coding) => has_tiers(coding.kind).then_some(coding.tier),
            Self::Seed { tier } => Some(tier),
        }
    }
}

impl fmt::Display for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Codec(coding) => coding.fmt(f),
            Self::Seed { tier } => write!(f, "{} at tier {tier}", seed::NAME),
        }
    }
}

/// How a cache is coded and sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Way {
    /// With which codec and tier.
    pub coding: Method,
    /// While the prompt runs or after it.
    pub mode: KvMode,
}

impl Way {
    /// As a prefill node does it when a request asks for no mode.
    #[must_use]
    pub fn usual(coding: Coding) -> Self {
        let mode = if coding.kind == CodecKind::Kvtc { KvMode::After } else { KvMode::Stream };
        Self { coding: Method::Codec(coding), mode }
    }

    /// The seed's method, which takes a whole cache at once.
    #[must_use]
    pub fn seed(tier: u8) -> Self {
        Self { coding: Method::Seed { tier }, mode: KvMode::After }
    }
}

/// A model with everything that evaluating it takes.
#[derive(Debug)]
pub struct Subject {
    /// Model and plan.
    pub loaded: Loaded,
    /// Its tokenizer.
    pub tokenizer: Tokenizer,
    /// Its chat template, where rows with messages are asked.
    pub template: Option<ChatTemplate>,
    /// The codec's place, where that is not the CPU.
    #[cfg(feature = "cuda")]
    device: Option<super::device::DeviceCodec>,
}

/// A prompt after its pass through the model.
#[derive(Debug)]
pub(super) struct Prefilled {
    pub(super) ids: Vec<u32>,
    /// The cache as it was, with room for more tokens.
    pub(super) cache: KvCache<bf16>,
    /// Steps' shifts by the attention that each token received.
    shifts: Vec<i8>,
    /// Greedily drawn after the prompt; it travels beside the cache.
    pub(super) first_token: u32,
}

impl Prefilled {
    /// The cache in the pieces in which a prefill node codes it, with their shifts.
    fn pieces(&self, mode: KvMode) -> anyhow::Result<Vec<Piece>> {
        let tokens = self.ids.len();
        let ranges: Vec<_> = match mode {
            KvMode::Stream => (0..tokens).step_by(CHUNK).map(|at| at..(at + CHUNK).min(tokens)).collect(),
            KvMode::After => pieces(tokens, AFTER_CHUNK_TOKENS).collect(),
        };
        let piece = |range: Range<usize>| {
            let shifts = (mode == KvMode::After).then(|| self.shifts[range.clone()].to_vec());
            Ok(Piece { block: export(&self.cache, range)?, shifts })
        };
        ranges.into_iter().map(piece).collect()
    }
}

/// What becomes one chunk.
#[derive(Debug)]
pub(super) struct Piece {
    pub(super) block: KvBlock,
    /// One per token, where each has its own step.
    pub(super) shifts: Option<Vec<i8>>,
}

/// Chunks of a prompt's pieces, what they decode to, and how long both took.
pub(super) struct Crossing {
    pub(super) chunks: Vec<Vec<u8>>,
    pub(super) decoded: Vec<KvBlock>,
    pub(super) encode: Duration,
    pub(super) decode: Duration,
}

/// A cache before and after the wire, and what the crossing took.
struct Crossed {
    exact: Vec<Piece>,
    /// One per piece, of the same tokens.
    decoded: Vec<KvBlock>,
    /// Every byte that was sent.
    whole_bytes: usize,
    /// Raw and coded bytes of the body.
    body_bytes: (usize, usize),
    encode: Duration,
    decode: Duration,
}

impl Subject {
    /// Loads a model directory, its plan and its tokenizer.
    ///
    /// # Errors
    /// When one of them cannot be loaded.
    pub fn load(model: &Path, plan: Option<&Path>) -> anyhow::Result<Self> {
        let loaded = Loaded::load(model, plan, String::new()).context("cannot load the model")?;
        Ok(Self {
            loaded,
            tokenizer: Tokenizer::load(model)?,
            template: None,
            #[cfg(feature = "cuda")]
            device: None,
        })
    }

    /// Lets the codec work where `device` says; the model stays on the CPU.
    ///
    /// # Errors
    /// When the device cannot be used.
    pub fn code_on(&mut self, device: DeviceChoice) -> anyhow::Result<()> {
        match device {
            DeviceChoice::Cpu => Ok(()),
            #[cfg(feature = "cuda")]
            DeviceChoice::Cuda(ordinal) => {
                self.device = Some(super::device::DeviceCodec::new(ordinal, &self.loaded)?);
                Ok(())
            }
            #[cfg(not(feature = "cuda"))]
            DeviceChoice::Cuda(_) => Err(node::LoadError::NotBuilt.into()),
        }
    }

    /// Runs a prompt as a prefill node does. The cache has room for `room` tokens after it.
    pub(super) fn prefill(&self, ids: Vec<u32>, room: usize) -> anyhow::Result<Prefilled> {
        let llama = &self.loaded.llama;
        let mut cache = KvCache::<bf16>::new(llama.config(), ids.len() + room);
        let mut pass = PromptPass::new(ids.clone(), CHUNK).collecting(self.loaded.layer_weights());
        loop {
            if let (_, Progress::FirstToken(first)) = pass.advance(llama, &mut cache, &Draws::GREEDY)? {
                let shifts = pass.into_received().map(Received::shifts).transpose()?.unwrap_or_default();
                return Ok(Prefilled { ids, cache, shifts, first_token: first.token });
            }
        }
    }

    /// Codes a prompt's cache to bytes, and those bytes to a fresh cache with the same room.
    pub(super) fn transfer(
        &self,
        way: Way,
        prompt: &Prefilled,
    ) -> anyhow::Result<(KvCache<bf16>, Transfers)> {
        let crossed = match way.coding {
            Method::Codec(coding) => self.by_codec(coding, way.mode, prompt)?,
            Method::Seed { tier } => self.by_seed(tier, prompt)?,
        };
        let tokens = prompt.ids.len();
        let mut cache = KvCache::<bf16>::new(self.loaded.llama.config(), prompt.cache.capacity());
        crossed.decoded.iter().try_for_each(|block| import(&mut cache, block))?;
        cache.set_len(tokens)?;
        let (keys, values) =
            errors(&self.loaded.layout, &Body::of(tokens), &crossed.exact, &crossed.decoded)?;
        let transfers = Transfers {
            caches: 1,
            raw_bytes: tokens * self.loaded.layout.bytes_per_token(),
            wire_bytes: crossed.whole_bytes,
            body_raw_bytes: crossed.body_bytes.0,
            body_coded_bytes: crossed.body_bytes.1,
            encode: crossed.encode,
            decode: crossed.decode,
            keys,
            values,
        };
        Ok((cache, transfers))
    }

    fn by_codec(&self, coding: Coding, mode: KvMode, prompt: &Prefilled) -> anyhow::Result<Crossed> {
        let encoder = self.loaded.encoder(coding, &prompt.ids)?;
        let exact = prompt.pieces(mode)?;
        let crossing = self.cross(&encoder, coding, &prompt.ids, &exact)?;
        let Crossing { chunks, decoded, encode, decode } = crossing;
        let (layout, body) = (&self.loaded.layout, Body::of(prompt.ids.len()));
        let raw = self.loaded.encoder(Coding::RAW, &prompt.ids)?;
        let body_bytes = body_bytes(layout, &body, &exact, &chunks, &encoder, &raw)?;
        let whole_bytes = stream_bytes(coding, mode, prompt, &chunks)?;
        Ok(Crossed { exact, decoded, whole_bytes, body_bytes, encode, decode })
    }

    /// Codes a prompt's pieces and decodes them again, where the codec works.
    fn cross(
        &self,
        encoder: &Encoder,
        coding: Coding,
        ids: &[u32],
        pieces: &[Piece],
    ) -> anyhow::Result<Crossing> {
        #[cfg(feature = "cuda")]
        if let Some(device) = &self.device {
            return device.cross(&self.loaded, coding, ids, pieces);
        }
        let _ = (coding, ids); // the encoder knows both
        let decoder = self.loaded.decoder(Limits::default())?;
        let started = Instant::now();
        let code = |piece: &Piece| encoder.encode_with_shifts(&piece.block, piece.shifts.as_deref());
        let chunks = pieces.iter().map(code).collect::<codec::Result<Vec<_>>>()?;
        let encode = started.elapsed();
        let started = Instant::now();
        let decoded = chunks.iter().map(|chunk| decoder.decode(chunk)).collect::<codec::Result<Vec<_>>>()?;
        Ok(Crossing { chunks, decoded, encode, decode: started.elapsed() })
    }

    fn by_seed(&self, tier: u8, prompt: &Prefilled) -> anyhow::Result<Crossed> {
        let replica = self.replica(tier)?;
        let whole = export(&prompt.cache, 0..prompt.ids.len())?;
        let started = Instant::now();
        let coded = replica.encode(&whole)?;
        let encode = started.elapsed();
        let started = Instant::now();
        let decoded = replica.decode(&coded)?;
        let decode = started.elapsed();
        let (whole_bytes, body_bytes) = (replica.whole_bytes(&coded), replica.body_bytes(&coded));
        // Piece by piece as it was decoded, so that errors are measured between equals.
        let exact = decoded.iter().map(|block| {
            let range = block.first_token..block.first_token + block.tokens;
            Ok(Piece { block: export(&prompt.cache, range)?, shifts: None })
        });
        let exact = exact.collect::<anyhow::Result<_>>()?;
        Ok(Crossed { exact, decoded, whole_bytes, body_bytes, encode, decode })
    }

    fn replica(&self, tier: u8) -> anyhow::Result<Replica<'_>> {
        let plan = self.loaded.plan.as_deref();
        let plan = plan.context("the seed's method needs a plan, as `kvferry calibrate` makes it")?;
        Replica::new(plan, tier)
    }

    /// Refuses a coding that this model or plan does not allow.
    pub(super) fn check(&self, coding: Method) -> anyhow::Result<()> {
        let possible = match coding {
            Method::Codec(coding) => self.loaded.encoder(coding, &[0]).map(drop).map_err(Into::into),
            Method::Seed { tier } => self.replica(tier).map(drop),
        };
        possible.with_context(|| {
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
}

/// Every byte that a prefill node writes to the KV stream for these chunks: frames, opening and closing message included.
fn stream_bytes(
    coding: Coding,
    mode: KvMode,
    prompt: &Prefilled,
    chunks: &[Vec<u8>],
) -> anyhow::Result<usize> {
    let begin = KvStream::Begin {
        ticket: Ticket::random(),
        coding: KvCoding { codec: coding.kind.name().into(), tier: coding.tier, mode },
        prompt_tokens: prompt.ids.len() as u32,
        trace: None,
    };
    let mut digest = KvDigest::default();
    chunks.iter().for_each(|chunk| digest.add(chunk));
    let (count, digest) = digest.finish();
    let stats = PrefillStats::default();
    let first_token = prompt.first_token;
    let end = KvStream::End { chunks: count, digest, first_token, logprobs: None, stats };
    let data: usize = chunks.iter().map(|chunk| HEADER_BYTES + chunk.len()).sum();
    Ok(encode_message(&begin)?.len() + data + encode_message(&end)?.len())
}
