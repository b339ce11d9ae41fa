//! Who is in the cluster now: nodes join with a registration, stay by heartbeats, and leave when their membership
//! is dropped. Holds the connections and counts what the router has given each node; decides nothing.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use openai::KvCodec;

use service::{Readiness, address};
use transport::handshake;
use transport::ids::NodeId;
use transport::message::{KvCoding, Load, Register, Role, Transfer};
use transport::{CloseCode, Peer};

use crate::board::{LinkView, NodeView};
use crate::choice::Choice;
use crate::estimates::Estimates;
use crate::metrics::Metrics;
use crate::policy::{self, Candidate, Candidates, LocalPrefill, Placement, Rules, Turn, Unplaceable, Wanted};
use crate::prefixes::Prefixes;

/// Every so many requests with `kv_codec: "auto"`, one looks at the second best way.
const EXPLORE_EVERY: u64 = 32;
/// Nodes taken at most.
pub(crate) const MAX_NODES: usize = 1024;

/// The registry; clones share it.
#[derive(Debug, Clone)]
pub(crate) struct Cluster {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    rules: Rules,
    readiness: Readiness,
    metrics: Metrics,
    estimates: Estimates,
    members: Mutex<Members>,
}

#[derive(Debug, Default)]
struct Members {
    nodes: BTreeMap<NodeId, Node>,
    /// What prefill nodes may still hold of earlier prompts.
    prefixes: Prefixes,
    /// Registrations so far; tells a node's present membership from its earlier ones.
    joined: u64,
    /// Placements so far; rotates among equals.
    placed: u64,
    /// Placements that left the codec open; some of them explore.
    open: u64,
    draining: bool,
}

#[derive(Debug)]
struct Node {
    peer: Peer,
    generation: u64,
    register: Register,
    reported: Load,
    /// Requests that it had from other routers at its last heartbeat.
    elsewhere: u32,
    given: Arc<Given>,
    /// When it was heard last.
    heard: Instant,
}

/// Why a node may not join.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum JoinError {
    #[error("a router cannot be a node of another; only prefill and decode nodes register")]
    Role,
    #[error("a decode node must say where prefill nodes reach it, with a port; set its KV address")]
    NoKvAddress,
    #[error("does not fit node {present}: {reason}")]
    Mismatch { present: NodeId, reason: String },
    #[error("the cluster has {limit} nodes already")]
    Full { limit: usize },
}

/// What the router has given a node and not yet got back.
#[derive(Debug, Default)]
struct Given {
    requests: AtomicU32,
    /// Prompt tokens to be run for them.
    tokens: AtomicU64,
}

/// A node's place in the cluster; it leaves when this is dropped.
#[derive(Debug)]
pub(crate) struct Membership {
    cluster: Cluster,
    node: NodeId,
    generation: u64,
}

/// A node chosen for a request; counts as load until dropped.
#[derive(Debug)]
pub(crate) struct Assigned {
    pub(crate) id: NodeId,
    pub(crate) role: Role,
    pub(crate) peer: Peer,
    /// Where other nodes reach it, if they do.
    pub(crate) kv_address: Option<SocketAddr>,
    given: Arc<Given>,
    tokens: u64,
}

/// The nodes chosen for a request.
#[derive(Debug)]
pub(crate) struct Pair {
    pub(crate) decode: Assigned,
    /// The prefill node and the coding between the two; none for a local prefill, or when the cache is kept already.
    pub(crate) prefill: Option<(Assigned, KvCoding)>,
    /// How it came to be so.
    pub(crate) choice: Choice,
}

impl Cluster {
    /// A cluster without nodes.
    pub(crate) fn new(rules: Rules, readiness: Readiness, metrics: Metrics) -> Self {
        let members = Mutex::default();
        let estimates = Estimates::new(metrics.measured.clone());
        let cluster = Self { shared: Arc::new(Shared { rules, readiness, metrics, estimates, members }) };
        cluster.publish(&cluster.members());
        cluster
    }

    /// Takes a node in. If it was here under the same name, the earlier connection is closed.
    pub(crate) fn join(&self, peer: Peer, mut register: Register) -> Result<Membership, JoinError> {
        let node = peer.hello().node.clone();
        let mut members = self.members();
        check(&members, &peer, &register)?;
        let seen = peer.remote_address().ip();
        register.kv_address = register.kv_address.map(|bound| address::reachable(bound, seen));
        members.joined += 1;
        let generation = members.joined;
        let (reported, elsewhere, given) = Default::default();
        let heard = Instant::now();
        let joining = Node { peer, generation, register, reported, elsewhere, given, heard };
        let replaced = members.nodes.insert(node.clone(), joining);
        if let Some(old) = replaced {
            members.prefixes.forget(&node);
            old.peer.close(CloseCode::REPLACED, "the node has come back over a newer connection");
        }
        self.publish(&members);
        Ok(Membership { cluster: self.clone(), node, generation })
    }

    /// Chooses nodes for a request, without those in `avoided`, and counts it as their load.
    pub(crate) fn place(&self, wanted: &Wanted<'_>, avoided: &[NodeId]) -> Result<Pair, Unplaceable> {
        let mut members = self.members();
        members.placed += 1;
        members.open += u64::from(wanted.kv.codec == KvCodec::Auto);
        let turn = Turn { number: members.placed, explore: members.open.is_multiple_of(EXPLORE_EVERY) };
        let candidates = members.candidates(wanted, avoided);
        let (rules, estimates) = (&self.shared.rules, &self.shared.estimates);
        let (placement, choice) = policy::place(&candidates, wanted, rules, turn, estimates)?;
        let gauges = &self.shared.metrics.measured;
        gauges.chose(choice.way.name(), choice.reason.name());
        Ok(match placement {
            Placement::Split { prefill, decode, coding } => {
                choice.queue_ms.into_iter().for_each(|ms| gauges.queue(&prefill, ms));
                let run = members.sent(&prefill, wanted);
                let (prefill, decode) = (members.assign(&prefill, run), members.assign(&decode, 0));
                Pair { decode, prefill: Some((prefill, coding)), choice }
            }
            Placement::Local { decode } => {
                let run = wanted.prompt_tokens.into();
                Pair { decode: members.assign(&decode, run), prefill: None, choice }
            }
            Placement::Kept { decode } => Pair { decode: members.assign(&decode, 0), prefill: None, choice },
        })
    }

    /// Chooses a prefill node that is to keep a cache, without those in `avoided`, and counts it as its load.
    pub(crate) fn place_keeper(
        &self,
        wanted: &Wanted<'_>,
        avoided: &[NodeId],
    ) -> Result<(Assigned, KvCoding), Unplaceable> {
        let mut members = self.members();
        members.placed += 1;
        let turn = Turn { number: members.placed, explore: false };
        let candidates = members.candidates(wanted, avoided);
        let (node, coding) = policy::place_keeper(&candidates, wanted, &self.shared.rules, turn)?;
        let run = members.sent(&node, wanted);
        Ok((members.assign(&node, run), coding))
    }

    /// Takes what a request that came to its first token has shown of the nodes.
    pub(crate) fn learn(&self, prompt_tokens: u32, decode: &NodeId, transfer: &Transfer) {
        self.shared.estimates.record(prompt_tokens, decode, transfer, Instant::now());
    }

    /// The nodes that are here now, for the board.
    pub(crate) fn nodes(&self) -> Vec<NodeView> {
        self.members().nodes.iter().map(|(id, node)| node.view(id)).collect()
    }

    /// The links that were measured, for the board.
    pub(crate) fn links(&self) -> Vec<LinkView> {
        self.shared.estimates.links(Instant::now())
    }

    /// Every node's role, its load by its last word, and its capacity in cache tokens.
    pub(crate) fn loads(&self) -> Vec<(Role, Load, u32)> {
        let members = self.members();
        let load = |node: &Node| (node.role(), node.reported, node.register.kv_capacity_tokens);
        members.nodes.values().map(load).collect()
    }

    /// Nodes that are here now.
    pub(crate) fn len(&self) -> usize {
        self.members().nodes.len()
    }

    /// Makes the router look unready from now on.
    pub(crate) fn drain(&self) {
        let mut members = self.members();
        members.draining = true;
        self.publish(&members);
    }

    fn members(&self) -> MutexGuard<'_, Members> {
        self.shared.members.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells probes and metrics what the cluster has become.
    fn publish(&self, members: &Members) {
        let count = |role| members.nodes.values().filter(|node| node.role() == role).count();
        let (prefill, decode) = (count(Role::Prefill), count(Role::Decode));
        self.shared.metrics.nodes(prefill, decode);
        let needs_prefill = self.shared.rules.local_prefill == LocalPrefill::Never;
        match (members.draining, decode, prefill) {
            (true, _, _) => self.shared.readiness.set_unready("draining"),
            (false, 0, 1..) if self.shared.rules.keeps => self.shared.readiness.set_ready(),
            (false, 0, _) => self.shared.readiness.set_unready("no decode node is registered"),
            (false, _, 0) if needs_prefill => {
                self.shared.readiness.set_unready("no prefill node is registered");
            }
            (false, _, _) => self.shared.readiness.set_ready(),
        }
    }
}

impl Members {
    fn candidates(&self, wanted: &Wanted<'_>, avoided: &[NodeId]) -> Candidates {
        let mut candidates = Candidates::default();
        let usable = self.nodes.iter().filter(|(id, node)| !avoided.contains(id) && node.is_open());
        for (id, node) in usable {
            match node.role() {
                Role::Prefill => candidates.prefill.push(Candidate {
                    cached_tokens: self.prefixes.cached(id, wanted.beginning, wanted.prompt_tokens),
                    ..node.candidate(id)
                }),
                Role::Decode => candidates.decode.push(node.candidate(id)),
                Role::Router => {}
            }
        }
        candidates
    }

    /// The prefill node will have the prompt's cache; says how many of its tokens are to be run before that.
    fn sent(&mut self, id: &NodeId, wanted: &Wanted<'_>) -> u64 {
        let cached = self.prefixes.cached(id, wanted.beginning, wanted.prompt_tokens);
        let kept = self.nodes.get(id).map_or(0, |node| node.register.prefix_cache_tokens);
        self.prefixes.sent(id, wanted.beginning, kept);
        (wanted.prompt_tokens - cached).into()
    }

    /// Gives the node a request for which it runs so many tokens of prompt.
    fn assign(&self, id: &NodeId, tokens: u64) -> Assigned {
        let node = self.nodes.get(id).expect("placed on a node that was listed; this is a bug");
        node.given.requests.fetch_add(1, Ordering::Relaxed);
        node.given.tokens.fetch_add(tokens, Ordering::Relaxed);
        Assigned {
            id: id.clone(),
            role: node.role(),
            peer: node.peer.clone(),
            kv_address: node.register.kv_address,
            given: Arc::clone(&node.given),
            tokens,
        }
    }
}

impl Node {
    fn role(&self) -> Role {
        self.peer.hello().role
    }

    /// Whether it may be given a request: connected, and not about to leave.
    fn is_open(&self) -> bool {
        !self.reported.is_draining && self.peer.close_reason().is_none()
    }

    fn view(&self, id: &NodeId) -> NodeView {
        let Load { running, waiting, kv_used_tokens, is_draining, .. } = self.reported;
        let Register { max_sessions, kv_capacity_tokens, .. } = self.register;
        NodeView {
            id: id.0.clone(),
            role: self.role().name(),
            address: self.peer.remote_address(),
            running,
            waiting,
            kv_used_tokens,
            draining: is_draining,
            assigned: self.given.requests.load(Ordering::Relaxed),
            max_sessions,
            kv_capacity_tokens,
            has_plan: self.peer.hello().model.plan_id.is_some(),
            silent_seconds: self.heard.elapsed().as_secs(),
        }
    }

    fn candidate(&self, id: &NodeId) -> Candidate {
        let assigned = self.given.requests.load(Ordering::Relaxed);
        Candidate {
            node: id.clone(),
            address: self.peer.remote_address(),
            in_flight: assigned.saturating_add(self.elsewhere),
            assigned,
            kept: self.reported.kept,
            ahead_tokens: self.given.tokens.load(Ordering::Relaxed),
            cached_tokens: 0,
            max_sessions: self.register.max_sessions,
            max_session_tokens: self.register.max_session_tokens,
            has_plan: self.peer.hello().model.plan_id.is_some(),
            chunk_tokens: self.register.chunk_tokens,
            after_chunk_tokens: self.register.after_chunk_tokens,
        }
    }
}

fn check(members: &Members, peer: &Peer, register: &Register) -> Result<(), JoinError> {
    let hello = peer.hello();
    match hello.role {
        Role::Router => return Err(JoinError::Role),
        Role::Decode if register.kv_address.is_none_or(|address| address.port() == 0) => {
            return Err(JoinError::NoKvAddress);
        }
        Role::Prefill | Role::Decode => {}
    }
    let others = members.nodes.iter().filter(|(id, _)| **id != hello.node);
    if others.clone().count() >= MAX_NODES {
        return Err(JoinError::Full { limit: MAX_NODES });
    }
    // The handshake compared the node with the router, which has no weights; here it is compared with its like.
    for (present, node) in others {
        handshake::compare(hello, node.peer.hello()).map_err(|mismatch| JoinError::Mismatch {
            present: present.clone(),
            reason: mismatch.to_string(),
        })?;
    }
    Ok(())
}

impl Membership {
    /// Takes a heartbeat.
    pub(crate) fn heartbeat(&self, load: Load) {
        let mut members = self.cluster.members();
        if let Some(node) = members.nodes.get_mut(&self.node)
            && node.generation == self.generation
        {
            // A heartbeat is up to a second old when it is used; this router's own part of what it says is known better.
            let own = node.given.requests.load(Ordering::Relaxed);
            node.elsewhere = load.running.saturating_add(load.waiting).saturating_sub(own);
            (node.reported, node.heard) = (load, Instant::now());
        }
    }
}

impl Drop for Membership {
    fn drop(&mut self) {
        let mut members = self.cluster.members();
        if members.nodes.get(&self.node).is_some_and(|node| node.generation == self.generation) {
            members.nodes.remove(&self.node);
            members.prefixes.forget(&self.node);
            self.cluster.shared.estimates.forget(&self.node, Instant::now());
            self.cluster.publish(&members);
        }
    }
}

impl Drop for Assigned {
    fn drop(&mut self) {
        self.given.requests.fetch_sub(1, Ordering::Relaxed);
        self.given.tokens.fetch_sub(self.tokens, Ordering::Relaxed);
    }
}
