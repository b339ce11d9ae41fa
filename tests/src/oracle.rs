//! The same prompt in a single process: no network, no codec, one cache from beginning to end.

use half::bf16;
use model::{Drawn, Draws, KvCache, LogitsOf, Sampling, Sequence};
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
    let ends = &loaded.llama.config().eos_token_ids;
    draw(loaded, prompt, max_tokens, (*sampling).into(), ends).iter().map(|drawn| drawn.token).collect()
}

/// What is drawn after `prompt`, up to `max_tokens` or one of `ends`, which is included.
///
/// # Panics
/// When the model refuses the prompt.
#[must_use]
pub fn draw(
    loaded: &Loaded,
    prompt: &[u32],
    max_tokens: usize,
    mut draws: Draws,
    ends: &[u32],
) -> Vec<Drawn> {
    let llama = &loaded.llama;
    let mut cache = KvCache::<bf16>::new(llama.config(), prompt.len() + max_tokens);
    let mut pass = PromptPass::new(prompt.to_vec(), CHUNK);
    let mut drawn = Vec::new();
    while drawn.is_empty() {
        if let Progress::FirstToken(first) =
            pass.advance(llama, &mut cache, &draws).expect("the prompt runs").1
        {
            drawn.push(first);
        }
    }
    loop {
        let last = [drawn.last().expect("there is a first token").token];
        draws.push(last[0]);
        if drawn.len() >= max_tokens || ends.contains(&last[0]) {
            return drawn;
        }
        let sequence = Sequence { cache: &mut cache, tokens: &last, received: None };
        let mut logits = llama.forward(&mut [sequence], LogitsOf::LastToken).expect("the step runs");
        drawn.push(draws.draw(&mut logits, cache.len()));
    }
}
