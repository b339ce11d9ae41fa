//! The codec where the caches live.

use codec::{Coding, Decoder, Encoder, Limits};

use super::cache::{Cache, Part};
use crate::failure::{internal, invalid, transfer};
use transport::message::Failure;

/// Codes the parts of one prompt's cache.
#[derive(Debug)]
pub enum Coder {
    /// On the CPU's cores.
    Host(Encoder),
    /// On a GPU.
    #[cfg(feature = "cuda")]
    Device(super::cuda::DeviceCoder),
}

impl Coder {
    /// One part as one self-contained chunk; `shifts` are those of its tokens.
    ///
    /// # Errors
    /// What the codec refuses.
    pub fn encode(&self, part: &Part, shifts: Option<&[i8]>) -> Result<Vec<u8>, Failure> {
        match (self, part) {
            (Self::Host(encoder), Part::Host(block)) => {
                encoder.encode_with_shifts(block, shifts).map_err(internal)
            }
            #[cfg(feature = "cuda")]
            (Self::Device(coder), Part::Device { pages, tokens }) => {
                coder.encode(pages, tokens.clone(), shifts)
            }
            #[cfg(feature = "cuda")]
            _ => Err(internal("a part of another machine's cache")),
        }
    }
}

/// Decodes the chunks of one prompt into its session's cache.
#[derive(Debug)]
pub enum Importer {
    /// On the CPU's cores.
    Host(Decoder),
    /// On a GPU.
    #[cfg(feature = "cuda")]
    Device(super::cuda::DeviceImporter),
}

impl Importer {
    /// Decodes a chunk, which must begin at token `next` and end within `prompt_tokens`, to its place in `cache`; the token after its
    /// last.
    ///
    /// # Errors
    /// A transfer failure for anything but that chunk.
    pub fn import(
        &self,
        chunk: &[u8],
        cache: &mut Cache,
        next: usize,
        prompt_tokens: usize,
    ) -> Result<usize, Failure> {
        let check = |first: usize, end: usize| {
            if first == next && end <= prompt_tokens {
                return Ok(end);
            }
            let message =
                format!("a chunk holds tokens {first}..{end}, token {next} of {prompt_tokens} was to come");
            Err(transfer(message))
        };
        let bad = |error: codec::Error| transfer(format!("chunk at token {next}: {error}"));
        match (self, cache) {
            (Self::Host(decoder), Cache::Host(cache)) => {
                let block = decoder.decode(chunk).map_err(bad)?;
                let end = check(block.first_token, block.first_token + block.tokens)?;
                crate::prompt::import(cache, &block).map_err(internal)?;
                Ok(end)
            }
            #[cfg(feature = "cuda")]
            (Self::Device(importer), Cache::Device(cache)) => {
                let tokens = importer.decode(chunk, cache).map_err(bad)?;
                check(tokens.start, tokens.end)
            }
            #[cfg(feature = "cuda")]
            _ => Err(internal("a cache of another machine")),
        }
    }
}

impl super::Served {
    /// For coding the cache of this prompt.
    ///
    /// # Errors
    /// An invalid request: no plan where one is needed, a tier that the codec does not have.
    pub fn coder(&self, coding: Coding, prompt: &[u32]) -> Result<Coder, Failure> {
        match self.place() {
            super::served::Place::Host(loaded) => {
                loaded.encoder(coding, prompt).map(Coder::Host).map_err(invalid)
            }
            #[cfg(feature = "cuda")]
            super::served::Place::Device(device) => {
                // What the codec refuses, it refuses on the CPU as well.
                let (layout, plan) = (self.layout.clone(), self.plan.clone());
                Encoder::new(layout, self.fingerprint, plan, coding, prompt.len()).map_err(invalid)?;
                Ok(Coder::Device(device.coder(coding, prompt)))
            }
        }
    }

    /// For decoding a cache of up to `tokens` tokens that was announced as so coded.
    ///
    /// # Errors
    /// What the codec refuses.
    pub fn importer(&self, coding: Coding, tokens: usize) -> Result<Importer, Failure> {
        match self.place() {
            super::served::Place::Host(loaded) => {
                let limits = Limits { max_tokens: tokens, ..Limits::default() };
                let decoder = loaded.decoder(limits).map_err(internal)?;
                Ok(Importer::Host(decoder.announced(coding)))
            }
            #[cfg(feature = "cuda")]
            super::served::Place::Device(device) => Ok(Importer::Device(device.importer(coding))),
        }
    }
}
