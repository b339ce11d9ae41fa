//! Sampling settings as they travel, turned into the model's.

use model::Sampling;

/// The model's settings for a request's.
#[must_use]
pub fn sampling(wire: &transport::message::Sampling) -> Sampling {
    Sampling { temperature: wire.temperature, top_p: wire.top_p, top_k: wire.top_k as usize, seed: wire.seed }
}
