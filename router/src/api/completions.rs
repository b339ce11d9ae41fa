//! `POST /v1/completions`: the body to an [`Ask`].

use openai::CompletionRequest;
use serde_json::Value;
use tracing::debug;

use super::ask::{Ask, Pins, TokenPrompt};
use super::intake::{check_context, check_model, take_places, tokenize};
use crate::app::App;
use crate::error::Error;

/// Checks and tokenizes a body; gives its `kv_transfer_params`, too. A place is taken before the prompts are tokenized, which costs time.
pub(super) async fn ask(app: &App, body: &[u8], pins: Pins) -> Result<(Ask, Option<Value>), Error> {
    let request = CompletionRequest::parse(body)?;
    check_model(app, &request.model)?;
    let permit = take_places(app, request.prompts.len() * request.n as usize)?;
    let mut prompts = Vec::with_capacity(request.prompts.len());
    for prompt in request.prompts {
        let text = match &prompt {
            openai::Prompt::Text(text) if request.echo => Some(text.clone()),
            _ => None,
        };
        let token_ids = tokenize(app, prompt, request.add_special_tokens).await?;
        debug!(tokens = token_ids.len(), "tokenized");
        check_context(app.max_model_len, token_ids.len(), request.max_tokens)?;
        let echo = match text {
            Some(text) => text,
            None if request.echo => app.tokenizer.decode_all(&token_ids),
            None => String::new(),
        };
        prompts.push(TokenPrompt { token_ids, echo, max_tokens: request.max_tokens });
    }
    let ask = Ask {
        model: request.model,
        prompts,
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
