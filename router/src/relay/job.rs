//! What a request needs of the cluster, and what a decode node is told of its cache.

use transport::message::KvSource;

use super::{Job, prompt_tokens};
use crate::latency::Way;
use crate::policy::{self, Wanted};
use crate::prefixes::Beginning;

impl Job {
    pub(super) fn wanted<'a>(&'a self, beginning: &'a Beginning) -> Wanted<'a> {
        Wanted {
            prompt_tokens: prompt_tokens(self),
            beginning,
            max_tokens: self.max_tokens,
            kv: self.kv,
            pinned: self.pins.prefill.as_deref(),
            affinity: self.pins.session.as_ref().map(policy::hash),
            kept: self.kept.as_ref().map(|kept| kept.way),
            local: None,
        }
    }

    /// Where the decode node's cache comes from, for a request that goes this way.
    pub(super) fn source(&self, is_split: bool, way: Way) -> KvSource {
        match (&self.kept, way) {
            (_, Way::Local) => KvSource::Local { token_ids: self.token_ids.clone() },
            (Some(kept), Way::Split { .. }) if !is_split => KvSource::Kept(kept.holder.clone()),
            (_, Way::Split { .. }) => KvSource::Remote,
        }
    }
}
