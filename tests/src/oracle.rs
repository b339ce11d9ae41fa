//! The same prompt in a single process: no network, no codec, one cache from beginning to end.

use half::bf16;
use model::{KvCache, LogitsOf, Sampling, Sequence};
use node::prompt::Progress;
use node::{Loaded, PromptPass};

/// Chunk length that nodes use by default.
const CHUNK: usize = 256;

/// Tokens that the model generates after `prompt`, up to `max_tokens` or an end token, which is included.
///
/// # Panics
/// When the model refuses the prompt.
#[must_use]
pub fn generate(loaded: &Loaded, prompt: &[u32], max_tokens: usize, sampling: &Sampling) -> Vec<u32> {
    let llama = &loaded.llama;
    let mut cache = KvCache::<bf16>::new(llama.config(), prompt.len() + max_tokens);
    let mut pass = PromptPass::new(prompt.to_vec(), CHUNK);
    let first = loop {
        if let Progress::FirstToken(first) =
            pass.advance(llama, &mut cache, sampling).expect("the prompt runs").1
        {
            break first;
        }
    };
    let mut tokens = vec![first];
    while tokens.len() < max_tokens && !ends(loaded, &tokens) {
        let last = [*tokens.last().expect("there is a first token")];
        let sequence = Sequence { cache: &mut cache, tokens: &last, received: None };
        let logits = llama.forward(&mut [sequence], LogitsOf::LastToken).expect("the step runs");
        tokens.push(sampling.draw(&logits, cache.len()));
    }
    tokens
}

fn ends(loaded: &Loaded, tokens: &[u32]) -> bool {
    tokens.last().is_some_and(|last| loaded.llama.config().eos_token_ids.contains(last))
}
