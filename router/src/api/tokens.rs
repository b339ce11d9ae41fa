//! `POST /tokenize` and `POST /detokenize`: the router's tokenizer, as vLLM offers it.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Request, State};
use openai::response::{Detokenized, Tokenized};
use openai::{DetokenizeRequest, TokenizeInput, TokenizeRequest};

use super::intake::{check_model, encode, read_body, take_places};
use crate::app::App;
use crate::error::Error;

pub(super) async fn tokenize(
    State(app): State<Arc<App>>,
    request: Request,
) -> Result<Json<Tokenized>, Error> {
    let body = read_body(&app, request).await?;
    let request = TokenizeRequest::parse(&body)?;
    request.model.as_deref().map_or(Ok(()), |model| check_model(&app, model))?;
    let _place = take_places(&app, 1)?;
    let text = match request.input {
        TokenizeInput::Text(text) => text,
        TokenizeInput::Chat { messages, add_generation_prompt } => {
            app.chat_template()?.render(&messages, add_generation_prompt)?
        }
    };
    let tokens = encode(&app.tokenizer, text, request.add_special_tokens).await?;
    let text_of = |id: &u32| String::from_utf8_lossy(&app.tokenizer.token_bytes(*id)).into_owned();
    let token_strs = request.return_token_strs.then(|| tokens.iter().map(text_of).collect());
    Ok(Json(Tokenized { count: tokens.len(), max_model_len: app.max_model_len, tokens, token_strs }))
}

pub(super) async fn detokenize(
    State(app): State<Arc<App>>,
    request: Request,
) -> Result<Json<Detokenized>, Error> {
    let body = read_body(&app, request).await?;
    let request = DetokenizeRequest::parse(&body)?;
    request.model.as_deref().map_or(Ok(()), |model| check_model(&app, model))?;
    let _place = take_places(&app, 1)?;
    app.tokenizer.check(&request.tokens)?;
    Ok(Json(Detokenized { prompt: app.tokenizer.decode_all(&request.tokens) }))
}
