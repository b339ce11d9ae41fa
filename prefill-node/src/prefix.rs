//! Caches of prompts that are done, kept for prompts that begin alike: their common part need not run again.
//!
//! Whole caches are kept rather than blocks of them: a conversation's next turn begins with all of the last, and replaces it here.

use std::collections::VecDeque;
use std::sync::Arc;

use node::compute::Cache;

/// Fewer tokens in common are not worth the search.
pub(crate) const FEWEST: usize = 64;

/// What only prompts of the same client or kind may share, where a client says so.
pub(crate) type Salt = Option<[u8; 16]>;

/// The kept caches, the one used last at the end.
#[derive(Debug)]
pub(crate) struct PrefixCache {
    kept: VecDeque<Kept>,
    tokens: usize,
    limit: usize,
}

#[derive(Debug)]
struct Kept {
    salt: Salt,
    tokens: Vec<u32>,
    cache: Arc<Cache>,
}

impl PrefixCache {
    /// Keeps up to `limit` tokens; none keeps nothing.
    pub(crate) fn new(limit: usize) -> Self {
        Self { kept: VecDeque::new(), tokens: 0, limit }
    }

    /// Tokens that are kept.
    pub(crate) fn tokens(&self) -> usize {
        self.tokens
    }

    /// The cache that has most in common with a prompt's beginning, and how many tokens that is.
    pub(crate) fn longest(&mut self, salt: Salt, prompt: &[u32]) -> Option<(Arc<Cache>, usize)> {
        let same = |kept: &Kept| if kept.salt == salt { common(&kept.tokens, prompt) } else { 0 };
        let all = self.kept.iter().enumerate().map(|(at, kept)| (same(kept), at));
        let (shared, at) = all.max().filter(|(shared, _)| *shared >= FEWEST)?;
        let found = self.kept.remove(at)?;
        let cache = Arc::clone(&found.cache);
        self.kept.push_back(found);
        Some((cache, shared))
    }

    /// Keeps a prompt's cache, in place of those that it begins with, and drops those used longest ago where there are too many.
    pub(crate) fn keep(&mut self, salt: Salt, prompt: &[u32], cache: Arc<Cache>) {
        let is_held = |kept: &Kept| kept.salt == salt && kept.tokens.starts_with(prompt);
        if prompt.len() < FEWEST || prompt.len() > self.limit || self.kept.iter().any(is_held) {
            return;
        }
        self.kept.retain(|kept| kept.salt != salt || !prompt.starts_with(&kept.tokens));
        self.kept.push_back(Kept { salt, tokens: prompt.to_vec(), cache });
        self.tokens = self.kept.iter().map(|kept| kept.tokens.len()).sum();
        while self.tokens > self.limit {
            self.evict();
        }
    }

    /// Drops the one that was used longest ago; false if none is kept.
    pub(crate) fn evict(&mut self) -> bool {
        let oldest = self.kept.pop_front();
        self.tokens -= oldest.as_ref().map_or(0, |kept| kept.tokens.len());
        oldest.is_some()
    }
}

/// Tokens that two prompts begin with.
fn common(a: &[u32], b: &[u32]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

#[cfg(test)]
#[path = "prefix_tests.rs"]
mod tests;
