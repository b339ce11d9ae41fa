//! The prompt pass on the GPU, from token ids to first token and shifts, attention received included.

use codec::importance::{NEAREST, QUERIES};
use model::cuda::CudaReceived;
use node::compute::Received;

use super::Subject;
use crate::bench::timing::{Figures, median, seconds};

pub(crate) fn prefill(subject: &Subject<'_>) -> anyhow::Result<Figures> {
    let mut ready = subject.ready()?;
    let prompt = ready.prompt(subject.tokens);
    let mut cache = ready.caches(1, subject.tokens)?.1.remove(0);
    let (mut times, mut first_ms) = (Vec::new(), 0.0);
    for run in 0..=subject.runs {
        cache.set_len(0)?;
        let mut received = CudaReceived::of_last(&ready.llama, QUERIES, NEAREST, prompt.len())?;
        let (time, _) = seconds(|| {
            ready.llama.prefill(&mut cache, &prompt, Some(&mut received))?;
            let token = ready.llama.greedy()?;
            Ok((token, Received::Device(received).shifts()?))
        })?;
        match run {
            0 => first_ms = time * 1e3,
            _ => times.push(time),
        }
    }
    let mut figures = ready.figures(subject)?;
    figures.put("first_ms", first_ms);
    let time = median(times);
    figures.put("prefill_ms", time * 1e3);
    figures.put("tokens_per_s", prompt.len() as f64 / time);
    cache.set_len(0)?;
    let mut received = CudaReceived::of_last(&ready.llama, QUERIES, NEAREST, prompt.len())?;
    for (stage, ms) in ready.llama.timed_prefill(&mut cache, &prompt, Some(&mut received))? {
        figures.put(stage.name(), f64::from(ms));
    }
    Ok(figures)
}
