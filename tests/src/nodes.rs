//! A prefill and a decode node without a router: the test asks them as the router does, and so for what no client can ask.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use node::compute::Sizes;
use node::{DeviceChoice, Loaded, NodeArgs, Runtime, Served};
use service::Shutdown;
use transport::ids::{NodeId, RequestId, Ticket};
use transport::message::{
    Control, DecodeTarget, Failure, FinishReason, FromDecode, FromPrefill, KvCoding, KvMode, KvSource,
    Logprobs, Prefill, Request, Reserve, Role, Sampling,
};
use transport::{Authority, Endpoint, EndpointConfig, Peer, Stream};

use crate::kit::{PATIENCE, device, model_dir};

/// The two nodes as their router sees them.
#[derive(Debug)]
pub struct Nodes {
    prefill: Peer,
    decode: Peer,
    kv_address: SocketAddr,
    runtimes: [Runtime; 2],
    _router: Endpoint,
}

/// A request for the nodes.
#[derive(Debug, Clone)]
pub struct Asked {
    /// The prompt.
    pub prompt: Vec<u32>,
    /// Tokens to generate at most.
    pub max_tokens: u32,
    /// How to draw them.
    pub sampling: Sampling,
}

/// Everything that came of one.
#[derive(Debug, Clone, PartialEq)]
pub struct Answer {
    /// Tokens, with how likely they were if that was asked.
    pub tokens: Vec<(u32, Option<Logprobs>)>,
    /// Why there are no more.
    pub reason: FinishReason,
}

impl Answer {
    /// The tokens alone.
    #[must_use]
    pub fn ids(&self) -> Vec<u32> {
        self.tokens.iter().map(|(id, _)| *id).collect()
    }
}

impl Nodes {
    /// Starts both nodes and waits until they have registered.
    ///
    /// # Panics
    /// When they do not.
    pub async fn start(loaded: &Arc<Loaded>) -> Self {
        let authority = Authority::new().expect("an authority");
        let identity = |name| authority.issue(name).expect("a certificate");
        let hello = Served::on_host(Arc::clone(loaded)).hello(NodeId("router".into()), Role::Router);
        let any_port = (Ipv4Addr::LOCALHOST, 0).into();
        let router = Endpoint::bind(any_port, &identity("router"), hello, EndpointConfig::default());
        let router = router.expect("the test's socket");
        let address = router.local_addr().expect("its address");
        let args = NodeArgs { device: device(), ..NodeArgs::local(&model_dir(), address) };
        let shutdown = || Shutdown::new(Duration::from_secs(1));
        let config = decode_node::Config::local(args.clone());
        let decode =
            decode_node::start(&config, served(loaded, &args), &identity("decode"), shutdown()).await;
        let config = prefill_node::Config::local(args.clone());
        let prefill =
            prefill_node::start(&config, served(loaded, &args), &identity("prefill"), shutdown()).await;
        let runtimes = [prefill.expect("the prefill node starts"), decode.expect("the decode node starts")];
        let (mut prefill, mut decode) = (None, None);
        while prefill.is_none() || decode.is_none() {
            let (peer, address) = registered(&router).await;
            match peer.hello().role {
                Role::Prefill => prefill = Some(peer),
                _ => decode = Some((peer, address)),
            }
        }
        let (prefill, (decode, kv_address)) = prefill.zip(decode).expect("both have registered");
        Self { prefill, decode, kv_address, runtimes, _router: router }
    }

    /// The prompt runs on the prefill node, the rest on the decode node.
    ///
    /// # Errors
    /// What the first node to fail says.
    ///
    /// # Panics
    /// When a node does not answer as it should.
    pub async fn split(&self, asked: &Asked) -> Result<Answer, Failure> {
        let prompt_ids = asked.sampling.penalized(&asked.prompt);
        let (mut decode, ticket) = self.reserve(asked, KvSource::Remote, prompt_ids).await?;
        let mut prefill = self.prefill(asked, ticket).await;
        if let FromPrefill::Fail(failure) = recv(&mut prefill).await {
            return Err(failure);
        }
        answer(&mut decode).await
    }

    /// All of it runs on the decode node.
    ///
    /// # Errors
    /// What the node says.
    ///
    /// # Panics
    /// When it does not answer as it should.
    pub async fn whole(&self, asked: &Asked) -> Result<Answer, Failure> {
        let source = KvSource::Local { token_ids: asked.prompt.clone() };
        let (mut decode, _) = self.reserve(asked, source, Vec::new()).await?;
        answer(&mut decode).await
    }

    /// A reservation, held as long as the stream.
    ///
    /// # Errors
    /// What the node says.
    ///
    /// # Panics
    /// When it does not answer as it should.
    pub async fn reserve(
        &self,
        asked: &Asked,
        source: KvSource,
        prompt_ids: Vec<u32>,
    ) -> Result<(Stream, Ticket), Failure> {
        let request = Request::Reserve(Reserve {
            request: RequestId::random(),
            prompt_tokens: asked.prompt.len() as u32,
            max_tokens: asked.max_tokens,
            sampling: asked.sampling.clone(),
            prompt_ids,
            source,
            trace: None,
        });
        let mut stream = ask(&self.decode, &request).await;
        match recv(&mut stream).await {
            FromDecode::Reserved { ticket } => Ok((stream, ticket)),
            FromDecode::Fail(failure) => Err(failure),
            other => panic!("{other:?} before a reservation"),
        }
    }

    /// Asks for a prompt pass whose cache goes to a reservation, coded losslessly.
    ///
    /// # Panics
    /// When the node cannot be asked.
    pub async fn prefill(&self, asked: &Asked, ticket: Ticket) -> Stream {
        let there = self.decode.hello();
        let target = DecodeTarget {
            node: there.node.clone(),
            instance: there.instance,
            address: self.kv_address,
            ticket,
        };
        let request = Request::Prefill(Prefill {
            request: RequestId::random(),
            token_ids: asked.prompt.clone(),
            // What another prompt has left would differ in its last bits, since it ran in other chunks.
            cache_salt: Some(RequestId::random().0.into_bytes()),
            sampling: asked.sampling.clone(),
            coding: KvCoding { codec: "raw".into(), tier: 32, mode: KvMode::Stream },
            target: Some(target),
            trace: None,
        });
        ask(&self.prefill, &request).await
    }

    /// Stops both nodes and waits for their end.
    ///
    /// # Panics
    /// When they do not end in time.
    pub async fn stop(self) {
        for runtime in &self.runtimes {
            runtime.shutdown.drain();
            tokio::time::timeout(PATIENCE, runtime.finished()).await.expect("stopped in time");
        }
    }
}

/// What a node answers next.
///
/// # Panics
/// When nothing comes in time.
pub async fn recv<M: serde::de::DeserializeOwned>(stream: &mut Stream) -> M {
    stream.receiver.recv_message(PATIENCE).await.expect("the node answers")
}

fn served(loaded: &Arc<Loaded>, args: &NodeArgs) -> Arc<Served> {
    Arc::new(match args.device {
        DeviceChoice::Cpu => Served::on_host(Arc::clone(loaded)),
        device @ DeviceChoice::Cuda(_) => {
            let served = Served::load(device, &args.model, None, "tiny-llama".into(), Sizes::of(args));
            served.expect("the embedded model loads to the device")
        }
    })
}

/// The next node, with where other nodes reach it.
async fn registered(router: &Endpoint) -> (Peer, SocketAddr) {
    let peer = tokio::time::timeout(PATIENCE, router.accept()).await.expect("a node in time");
    let peer = peer.expect("the endpoint is open").expect("the node is let in");
    let mut control = peer.accept().await.expect("a control stream");
    let Control::Register(register) = recv(&mut control).await else { panic!("a node registers first") };
    // Heartbeats are taken for as long as the node lives.
    tokio::spawn(async move { while control.receiver.recv_message::<Control>(PATIENCE).await.is_ok() {} });
    (peer, register.kv_address.expect("both kinds of node are reached by the other"))
}

async fn ask(peer: &Peer, request: &Request) -> Stream {
    let mut stream = peer.open().await.expect("a stream opens");
    stream.sender.send(request).await.expect("the request is sent");
    stream
}

async fn answer(decode: &mut Stream) -> Result<Answer, Failure> {
    let mut tokens = Vec::new();
    loop {
        match recv(decode).await {
            FromDecode::Ready { first_token, logprobs, .. } if tokens.is_empty() => {
                tokens.push((first_token, logprobs));
            }
            FromDecode::Token { id, logprobs } if !tokens.is_empty() => tokens.push((id, logprobs)),
            FromDecode::Finished { reason } => return Ok(Answer { tokens, reason }),
            FromDecode::Fail(failure) => return Err(failure),
            other => panic!("{other:?} after {} tokens", tokens.len()),
        }
    }
}
