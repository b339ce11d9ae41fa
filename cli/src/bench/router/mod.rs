//! What the router adds to a request and to a token, measured from outside: the real router as a process of its own, between stub
//! nodes that speak the real protocol and clients that do nothing but read.
//!
//! ```text
//! client ──HTTP──► router ──QUIC──► stub decode node, reserves at once; then a token every 1/rate s
//!                         ──QUIC──► stub prefill node, runs nothing
//! ```
//!
//! Clients and nodes share this process and its clock, and the machine's cores with the router: their own time is in every
//! figure.

mod client;
mod inside;
mod pacer;
mod process;
mod stub;
mod track;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use indicatif::ProgressBar;
use openai::Tokenizer;
use router::RouterModel;
use tokio::task::JoinSet;
use transport::Authority;

use super::Args;
use super::timing::Figures;
use client::{Ask, Client};
use inside::Inside;
use pacer::Pacer;
use process::RouterProcess;
use stub::{Shared, Stubs};
use track::{Samples, Tracked, Tracks};

/// What stub nodes say, and prompts are made of.
const WORDS: &str =
    " the quick brown fox jumps over the lazy dog and runs along the river to the old stone bridge";
/// Streams that run before memory is read for the first time, so that what is built once is there.
const FIRST_STREAMS: usize = 8;
/// From the last change to a reading of memory.
const SETTLE: Duration = Duration::from_millis(500);
/// Longest wait for nodes to join and for streams to end.
const PATIENCE: Duration = Duration::from_secs(20);
/// Behind the start of the last stream, before anything is counted.
const WARM_UP: Duration = Duration::from_secs(1);

/// Streams, tokens and nodes.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct RouterArgs {
    /// Streams at once; a client whose stream has ended begins the next one.
    #[arg(long, default_value_t = 500, value_parser = clap::value_parser!(u32).range(1..=16_384))]
    streams: u32,
    /// Tokens per second of each stream.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=1000))]
    rate: u32,
    /// Tokens of a stream.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(2..=100_000))]
    stream_tokens: u32,
    /// Words of a prompt.
    #[arg(long, default_value_t = 40, value_parser = clap::value_parser!(u32).range(1..=2000))]
    words: u32,
    /// How long to measure.
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u32).range(1..=3600))]
    seconds: u32,
    /// Stub decode nodes, over which the streams are spread.
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=512))]
    decode_nodes: u32,
    /// Stub prefill nodes.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u32).range(1..=512))]
    prefill_nodes: u32,
    /// The router to measure [default: the one beside this binary].
    #[arg(long)]
    router_binary: Option<PathBuf>,
}

/// What a measurement runs on.
struct Bench<'a> {
    what: &'a RouterArgs,
    router: RouterProcess,
    shared: Shared,
    ask: Arc<Ask>,
    _stubs: Stubs,
}

pub(crate) async fn router(args: &Args, what: &RouterArgs) -> anyhow::Result<Figures> {
    let progress = ProgressBar::new(4);
    let bench = Bench::start(args, what).await?;
    progress.inc(1);
    let mut figures = Figures::default();
    for (name, value) in [
        ("streams", what.streams),
        ("tokens_per_second_asked", what.streams * what.rate),
        ("decode_nodes", what.decode_nodes),
        ("prefill_nodes", what.prefill_nodes),
    ] {
        figures.put(name, f64::from(value));
    }
    bench.idle(&mut figures).await?;
    progress.inc(1);
    bench.load(&mut figures).await?;
    progress.finish_and_clear();
    Ok(figures)
}

impl<'a> Bench<'a> {
    async fn start(args: &Args, what: &'a RouterArgs) -> anyhow::Result<Self> {
        let model = RouterModel::load(&args.model, None)?;
        let tokenizer = Tokenizer::load(&args.model)?;
        let ids: Arc<[u32]> = tokenizer.encode_plain(WORDS)?.into();
        ensure!(!ids.is_empty(), "the tokenizer of {} makes nothing of English", args.model.display());
        let authority = Authority::new()?;
        let certs = tempfile::tempdir().context("cannot make a directory for certificates")?;
        authority.write(certs.path())?;
        authority.write_issued(certs.path(), "router")?;
        let binary = what.router_binary.clone().map_or_else(process::beside_this, Ok)?;
        let router = RouterProcess::start(&binary, &args.model, certs.path(), 2 * what.streams + 64)?;
        let shared = Shared {
            tracks: Tracks::default(),
            pacer: Pacer::start(Duration::from_secs(1) / what.rate, Arc::clone(&ids))?,
            open: Arc::default(),
            first_token: ids[0],
        };
        let (nodes, identity) = ((what.prefill_nodes, what.decode_nodes), authority.issue("node")?);
        let stubs = Stubs::join(nodes, router.quic, &identity, &model.identity, &shared).await?;
        let words = WORDS.split_whitespace().cycle().take(what.words as usize);
        let prompt = words.collect::<Vec<_>>().join(" ");
        let ask = Arc::new(Ask { model: model.served_name, prompt, max_tokens: what.stream_tokens });
        let bench = Self { what, router, shared, ask, _stubs: stubs };
        bench.until_joined(f64::from(nodes.0 + nodes.1)).await?;
        Ok(bench)
    }

    async fn until_joined(&self, nodes: f64) -> anyhow::Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while Inside::read(self.router.http).await?.nodes() < nodes {
            ensure!(Instant::now() < deadline, "the stub nodes have not joined the router in time");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    }

    /// Memory of streams that are open and silent: a router that has served next to nothing, before and with them. What
    /// its allocator sets aside for them on the way is theirs.
    async fn idle(&self, figures: &mut Figures) -> anyhow::Result<()> {
        drop(self.hold(FIRST_STREAMS).await?);
        self.until_closed().await?;
        tokio::time::sleep(SETTLE).await;
        let before = self.router.resident_bytes()?;
        let streams = self.what.streams as usize;
        let held = self.hold(streams).await?;
        tokio::time::sleep(SETTLE).await;
        let with_streams = self.router.resident_bytes()?;
        drop(held);
        self.until_closed().await?;
        figures.put("resident_kib_before_streams", before / 1024.0);
        figures.put("resident_kib_with_idle_streams", with_streams / 1024.0);
        figures.put("kib_per_idle_stream", (with_streams - before) / 1024.0 / streams as f64);
        Ok(())
    }

    /// Opens streams one after another; they end when this is dropped.
    async fn hold(&self, streams: usize) -> anyhow::Result<Vec<(Client, Tracked)>> {
        let mut held = Vec::with_capacity(streams);
        for _ in 0..streams {
            let mut client = Client::connect(self.router.http).await?;
            let tracked = client.begin(&self.ask, &self.shared.tracks).await?;
            held.push((client, tracked));
        }
        Ok(held)
    }

    async fn until_closed(&self) -> anyhow::Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while self.shared.open.load(Ordering::Relaxed) > 0 {
            ensure!(
                Instant::now() < deadline,
                "the router did not end the streams of clients that have left"
            );
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        Ok(())
    }

    /// All streams at once, begun over the time of one, so that later ones begin evenly, too.
    async fn load(&self, figures: &mut Figures) -> anyhow::Result<()> {
        let stream = Duration::from_secs(1) * self.what.stream_tokens / self.what.rate;
        let started = Instant::now();
        let from = started + stream + WARM_UP;
        let until = from + Duration::from_secs(self.what.seconds.into());
        let mut clients = JoinSet::new();
        for nth in 0..self.what.streams {
            let (ask, tracks) = (Arc::clone(&self.ask), self.shared.tracks.clone());
            let (begin, http) = (started + stream * nth / self.what.streams, self.router.http);
            clients.spawn(async move {
                tokio::time::sleep_until(begin.into()).await;
                let mut samples = Samples::default();
                let run = stream_on(http, &ask, &tracks, from, &mut samples);
                // The end of the measurement ends a stream wherever it is.
                match tokio::time::timeout_at(until.into(), run).await {
                    Ok(Err(error)) => Err(error),
                    Ok(Ok(())) | Err(_) => Ok(samples),
                }
            });
        }
        tokio::time::sleep_until(from.into()).await;
        let (cpu, inside) = (self.cpu_seconds()?, Inside::read(self.router.http).await?);
        tokio::time::sleep_until(until.into()).await;
        let ran = self.cpu_seconds()?;
        let cpu = (ran.0 - cpu.0, ran.1 - cpu.1);
        let inside = Inside::read(self.router.http).await?.since(&inside);
        let mut samples = Samples::default();
        while let Some(client) = clients.join_next().await {
            samples.append(client??);
        }
        self.put(samples, cpu, figures)?;
        inside.put(figures);
        Ok(())
    }

    /// Time that the router has run, and that clients and nodes have.
    fn cpu_seconds(&self) -> anyhow::Result<(f64, f64)> {
        Ok((self.router.cpu_seconds()?, process::cpu_seconds(std::process::id())?))
    }

    fn put(&self, samples: Samples, (cpu, around): (f64, f64), figures: &mut Figures) -> anyhow::Result<()> {
        let tokens = (samples.token.len() + samples.first_token.len()) as f64;
        let seconds = f64::from(self.what.seconds);
        ensure!(tokens > 0.0, "no token came in {seconds} seconds");
        figures.put("requests", samples.prefill_call.len() as f64);
        figures.put("tokens_per_second", tokens / seconds);
        figures.put("router_cores", cpu / seconds);
        figures.put("cores_of_clients_and_nodes", around / seconds);
        figures.put("cpu_seconds_per_1000_tokens", cpu / tokens * 1e3);
        figures.put("resident_kib_under_load", self.router.resident_bytes()? / 1024.0);
        for (name, values) in [
            ("request_to_prefill", samples.prefill_call),
            ("request_to_reserve", samples.reserve),
            ("reserved_to_prefill", samples.prefill),
            ("first_token_to_event", samples.first_token),
            ("token_to_event", samples.token),
        ] {
            figures.put_percentiles(name, values);
        }
        Ok(())
    }
}

/// One stream after another over one connection.
async fn stream_on(
    router: std::net::SocketAddr,
    ask: &Ask,
    tracks: &Tracks,
    from: Instant,
    samples: &mut Samples,
) -> anyhow::Result<()> {
    let mut client = Client::connect(router).await?;
    loop {
        client.complete(ask, tracks, from, samples).await?;
    }
}
