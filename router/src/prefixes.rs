//! What prefill nodes may still hold of prompts that were sent to them, so that prompts that begin alike can go there. It is a guess
//! from this router's own placements; how much a node really found is in its answer.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};

use transport::ids::NodeId;

/// Tokens that are compared as one.
const BLOCK: usize = 64;
/// Blocks remembered of one node at most.
const MAX_BLOCKS: usize = 1 << 16;
/// The last tokens of a prompt, which a node runs in any case, since their attention is counted (docs/kv-format.md).
const ALWAYS_RUN: u32 = 128;

/// How a prompt begins: one number for each whole block, which stands for it and for all before it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Beginning(Vec<u64>);

/// For tests of everything else: of a prompt that has no whole block.
#[cfg(test)]
pub(crate) static SHORT: Beginning = Beginning(Vec::new());

impl Beginning {
    /// Of a prompt whose cache is shared with those of the same salt only.
    pub(crate) fn of(token_ids: &[u32], salt: Option<[u8; 16]>) -> Self {
        let mut hasher = DefaultHasher::new();
        salt.hash(&mut hasher);
        let block = |tokens: &[u32]| {
            tokens.hash(&mut hasher);
            hasher.finish()
        };
        Self(token_ids.chunks_exact(BLOCK).map(block).collect())
    }
}

/// What is remembered of all nodes.
#[derive(Debug, Default)]
pub(crate) struct Prefixes {
    nodes: HashMap<NodeId, Seen>,
}

/// Blocks that a node was sent, and when in the order of its prompts.
#[derive(Debug, Default)]
struct Seen {
    blocks: HashMap<u64, u64>,
    prompts: u64,
}

impl Prefixes {
    /// Tokens of a prompt whose cache the node probably has.
    pub(crate) fn cached(&self, node: &NodeId, beginning: &Beginning, prompt_tokens: u32) -> u32 {
        let Some(seen) = self.nodes.get(node) else { return 0 };
        let known = beginning.0.iter().take_while(|block| seen.blocks.contains_key(block)).count();
        u32::try_from(known * BLOCK).unwrap_or(u32::MAX).min(prompt_tokens.saturating_sub(ALWAYS_RUN))
    }

    /// The node was sent a prompt; it keeps so many tokens of those that it is done with.
    pub(crate) fn sent(&mut self, node: &NodeId, beginning: &Beginning, kept_tokens: u32) {
        let limit = (kept_tokens as usize / BLOCK).min(MAX_BLOCKS);
        if limit == 0 || beginning.0.is_empty() {
            return;
        }
        let seen = self.nodes.entry(node.clone()).or_default();
        seen.prompts += 1;
        seen.blocks.extend(beginning.0.iter().map(|block| (*block, seen.prompts)));
        if seen.blocks.len() > limit + limit / 4 {
            seen.shorten(limit);
        }
    }

    /// Forgets a node that has left.
    pub(crate) fn forget(&mut self, node: &NodeId) {
        self.nodes.remove(node);
    }
}

impl Seen {
    /// Keeps the prompts sent last, up to `limit` blocks.
    fn shorten(&mut self, limit: usize) {
        let mut prompts: Vec<u64> = self.blocks.values().copied().collect();
        let over = prompts.len() - limit;
        let (_, oldest, _) = prompts.select_nth_unstable(over);
        let oldest = *oldest;
        self.blocks.retain(|_, prompt| *prompt >= oldest);
        // One prompt may be longer than all that is kept.
        if self.blocks.len() > limit + limit / 4 {
            self.blocks.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(name: &str) -> NodeId {
        NodeId(name.into())
    }

    fn prompt(first: u32, tokens: u32) -> Vec<u32> {
        (first..first + tokens).collect()
    }

    fn cached(prefixes: &Prefixes, name: &str, tokens: &[u32]) -> u32 {
        prefixes.cached(&node(name), &Beginning::of(tokens, None), tokens.len() as u32)
    }

    #[test]
    fn whole_blocks_that_were_sent_count_but_for_the_last_tokens() {
        let mut prefixes = Prefixes::default();
        prefixes.sent(&node("a"), &Beginning::of(&prompt(0, 1_000), None), 16_384);
        assert_eq!(cached(&prefixes, "a", &prompt(0, 2_000)), 960);
        assert_eq!(cached(&prefixes, "a", &prompt(0, 1_000)), 872);
        assert_eq!(cached(&prefixes, "a", &[prompt(0, 100), prompt(7, 900)].concat()), 64);
        assert_eq!(cached(&prefixes, "a", &prompt(1, 1_000)), 0);
        assert_eq!(cached(&prefixes, "b", &prompt(0, 1_000)), 0);
        assert_eq!(cached(&prefixes, "a", &prompt(0, 100)), 0);
        let salted = Beginning::of(&prompt(0, 1_000), Some([1; 16]));
        assert_eq!(prefixes.cached(&node("a"), &salted, 1_000), 0);
        prefixes.forget(&node("a"));
        assert_eq!(cached(&prefixes, "a", &prompt(0, 1_000)), 0);
    }

    #[test]
    fn no_more_is_remembered_than_the_node_keeps() {
        let mut prefixes = Prefixes::default();
        for i in 0..100 {
            prefixes.sent(&node("a"), &Beginning::of(&prompt(i * 1_000, 640), None), 1_280);
            assert!(prefixes.nodes[&node("a")].blocks.len() <= 25);
        }
        assert_eq!(cached(&prefixes, "a", &prompt(99_000, 1_000)), 640);
        assert_eq!(cached(&prefixes, "a", &prompt(0, 1_000)), 0);
        prefixes.sent(&node("a"), &Beginning::of(&prompt(0, 10_000), None), 1_280);
        assert!(prefixes.nodes[&node("a")].blocks.len() <= 25, "a prompt longer than what is kept");
        prefixes.sent(&node("b"), &Beginning::of(&prompt(0, 640), None), 0);
        assert!(!prefixes.nodes.contains_key(&node("b")), "a node that keeps nothing");
    }
}
