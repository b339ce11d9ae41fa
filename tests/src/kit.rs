//! A cluster on the embedded model, a client for it, and what tests ask of both.

use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use kvferry::cluster::{LocalCluster, Models, Options};
use node::{DeviceChoice, Loaded};
use openai::{Completion, Tokenizer};
use serde_json::{Value, json};
use service::{Registry, Shutdown};

/// How long anything in a test may take before it counts as hung.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// The embedded model's directory.
#[must_use]
pub fn model_dir() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../models/tiny-llama")
}

/// The embedded model with its plan, loaded once per test process.
///
/// # Panics
/// When it cannot be loaded.
#[must_use]
pub fn loaded() -> Arc<Loaded> {
    static LOADED: OnceLock<Arc<Loaded>> = OnceLock::new();
    let load =
        || Arc::new(Loaded::load(&model_dir(), None, "tiny-llama".into()).expect("the embedded model loads"));
    Arc::clone(LOADED.get_or_init(load))
}

/// Where the nodes of a test run: on the CPU, or where `KVFERRY_DEVICE` says, so that the same tests serve GPUs.
///
/// # Panics
/// When that is no device.
#[must_use]
pub fn device() -> DeviceChoice {
    let device = std::env::var("KVFERRY_DEVICE").map_or(Ok(DeviceChoice::Cpu), |name| name.parse());
    device.expect("KVFERRY_DEVICE names a device")
}

fn models(loaded: &Arc<Loaded>) -> Models {
    match device() {
        DeviceChoice::Cpu => Models::Host(Arc::clone(loaded)),
        device @ DeviceChoice::Cuda(_) => Models::Device(device),
    }
}

/// A running cluster and a client.
#[derive(Debug)]
pub struct Kit {
    /// The cluster.
    pub cluster: LocalCluster,
    /// Its model.
    pub loaded: Arc<Loaded>,
    /// Its tokenizer.
    pub tokenizer: Tokenizer,
    http: reqwest::Client,
    shutdown: Shutdown,
}

impl Kit {
    /// One prefill and one decode node.
    ///
    /// # Panics
    /// When the cluster does not come up.
    pub async fn start() -> Self {
        Self::start_with(|_| {}).await
    }

    /// A cluster with settings changed by `adjust`.
    ///
    /// # Panics
    /// When the cluster does not come up.
    pub async fn start_with(adjust: impl FnOnce(&mut Options)) -> Self {
        let mut options = Options::new(model_dir());
        adjust(&mut options);
        let (loaded, shutdown) = (loaded(), Shutdown::new(Duration::from_secs(2)));
        let models = models(&loaded);
        let cluster =
            LocalCluster::start(models, options, shutdown.clone()).await.expect("the cluster comes up");
        let tokenizer = Tokenizer::load(&model_dir()).expect("the tokenizer loads");
        Self { cluster, loaded, tokenizer, http: client(), shutdown }
    }

    /// Text whose prompt, begin-of-text included, has exactly `tokens` tokens.
    ///
    /// # Panics
    /// When the tokenizer cannot be brought to it.
    #[must_use]
    pub fn prompt(&self, tokens: usize) -> String {
        let mut text = String::new();
        let mut number = 0;
        while self.count(&text) < tokens {
            number += 1;
            text.push_str(&format!("The {number}th lantern stood near the old mill before noon. "));
        }
        while self.count(&text) > tokens {
            text.pop();
        }
        while self.count(&text) < tokens {
            text.push_str(" a");
        }
        assert_eq!(self.count(&text), tokens);
        text
    }

    fn count(&self, text: &str) -> usize {
        self.tokenizer.encode(text).expect("plain text has tokens").len()
    }

    /// Sends a completion request.
    ///
    /// # Panics
    /// When the router does not answer.
    pub async fn send(&self, body: &Value) -> reqwest::Response {
        let request = self.http.post(format!("{}/v1/completions", self.cluster.url())).json(body);
        tokio::time::timeout(PATIENCE, request.send())
            .await
            .expect("answered in time")
            .expect("the router answers")
    }

    /// Sends a greedy completion request with `extra` fields and expects it to succeed.
    ///
    /// # Panics
    /// When it does not.
    pub async fn complete(&self, prompt: &str, max_tokens: u32, extra: Value) -> Completion {
        let mut body = json!({
            "model": "tiny-llama", "prompt": prompt, "max_tokens": max_tokens, "temperature": 0, "kv_transfer": true,
        });
        if let (Value::Object(body), Value::Object(extra)) = (&mut body, extra) {
            body.extend(extra);
        }
        let response = self.send(&body).await;
        let (status, body) = (response.status(), tokio::time::timeout(PATIENCE, response.text()).await);
        let text = body.expect("answered in time").expect("a body");
        assert!(status.is_success(), "{status}: {text}");
        serde_json::from_str(&text).expect("a completion")
    }

    /// GETs a path of the router.
    ///
    /// # Panics
    /// When the router does not answer.
    pub async fn get(&self, path: &str) -> (u16, String) {
        let response =
            self.http.get(format!("{}{path}", self.cluster.url())).send().await.expect("the router answers");
        (response.status().as_u16(), response.text().await.expect("a body"))
    }

    /// Stops the cluster and waits for its end.
    ///
    /// # Panics
    /// When it does not end in time.
    pub async fn stop(self) {
        self.shutdown.drain();
        tokio::time::timeout(PATIENCE, self.cluster.finished()).await.expect("stopped in time");
    }
}

/// An HTTP client that goes to loopback directly, whatever proxy the environment names.
///
/// # Panics
/// When no client can be made.
#[must_use]
pub fn client() -> reqwest::Client {
    reqwest::Client::builder().no_proxy().build().expect("a client is made")
}

/// Sum of a metric over its labels, 0 while no label has been used.
///
/// # Panics
/// When there is no such metric.
#[must_use]
pub fn metric(registry: &Registry, name: &str) -> f64 {
    let text = registry.encode().expect("metrics encode");
    let family = name.split('{').next().unwrap_or(name).trim_end_matches("_total");
    assert!(text.contains(&format!("# TYPE {family} ")), "there is no metric {family}");
    let values = text.lines().filter_map(|line| {
        let rest = line.strip_prefix(name)?;
        let value = if name.ends_with('}') {
            rest.strip_prefix(' ')?
        } else if rest.starts_with('{') {
            rest.split_once("} ")?.1
        } else {
            rest.strip_prefix(' ')?
        };
        value.split(' ').next()?.parse::<f64>().ok()
    });
    values.sum()
}

/// Waits until `condition` holds.
///
/// # Panics
/// When it does not within [`PATIENCE`].
pub async fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "never happened: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Seeded retrieval tasks of about `tokens` tokens each.
#[must_use]
pub fn tasks(tokenizer: &Tokenizer, count: u64, tokens: usize) -> Vec<kvferry::prompts::Task> {
    use rand::SeedableRng;
    let length = kvferry::prompts::text_tokens(tokenizer);
    let task = |seed| {
        kvferry::prompts::retrieval(&mut rand_chacha::ChaCha8Rng::seed_from_u64(seed), tokens, &length)
    };
    (100..100 + count).map(task).collect()
}
