//! `POST /v1/chat/completions`: the body to an [`Ask`], through the model's chat template.

use openai::{ChatRequest, Prompt};
use serde_json::Value;
use tracing::debug;

use super::ask::{Ask, Pins, TokenPrompt};
use super::intake::{check_context, check_model, take_places, tokenize};
use crate::app::App;
use crate::error::Error;

/// Checks, renders and tokenizes a body; gives its `kv_transfer_params`, too.
pub(super) async fn ask(app: &App, body: &[u8], pins: Pins) -> Result<(Ask, Option<Value>), Error> {
    let request = ChatRequest::parse(body)?;
    check_model(app, &request.model)?;
    let template = app.chat_template()?;
    let permit = take_places(app, request.n as usize)?;
    let text = template.render(&request.messages, request.add_generation_prompt)?;
    // The template writes begin-of-text itself, where the model wants it.
    let token_ids = tokenize(app, Prompt::Text(text), false).await?;
    debug!(tokens = token_ids.len(), "rendered and tokenized");
    let max_tokens = request.max_tokens.unwrap_or_else(|| default_max_tokens(app, token_ids.len()));
    check_context(app.max_model_len, token_ids.len(), max_tokens)?;
    let ask = Ask {
        model: request.model,
        prompts: vec![TokenPrompt { token_ids, echo: String::new(), max_tokens }],
        n: request.n,
        logprobs: request.logprobs,
        sampling: request.sampling,
        delivery: request.delivery,
        kv: request.kv,
        pins,
        keeps: false,
        kept: None,
        permit,
    };
    Ok((ask, request.kv_transfer_params))
}

/// What the context leaves, up to the operator's limit: a decode node sets memory aside for all of it.
fn default_max_tokens(app: &App, prompt_tokens: usize) -> u32 {
    let prompt_tokens = u32::try_from(prompt_tokens).unwrap_or(u32::MAX);
    app.max_model_len.saturating_sub(prompt_tokens).clamp(1, app.chat_max_tokens)
}
