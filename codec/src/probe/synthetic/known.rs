//! Tokens that do not exist: ids as a text has them, and features that follow from an id.

use crate::{
    predict::TokenFeatures,
    probe::synthetic::random::{Random, mix},
};

/// Features of a token made from its id by integer arithmetic, uniform with mean 0 and variance 1.
#[derive(Debug, Clone, Copy)]
pub struct HashedFeatures {
    /// Numbers per token.
    pub width: usize,
    /// Ids below this have features.
    pub vocabulary: usize,
}

impl TokenFeatures for HashedFeatures {
    fn features(&self) -> usize {
        self.width
    }

    fn vocabulary(&self) -> usize {
        self.vocabulary
    }

    fn write(&self, token: u32, out: &mut [f32]) {
        let first = u64::from(token) * self.width as u64;
        for (i, x) in (0u64..).zip(out) {
            let unit = (mix(first + i + 1) >> 40) as f32 / (1 << 23) as f32 - 1.0;
            *x = unit * 3f32.sqrt();
        }
    }
}

/// Ids of a prompt whose first is `first`; low ids come often, high ones seldom.
pub(super) fn ids(tokens: usize, vocabulary: usize, first: Option<u32>, random: &mut Random) -> Vec<u32> {
    let last = vocabulary.saturating_sub(1) as u32;
    let id = |_| ((random.uniform().powi(6) * vocabulary as f32) as u32).min(last);
    let mut ids: Vec<u32> = (0..tokens).map(id).collect();
    if let (Some(id), Some(first)) = (ids.first_mut(), first) {
        *id = first;
    }
    ids
}
