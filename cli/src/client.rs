//! A client of the cluster's own HTTP API, as anybody's would be.

use anyhow::{Context, bail};
use openai::{Completion, KvTransfer};
use serde_json::json;
use transport::ids::RequestId;

/// Tokens generated per request.
const MAX_TOKENS: u32 = 24;

/// Sends completions to one router.
#[derive(Debug)]
pub(crate) struct Client {
    http: reqwest::Client,
    url: String,
    model: String,
}

/// What one request gave.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) text: String,
    pub(crate) prompt_tokens: u32,
    pub(crate) transfer: KvTransfer,
}

impl Client {
    pub(crate) fn new(url: &str, model: &str) -> anyhow::Result<Self> {
        // A router is a neighbour, to which no proxy leads.
        let http = reqwest::Client::builder().no_proxy().build()?;
        Ok(Self { http, url: url.to_owned(), model: model.to_owned() })
    }

    /// A client of the router at `url` for the model that it serves.
    pub(crate) async fn discover(url: &str) -> anyhow::Result<Self> {
        let url = url.trim_end_matches('/');
        let mut client = Self::new(url, "")?;
        let answer = client.http.get(format!("{url}/v1/models")).send().await;
        let answer = answer.with_context(|| format!("no router answers at {url}"))?.error_for_status()?;
        let models: openai::ModelList = answer.json().await?;
        client.model = models.data.into_iter().next().context("the router serves no model")?.id;
        Ok(client)
    }

    /// One greedy completion with the cache coded as asked, and all of the prompt run for it: a prefill node that had its cache from
    /// before would tell nothing of what that takes.
    pub(crate) async fn complete(&self, prompt: &str, codec: &str, tier: u8) -> anyhow::Result<Answer> {
        self.turn(prompt, codec, tier, &RequestId::random().to_string()).await
    }

    /// The same in a conversation: of what came before with the same `salt` nothing runs again.
    pub(crate) async fn turn(
        &self,
        prompt: &str,
        codec: &str,
        tier: u8,
        salt: &str,
    ) -> anyhow::Result<Answer> {
        let body = json!({
            "model": self.model, "prompt": prompt, "max_tokens": MAX_TOKENS, "temperature": 0, "stop": "\n",
            "kv_transfer": true, "kv_codec": codec, "kv_tier": tier, "cache_salt": salt,
        });
        let response = self.http.post(format!("{}/v1/completions", self.url)).json(&body).send().await?;
        let status = response.status();
        let text = response.text().await?;
        if !status.is_success() {
            bail!("the router answered {status}: {text}");
        }
        let completion: Completion =
            serde_json::from_str(&text).with_context(|| format!("unexpected answer: {text}"))?;
        let choice = completion.choices.into_iter().next().context("an answer without a choice")?;
        let usage = completion.usage.context("an answer without usage")?;
        let transfer = completion.kv_transfer.context("an answer without kv_transfer")?;
        Ok(Answer { text: choice.text, prompt_tokens: usage.prompt_tokens, transfer })
    }
}
