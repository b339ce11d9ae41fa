//! Draws on the device that edit their logits, or tell how likely tokens were, against the CPU's from the same logits. Needs a GPU.
#![allow(clippy::unwrap_used, reason = "helpers of tests fail like the tests themselves")]

use std::path::PathBuf;
use std::sync::Arc;

use gpu::{Device, KvPool};
use model::{Config, CudaCache, CudaLlama, Draws, Edits, Logprobs, Sampling, Step};

/// More than are copied to the host at once.
const SESSIONS: usize = 37;
const ROUNDS: usize = 24;

fn models() -> [CudaLlama; 2] {
    let device = Device::open(0).unwrap();
    let embedded = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../models/tiny-llama");
    let config = Config { layers: 1, ..Config::llama_3_2_1b() };
    [CudaLlama::load(&device, &embedded, 256).unwrap(), CudaLlama::random(&device, config, 3, 256).unwrap()]
}

fn prompt(session: usize) -> Vec<u32> {
    (0..20 + session as u32 * 5).map(|i| (i * 389 + session as u32 * 17) % 8000).collect()
}

/// What session number `i` asks for: every third one nothing, the others one thing or several.
fn draws(i: usize, prompt: &[u32]) -> Draws {
    let temperature = if i.is_multiple_of(2) { 0.0 } else { 0.8 };
    let sampling = Sampling { temperature, seed: i as u64, ..Sampling::GREEDY };
    let all = Edits {
        logit_bias: vec![(11, 3.0), (12, -4.0)],
        repetition_penalty: 1.3,
        frequency_penalty: 0.4,
        presence_penalty: 0.6,
        ends: vec![13, 2],
        min_tokens: 6,
    };
    let (edits, logprobs) = match i % 9 {
        1 => (Edits::NONE, Some(20)),
        2 => (all, Some(5)),
        4 => (Edits { logit_bias: all.logit_bias, ..Edits::NONE }, None),
        5 => (Edits { repetition_penalty: 1.3, ..Edits::NONE }, Some(0)),
        7 => (Edits { ends: all.ends, min_tokens: 6, ..Edits::NONE }, None),
        8 => {
            let sampling = Sampling { min_p: 0.02, top_p: 0.95, top_k: 50, ..sampling };
            return Draws::new(sampling, all, Some(3), prompt);
        }
        _ => (Edits::NONE, None),
    };
    Draws::new(sampling, edits, logprobs, prompt)
}

#[test]
fn edited_and_told_draws_equal_the_cpus_from_the_same_logits() {
    for mut model in models() {
        let pool = KvPool::new(model.device(), model.stream(), model.kv_shape(), SESSIONS * 320).unwrap();
        model.prepare_steps(&pool, SESSIONS).unwrap();
        let (mut caches, mut all, mut tokens) = (Vec::new(), Vec::new(), Vec::new());
        for i in 0..SESSIONS {
            let (cache, draws, token) = first_token(&mut model, &pool, i);
            caches.push(cache);
            all.push(draws);
            tokens.push(token);
        }
        let (mut distinct, mut told) = (std::collections::BTreeSet::new(), 0);
        for round in 0..ROUNDS {
            let steps = caches.iter_mut().zip(&tokens).zip(&all);
            let mut steps: Vec<_> =
                steps.map(|((cache, token), draws)| Step { cache, token: *token, draws }).collect();
            let next = model.step(&mut steps).unwrap();
            for (i, drawn) in next.iter().enumerate() {
                let mut logits = model.step_logits(i).unwrap();
                let expected = all[i].draw(&mut logits, caches[i].len());
                assert_eq!(*drawn, expected, "session {i} in round {round}");
                told += usize::from(drawn.logprobs.as_ref().is_some_and(are_logprobs));
                distinct.insert(drawn.token);
                all[i].push(drawn.token);
                tokens[i] = drawn.token;
            }
        }
        let asked = (0..SESSIONS).filter(|i| matches!(i % 9, 1 | 2 | 5 | 8)).count();
        assert_eq!(told, ROUNDS * asked);
        assert!(distinct.len() > 50, "{} distinct tokens", distinct.len());
    }
}

/// Session `i` after its prompt, the first token drawn as the CPU draws it.
fn first_token(model: &mut CudaLlama, pool: &Arc<KvPool>, i: usize) -> (CudaCache, Draws, u32) {
    let prompt = prompt(i);
    let mut draws = draws(i, &prompt);
    let mut cache = CudaCache::new(pool, model.stream(), prompt.len() + ROUNDS + 1).unwrap();
    model.prefill(&mut cache, &prompt, None).unwrap();
    let mut logits = model.logits().unwrap();
    let first = model.draw(&draws, prompt.len()).unwrap();
    assert_eq!(first, draws.draw(&mut logits, prompt.len()), "the first token of session {i}");
    draws.push(first.token);
    (cache, draws, first.token)
}

fn are_logprobs(told: &Logprobs) -> bool {
    let probabilities: f32 = told.top.iter().map(|(_, p)| p.exp()).sum();
    told.drawn.is_finite() && told.drawn <= 0.0 && probabilities <= 1.0001
}
