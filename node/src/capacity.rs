//! How much a node takes on at once: so many requests, and so many tokens of KV cache over all of them. Room is asked for
//! before any work is done, refused at once when there is none, and given back by drop.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use transport::message::{Failure, FailureKind};

use crate::failure::fail;

/// A node's capacity; clones share it.
#[derive(Debug, Clone)]
pub struct Capacity {
    sessions: Arc<Semaphore>,
    tokens: Arc<Semaphore>,
    all_tokens: u32,
}

/// Room for one request, given back when dropped.
#[derive(Debug)]
pub struct Admitted {
    _tokens: OwnedSemaphorePermit,
    _session: OwnedSemaphorePermit,
}

impl Capacity {
    /// Room for `sessions` requests with `tokens` of cache together.
    #[must_use]
    pub fn new(sessions: u32, tokens: u32) -> Self {
        Self {
            sessions: Arc::new(Semaphore::new(sessions as usize)),
            tokens: Arc::new(Semaphore::new(tokens as usize)),
            all_tokens: tokens,
        }
    }

    /// Room for a request of `tokens`.
    ///
    /// # Errors
    /// [`FailureKind::Busy`] with what is free.
    pub fn admit(&self, tokens: u32) -> Result<Admitted, Failure> {
        let no_session =
            |_| fail(FailureKind::Busy, "the node has as many requests as it takes (--max-num-seqs)");
        let session = Arc::clone(&self.sessions).try_acquire_owned().map_err(no_session)?;
        let no_room = |_| {
            let free = self.tokens.available_permits();
            let message = format!("{tokens} cache tokens wanted, {free} free (--kv-capacity-tokens)");
            fail(FailureKind::Busy, message)
        };
        let tokens = Arc::clone(&self.tokens).try_acquire_many_owned(tokens).map_err(no_room)?;
        Ok(Admitted { _tokens: tokens, _session: session })
    }

    /// Tokens that requests hold now.
    #[must_use]
    pub fn used_tokens(&self) -> u32 {
        self.all_tokens - u32::try_from(self.tokens.available_permits()).unwrap_or(self.all_tokens)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refusal_takes_nothing_and_drop_gives_back() {
        let capacity = Capacity::new(2, 100);
        let first = capacity.admit(60).expect("there is room");
        let refused = capacity.admit(41).expect_err("40 are free");
        assert!(refused.message.contains("40 free"), "{}", refused.message);
        let second = capacity.admit(40).expect("the refused request holds no session");
        assert_eq!(capacity.used_tokens(), 100);
        drop((first, second));
        assert_eq!(capacity.used_tokens(), 0);
        let _all = (capacity.admit(1).expect("one"), capacity.admit(1).expect("two"));
        let refused = capacity.admit(1).expect_err("two sessions");
        assert!(refused.message.contains("--max-num-seqs"), "{}", refused.message);
    }
}
