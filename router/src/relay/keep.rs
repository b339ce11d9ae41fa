//! The first half of a request whose second half somebody else sends, perhaps to another server: a prefill node runs the prompt
//! and keeps its cache.
//!
//! ```text
//! place_keeper ─► Prefill without a target ─► Kept: a lease, and the first token
//!   ▲                                          │
//!   └── another node, while may_retry ◄── failure
//! ```

use tracing::info;
use transport::ids::{NodeId, PromptDigest};
use transport::message::{FromPrefill, Holder, Kept, KvCoding};

use super::{Job, Relay};
use crate::cluster::Assigned;
use crate::error::Error;
use crate::leg::{Cause, NodeError, Phase};
use crate::policy;
use crate::prefixes::Beginning;

/// A cache that is kept now.
#[derive(Debug)]
pub(crate) struct Keeping {
    pub(crate) kept: Kept,
    pub(crate) holder: Holder,
    pub(crate) coding: KvCoding,
}

impl Relay {
    /// Has a prompt run and its cache kept, by another node where the first one cannot.
    pub(crate) async fn keep(&self, job: &Job) -> Result<Keeping, Error> {
        let beginning = Beginning::of(&job.token_ids, job.kv.cache_salt);
        let wanted = job.wanted(&beginning);
        let mut avoided: Vec<NodeId> = Vec::new();
        let mut last_error: Option<NodeError> = None;
        loop {
            let (node, coding) = match self.cluster.place_keeper(&wanted, &avoided) {
                Ok(placed) => placed,
                Err(unplaceable) => return Err(last_error.map_or_else(|| unplaceable.into(), Error::Node)),
            };
            let error = match self.keep_on(job, node, coding).await {
                Ok(keeping) => return Ok(keeping),
                Err(error) => error,
            };
            self.metrics.node_failed(error.role.name(), Error::Node(error.clone()).face().code);
            self.metrics.failed("prefill");
            if avoided.len() >= self.retries as usize || !policy::may_retry(&error.cause) {
                return Err(error.into());
            }
            info!(%error, "trying another node");
            self.metrics.retries.inc();
            avoided.push(error.node.clone());
            last_error = Some(error);
        }
    }

    async fn keep_on(&self, job: &Job, node: Assigned, coding: KvCoding) -> Result<Keeping, NodeError> {
        job.entry.keeper(&node.id, &coding);
        let mut leg = self.prefill(job, node, coding.clone(), None).await?;
        let no_address = || leg.error(Cause::Protocol("it registered without a KV address".into()));
        let address = leg.node().kv_address.ok_or_else(no_address)?;
        match leg.recv(Phase::FirstToken, self.first_token).await? {
            FromPrefill::Kept(kept) => {
                let (node, instance) = (leg.node().id.clone(), leg.node().peer.hello().instance);
                let prompt = PromptDigest::of(&job.token_ids);
                let holder = Holder { node, instance, address, lease: kept.lease, prompt };
                tokio::spawn(leg.settle(self.reserve));
                Ok(Keeping { kept, holder, coding })
            }
            FromPrefill::Fail(failure) => Err(leg.error(Cause::Failed(failure))),
            FromPrefill::Prefilled => Err(leg.error(Cause::Protocol("Prefilled came out of turn".into()))),
        }
    }
}
