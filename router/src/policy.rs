//! Where a request runs and what may be tried again: functions of what is known of the cluster. How its cache is coded is
//! decided in [`crate::choice`]. Nothing is measured or reserved here; the nodes have the last word.

use std::cmp::Reverse;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::SocketAddr;

use clap::ValueEnum;
use openai::{KvCodec, KvOptions};
use transport::ids::NodeId;
use transport::message::{FailureKind, KvCoding, KvMode, Role};

use crate::choice::{Bypass, Choice, decide, for_keeping};
use crate::estimates::Estimates;
use crate::latency::Way;
use crate::leg::{Cause, NodeError, Phase};
use crate::prefixes::Beginning;

/// A node that is fuller than another by more than this share of its sessions, in units of 2^-16, does not keep its
/// conversations.
const MUCH_FULLER: u64 = 1 << 14;

/// When a decode node runs prompts itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum LocalPrefill {
    /// While there is no prefill node, when the only ones have just refused the request, and where the forecast for
    /// `kv_codec: "auto"` says so.
    #[default]
    Auto,
    /// Never: without a prefill node requests are refused.
    Never,
    /// For every request.
    Always,
}

/// What becomes of a request whose prefill has failed on the nodes that were tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum PrefillFailure {
    /// The client is told.
    #[default]
    Fail,
    /// A decode node runs the prompt itself; the answer's `kv_transfer` says so.
    Local,
}

/// How the least loaded node is found, where no other rule decides.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum Balance {
    /// All are compared: best with one router, which knows what it has given each node.
    #[default]
    LeastLoad,
    /// The better of two at random (Mitzenmacher 2001): several routers whose knowledge of each other's requests is as old as a
    /// heartbeat do not all choose the same node then.
    PowerOfTwo,
}

/// A node as the policy sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Candidate {
    pub(crate) node: NodeId,
    /// Where it dials in from.
    pub(crate) address: SocketAddr,
    /// Requests it is working on: those from here, and those that it had from other routers when it was heard last.
    pub(crate) in_flight: u32,
    /// Requests it has from here at this moment.
    pub(crate) assigned: u32,
    /// Requests that are done, and whose caches it keeps in their places.
    pub(crate) kept: u32,
    /// Prompt tokens that the requests from here have to be run, at most.
    pub(crate) ahead_tokens: u64,
    /// Tokens of the prompt in question whose cache it probably has.
    pub(crate) cached_tokens: u32,
    /// Requests it admits at once.
    pub(crate) max_sessions: u32,
    /// Longest prompt plus generation it takes.
    pub(crate) max_session_tokens: u32,
    /// Whether it can speak codecs that need a plan.
    pub(crate) has_plan: bool,
    /// Tokens that it runs as one chunk, and that it codes as one after the prompt.
    pub(crate) chunk_tokens: u32,
    pub(crate) after_chunk_tokens: u32,
}

impl Candidate {
    /// Share of its sessions that are taken, in units of 2^-16; large and small nodes fill up alike.
    fn load(&self) -> u64 {
        (u64::from(self.taken()) << 16) / u64::from(self.max_sessions.max(1))
    }

    /// Places that are taken.
    fn taken(&self) -> u32 {
        self.in_flight.saturating_add(self.kept)
    }

    /// Tokens that it runs until a prompt is done: those before it, taking other routers' prompts to be as long, and its own but for
    /// those whose cache is there.
    fn work(&self, prompt_tokens: u32) -> u64 {
        let elsewhere = u64::from(self.in_flight.saturating_sub(self.assigned));
        let own = u64::from(prompt_tokens.saturating_sub(self.cached_tokens));
        self.ahead_tokens.saturating_add(elsewhere * u64::from(prompt_tokens)).saturating_add(own)
    }
}

/// Every node that may be chosen, each list in the order of names.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Candidates {
    pub(crate) prefill: Vec<Candidate>,
    pub(crate) decode: Vec<Candidate>,
}

/// What a request needs.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Wanted<'a> {
    pub(crate) prompt_tokens: u32,
    pub(crate) max_tokens: u32,
    /// What the prompt may have in common with others.
    pub(crate) beginning: &'a Beginning,
    pub(crate) kv: KvOptions,
    /// The prefill node that must take it, by name or address.
    pub(crate) pinned: Option<&'a str>,
    /// Requests with the same go to the same prefill node, as long as its load allows.
    pub(crate) affinity: Option<u64>,
    /// How the cache is coded, where a prefill node keeps it already.
    pub(crate) kept: Option<(KvCodec, KvMode)>,
    /// Why a decode node has to run the prompt, if it has to.
    pub(crate) local: Option<Bypass>,
}

/// How the operator wants requests placed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Rules {
    pub(crate) local_prefill: LocalPrefill,
    pub(crate) balance: Balance,
    /// Whether prompts go where their beginning is known.
    pub(crate) prefix_aware: bool,
    /// Bytes of bf16 cache that a token has.
    pub(crate) bytes_per_token: u32,
    /// Whether prefill nodes may be asked to keep caches, for which no decode node is needed here.
    pub(crate) keeps: bool,
}

/// Whose turn it is where the choice is otherwise even.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Turn {
    /// Rotates among equal nodes.
    pub(crate) number: u64,
    /// Whether `kv_codec: "auto"` looks at its second best way.
    pub(crate) explore: bool,
}

/// Where a request runs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Placement {
    /// One node runs the prompt, another generates.
    Split { prefill: NodeId, decode: NodeId, coding: KvCoding },
    /// One node does both.
    Local { decode: NodeId },
    /// One node generates, from a cache that a prefill node keeps.
    Kept { decode: NodeId },
}

/// Why a request cannot run anywhere.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Unplaceable {
    #[error("no decode node is registered; try again when one is")]
    NoDecode,
    #[error("no prefill node is registered and decode nodes may not run prompts; try again when one is")]
    NoPrefill,
    #[error(
        "no prefill node is called {asked:?} or reached at that address; leave out x-prefiller-host-port"
    )]
    NoSuchPrefill { asked: String },
    #[error(
        "the request needs {needed} tokens, prompt and max_tokens together; the nodes take {longest} at most"
    )]
    TooLong { needed: u32, longest: u32 },
    #[error(
        "this kv_codec needs a calibrated plan on a prefill and a decode node; use \"auto\", \"fp8\", \"lossless\" or \"raw\""
    )]
    NoPlan,
}

/// Chooses the least loaded nodes that can serve the request, and the way it takes on them.
pub(crate) fn place(
    candidates: &Candidates,
    wanted: &Wanted<'_>,
    rules: &Rules,
    turn: Turn,
    estimates: &Estimates,
) -> Result<(Placement, Choice), Unplaceable> {
    let needed = wanted.prompt_tokens.saturating_add(wanted.max_tokens);
    let decode = long_enough(&candidates.decode, needed, Unplaceable::NoDecode)?;
    if let (Some((codec, mode)), None) = (wanted.kept, wanted.local) {
        let can_decode = |candidate: &&Candidate| candidate.has_plan || !codec.is_transform();
        let decode = decode.into_iter().filter(can_decode).collect();
        let decode = least_loaded(decode, rules.balance, turn.number);
        let decode = decode.ok_or(Unplaceable::NoPlan)?.node.clone();
        return Ok((Placement::Kept { decode }, Choice::kept(codec, mode)));
    }
    if let Some(why) = wanted.local.or_else(|| must_be_local(candidates, rules)) {
        let decode = least_loaded(decode, rules.balance, turn.number).ok_or(Unplaceable::NoDecode)?;
        return Ok((Placement::Local { decode: decode.node.clone() }, Choice::local(why)));
    }
    let prefill = prefill_for(candidates, wanted, rules, turn)?;
    let can_code = |candidate: &&Candidate| candidate.has_plan || !wanted.kv.codec.is_transform();
    let decode = decode.into_iter().filter(can_code).collect();
    let decode = least_loaded(decode, rules.balance, turn.number).ok_or(Unplaceable::NoPlan)?;
    let choice = decide(wanted, rules, (prefill, decode), estimates, turn.explore);
    let (prefill, decode) = (prefill.node.clone(), decode.node.clone());
    let placement = match choice.way {
        Way::Local => Placement::Local { decode },
        Way::Split { codec, mode } => {
            let coding = KvCoding { codec: codec.as_str().to_owned(), tier: wanted.kv.tier, mode };
            Placement::Split { prefill, decode, coding }
        }
    };
    Ok((placement, choice))
}

/// Chooses a prefill node that is to keep a cache for a decode node which somebody else will choose.
pub(crate) fn place_keeper(
    candidates: &Candidates,
    wanted: &Wanted<'_>,
    rules: &Rules,
    turn: Turn,
) -> Result<(NodeId, KvCoding), Unplaceable> {
    let node = prefill_for(candidates, wanted, rules, turn)?;
    let (codec, mode) = for_keeping(wanted, node.has_plan);
    let coding = KvCoding { codec: codec.as_str().to_owned(), tier: wanted.kv.tier, mode };
    Ok((node.node.clone(), coding))
}

/// The prefill node that the request names, the one that has its conversation or its beginning, or the least loaded one.
fn prefill_for<'a>(
    candidates: &'a Candidates,
    wanted: &Wanted<'_>,
    rules: &Rules,
    turn: Turn,
) -> Result<&'a Candidate, Unplaceable> {
    let nodes = long_enough(&candidates.prefill, wanted.prompt_tokens, Unplaceable::NoPrefill)?;
    let can_code = |candidate: &&Candidate| candidate.has_plan || !wanted.kv.codec.is_transform();
    let nodes: Vec<_> = pinned(nodes, wanted.pinned)?.into_iter().filter(can_code).collect();
    let known = || soonest(&nodes, wanted.prompt_tokens).filter(|_| rules.prefix_aware);
    let node = match wanted.affinity {
        Some(affinity) => nearest(nodes, affinity),
        None => known().or_else(|| least_loaded(nodes, rules.balance, turn.number)),
    };
    node.ok_or(Unplaceable::NoPlan)
}

/// Why a decode node has to run the prompt, whatever the request asks for.
fn must_be_local(candidates: &Candidates, rules: &Rules) -> Option<Bypass> {
    match rules.local_prefill {
        LocalPrefill::Always => Some(Bypass::LocalAlways),
        LocalPrefill::Auto => candidates.prefill.is_empty().then_some(Bypass::NoPrefillNode),
        LocalPrefill::Never => None,
    }
}

fn long_enough(nodes: &[Candidate], needed: u32, none: Unplaceable) -> Result<Vec<&Candidate>, Unplaceable> {
    let longest = nodes.iter().map(|node| node.max_session_tokens).max().ok_or(none)?;
    if needed > longest {
        return Err(Unplaceable::TooLong { needed, longest });
    }
    Ok(nodes.iter().filter(|node| node.max_session_tokens >= needed).collect())
}

/// The nodes that the request allows: all, or the one that it names.
fn pinned<'a>(
    mut nodes: Vec<&'a Candidate>,
    pinned: Option<&str>,
) -> Result<Vec<&'a Candidate>, Unplaceable> {
    let Some(asked) = pinned else { return Ok(nodes) };
    let address: Option<SocketAddr> = asked.parse().ok();
    nodes.retain(|node| node.node.0 == asked || Some(node.address) == address);
    if nodes.is_empty() {
        return Err(Unplaceable::NoSuchPrefill { asked: asked.to_owned() });
    }
    Ok(nodes)
}

/// The node that belongs to a conversation, among those that are not much fuller than the emptiest: highest random weight
/// (Thaler and Ravishankar 1998), so that a node that comes or goes moves only its own share.
fn nearest(nodes: Vec<&Candidate>, affinity: u64) -> Option<&Candidate> {
    let least = nodes.iter().map(|node| node.load()).min()?;
    let open = nodes.into_iter().filter(|node| node.load() <= least + MUCH_FULLER);
    open.max_by_key(|node| hash(&(affinity, &node.node.0)))
}

/// The node that would have a prompt done first, where one at least has the cache of its beginning.
fn soonest<'a>(nodes: &[&'a Candidate], prompt_tokens: u32) -> Option<&'a Candidate> {
    let is_known = nodes.iter().any(|node| node.cached_tokens > 0);
    // A full node refuses, however little it would have to do.
    let open = nodes.iter().filter(|node| node.taken() < node.max_sessions);
    let soonest = open.min_by_key(|node| (node.work(prompt_tokens), node.load()));
    soonest.filter(|_| is_known).copied()
}

/// The same in all runs of a release.
pub(crate) fn hash(value: &impl Hash) -> u64 {
    let mut hasher = DefaultHasher::new();
    value.hash(&mut hasher);
    hasher.finish()
}

fn least_loaded(mut nodes: Vec<&Candidate>, balance: Balance, turn: u64) -> Option<&Candidate> {
    if balance == Balance::PowerOfTwo && nodes.len() > 2 {
        let (random, count) = (hash(&turn), nodes.len() as u64);
        // Two different ones; the remainders are below the number of nodes.
        let first = random % count;
        let second = (first + 1 + (random >> 32) % (count - 1)) % count;
        nodes = vec![nodes[first as usize], nodes[second as usize]];
    }
    nodes.sort_by_key(|node| Reverse(node.load()));
    let least = nodes.last()?.load();
    let equals: Vec<_> = nodes.into_iter().filter(|node| node.load() == least).collect();
    // The remainder is below the number of nodes.
    equals.get((turn % equals.len() as u64) as usize).copied()
}

/// Whether the cache did not come, so that a decode node may make it itself.
pub(crate) fn is_prefill_failure(error: &NodeError) -> bool {
    match &error.cause {
        Cause::Failed(failure) => match failure.kind {
            FailureKind::Transfer | FailureKind::Unreachable => true,
            FailureKind::Busy | FailureKind::Draining | FailureKind::Internal => error.role == Role::Prefill,
            FailureKind::Invalid | FailureKind::Timeout => false,
        },
        Cause::Lost(_) | Cause::Protocol(_) => error.role == Role::Prefill,
        Cause::Deadline { phase, .. } => error.role == Role::Prefill && *phase == Phase::Reserve,
    }
}

/// Whether another node may do better. Only asked before the first token: afterwards the client has seen output that
/// another attempt need not repeat. A missed first token is not tried again, since the client has waited long.
pub(crate) fn may_retry(cause: &Cause) -> bool {
    match cause {
        Cause::Failed(failure) => match failure.kind {
            FailureKind::Busy | FailureKind::Unreachable | FailureKind::Draining => true,
            FailureKind::Invalid | FailureKind::Timeout | FailureKind::Transfer | FailureKind::Internal => {
                false
            }
        },
        Cause::Lost(_) => true,
        Cause::Deadline { phase, .. } => match phase {
            Phase::Reserve => true,
            Phase::FirstToken | Phase::NextToken => false,
        },
        Cause::Protocol(_) => false,
    }
}

#[cfg(test)]
#[path = "policy_tests.rs"]
mod tests;
