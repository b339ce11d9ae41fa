//! The sequences of one request: one for each prompt and `n`. They run side by side, a few at once, and their pieces come
//! out in the order in which they are made. Dropped, all are cancelled on the nodes.

use std::collections::VecDeque;
use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Instant;

use futures_util::StreamExt;
use futures_util::stream::FuturesUnordered;
use openai::request::{MAX_LOGIT_BIAS, MAX_LOGPROBS, MAX_STOP_TOKEN_IDS};
use openai::{KvTransfer, SamplingOptions, Usage};
use tokio::sync::OwnedSemaphorePermit;
use transport::ids::RequestId;
use transport::message::{self, Sampling};
use uuid::Uuid;

use crate::api::{Ask, TokenPrompt};
use crate::app::App;
use crate::board::Sizes;
use crate::error::Error;
use crate::generation::{Generation, Limits, Piece, Text};
use crate::metrics::Record;
use crate::relay::Job;
use crate::transfers::Transfers;

/// The next piece of one sequence.
#[derive(Debug)]
pub(crate) struct Item {
    pub(crate) index: usize,
    pub(crate) prompt_tokens: u32,
    /// Of these, those that an earlier prompt had left.
    pub(crate) cached_tokens: u32,
    pub(crate) piece: Piece,
    /// When what it was made of was read from the node.
    pub(crate) read: Instant,
}

/// All sequences of a request.
pub(crate) struct Sequences {
    /// Not begun yet, or about to go on.
    waiting: VecDeque<Sequence>,
    running: FuturesUnordered<Stepping>,
    /// Tokens of each sequence up to now.
    generated: Vec<u32>,
    /// Choices for each prompt.
    n: usize,
    prompt_tokens: u32,
    cached_tokens: u32,
    transfers: Transfers,
    /// The request's places among those that are served at once; so many sequences run side by side.
    permit: OwnedSemaphorePermit,
}

type Stepping = Pin<Box<dyn Future<Output = Result<Stepped, Error>> + Send>>;

/// A sequence and what it has just given.
struct Stepped {
    index: usize,
    generation: Box<Generation>,
    piece: Piece,
}

struct Sequence {
    index: usize,
    state: State,
}

enum State {
    /// Not on the cluster yet.
    Waiting(Box<Start>),
    Running(Box<Generation>),
}

/// All that a sequence needs to begin.
struct Start {
    app: Arc<App>,
    job: Job,
    limits: Limits,
    text: Text,
}

impl Sequences {
    /// Sequences that begin when the first piece is asked for.
    pub(crate) fn new(app: &Arc<App>, id: RequestId, ask: Ask, record: &Record) -> Self {
        let sampling = sampling(&ask.sampling, ask.logprobs);
        let (total, n) = (ask.sequences(), ask.n as usize);
        let mut waiting = VecDeque::with_capacity(total);
        for index in 0..total {
            let prompt = &ask.prompts[index / n];
            let seed = sampling.seed.wrapping_add((index % n) as u64);
            // Nodes know sequences by ids of their own; one alone has the request's.
            let request = if total == 1 { id } else { RequestId::random() };
            let draws = Sampling { seed, ..sampling.clone() };
            let start = Start::new(app, &ask, prompt, (request, draws), record, index == 0);
            waiting.push_back(Sequence { index, state: State::Waiting(Box::new(start)) });
        }
        let (prompt_tokens, max_tokens) = ask.prompts.iter().fold((0u32, 0u32), |(tokens, most), prompt| {
            let more = prompt.max_tokens.saturating_mul(ask.n);
            (tokens.saturating_add(prompt.tokens()), most.saturating_add(more))
        });
        let sizes = Sizes { sequences: total, prompt_tokens, max_tokens };
        record.entry().admitted(id, sizes);
        Self {
            waiting,
            running: FuturesUnordered::new(),
            generated: vec![0; total],
            n,
            prompt_tokens,
            cached_tokens: 0,
            transfers: Transfers::default(),
            permit: ask.permit,
        }
    }

    /// The next piece of whichever sequence has one; none when all have ended. After an error, or after a call that was
    /// dropped half-way, nothing may be asked.
    pub(crate) async fn next(&mut self) -> Result<Option<Item>, Error> {
        let Some(stepped) = self.step().await else { return Ok(None) };
        let Stepped { index, generation, piece } = stepped?;
        self.generated[index] = piece.generated;
        let (prompt_tokens, read) = (generation.prompt_tokens(), generation.read_at());
        let cached_tokens = generation.transfer().cached_tokens;
        if piece.end.is_some() {
            // Further choices find what the first one has left.
            self.cached_tokens += if index.is_multiple_of(self.n) { cached_tokens } else { 0 };
            self.transfers.add(index, generation.transfer());
        } else {
            self.waiting.push_front(Sequence { index, state: State::Running(generation) });
        }
        Ok(Some(Item { index, prompt_tokens, cached_tokens, piece, read }))
    }

    async fn step(&mut self) -> Option<Result<Stepped, Error>> {
        if self.len() == 1 {
            // Nearly all requests: no box and no queue for every token.
            return Some(self.waiting.pop_front()?.step().await);
        }
        while self.running.len() < self.permit.num_permits() {
            let Some(sequence) = self.waiting.pop_front() else { break };
            self.running.push(Box::pin(sequence.step()));
        }
        self.running.next().await
    }

    /// Whether all have ended.
    pub(crate) fn is_over(&self) -> bool {
        self.waiting.is_empty() && self.running.is_empty()
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.generated.len()
    }

    /// Tokens so far; a prompt counts once however many sequences it has.
    pub(crate) fn usage(&self) -> Usage {
        Usage::new(self.prompt_tokens, self.generated.iter().sum(), self.cached_tokens)
    }

    /// What the caches of ended sequences cost.
    pub(crate) fn transfer(&self) -> Option<&KvTransfer> {
        self.transfers.report()
    }
}

impl fmt::Debug for Sequences {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (waiting, running) = (self.waiting.len(), self.running.len());
        f.debug_struct("Sequences")
            .field("waiting", &waiting)
            .field("running", &running)
            .finish_non_exhaustive()
    }
}

impl Sequence {
    /// Begins where that is still to be done, and gives the next piece.
    async fn step(self) -> Result<Stepped, Error> {
        let Self { index, state } = self;
        let mut generation = match state {
            State::Running(generation) => generation,
            // Large, and needed once: in a box it is no part of what waits for tokens.
            State::Waiting(start) => Box::pin(start.begin()).await?,
        };
        let piece = generation.next().await?;
        Ok(Stepped { index, generation, piece })
    }
}

impl Start {
    fn new(
        app: &Arc<App>,
        ask: &Ask,
        prompt: &TokenPrompt,
        (request, sampling): (RequestId, Sampling),
        record: &Record,
        is_first: bool,
    ) -> Self {
        let job = Job {
            request,
            token_ids: prompt.token_ids.clone(),
            max_tokens: prompt.max_tokens,
            sampling,
            kv: ask.kv,
            pins: ask.pins.clone(),
            kept: ask.kept.clone(),
            entry: record.entry(),
            // Later ones may have waited for earlier ones, which is not the router's doing.
            arrived: is_first.then(|| record.arrived()),
        };
        let limits = Limits {
            arrived: record.arrived(),
            prompt_tokens: prompt.tokens(),
            max_tokens: prompt.max_tokens,
            min_tokens: ask.sampling.min_tokens,
        };
        let text = Text::new(&app.tokenizer, prompt.echo.clone(), ask.sampling.stop.clone());
        Self { app: Arc::clone(app), job, limits, text }
    }

    async fn begin(self) -> Result<Box<Generation>, Error> {
        let tokens = self.app.relay.begin(&self.job).await?;
        let metrics = self.app.metrics.clone();
        Ok(Box::new(Generation::new(tokens, self.limits, self.text, metrics)))
    }
}

/// What the API takes, nodes take.
const _: () = assert!(
    MAX_LOGPROBS <= message::MAX_LOGPROBS
        && MAX_LOGIT_BIAS <= message::MAX_LOGIT_BIAS
        && MAX_STOP_TOKEN_IDS <= message::MAX_STOP_TOKEN_IDS
);

/// The API's settings as nodes take them.
pub(crate) fn sampling(options: &SamplingOptions, logprobs: Option<u8>) -> Sampling {
    Sampling {
        temperature: options.temperature,
        top_p: options.top_p,
        top_k: options.top_k,
        seed: options.seed.unwrap_or_else(fresh_seed),
        ignore_eos: options.ignore_eos,
        min_p: options.min_p,
        presence_penalty: options.presence_penalty,
        frequency_penalty: options.frequency_penalty,
        repetition_penalty: options.repetition_penalty,
        logit_bias: options.logit_bias.clone(),
        min_tokens: options.min_tokens,
        stop_token_ids: options.stop_token_ids.clone(),
        logprobs,
    }
}

/// 64 of a random UUID's 122 random bits.
fn fresh_seed() -> u64 {
    let (high, low) = Uuid::new_v4().as_u64_pair();
    high ^ low.rotate_left(32)
}
