//! Caches that are handed over between two requests (`kv_transfer_params`): the ticket that a proxy carries from the answer to
//! the first into the second, and what is checked of it.
//!
//! ```text
//! ticket = base64url( version [u8] | BLAKE3 of the body, first 8 bytes | body, postcard )
//! ```
//!
//! The digest tells a damaged ticket from a good one. It is no signature: whoever can ask for a cache can also name another
//! node's address, where only a holder of the cluster's certificates gets an answer.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use openai::request::MAX_TICKET_BYTES;
use openai::{KvCodec, KvHandover, KvTransferParams};
use serde::{Deserialize, Serialize};
use transport::frame;
use transport::ids::{PromptDigest, RequestId};
use transport::message::{Holder, KvCoding, KvMode, Role};

use crate::api::Ask;
use crate::error::Error;
use crate::relay::keep::Keeping;

/// The only version there is.
const VERSION: u8 = 1;
/// Bytes of a ticket's digest.
const DIGEST_BYTES: usize = 8;
/// Bytes before a message inside its frame.
const FRAME_HEADER_BYTES: usize = 5;

/// What of it this router takes.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rules {
    /// Whether it takes `kv_transfer_params` at all; otherwise they are ignored.
    pub(crate) is_taken: bool,
    /// The kind of the one node that it stands in front of, if it does.
    pub(crate) face_of: Option<Role>,
}

impl Rules {
    /// Whether the kind of node behind a face can do what is asked.
    pub(crate) fn check_role(&self, asked: Option<&KvHandover>) -> Result<(), Error> {
        match (self.face_of, asked) {
            (Some(role @ Role::Prefill), None | Some(KvHandover::Take { .. }))
            | (Some(role @ Role::Decode), Some(KvHandover::Keep)) => Err(Error::OtherNode { role }),
            _ => Ok(()),
        }
    }
}

/// A cache that a prefill node keeps, as a good ticket says it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct KeptCache {
    pub(crate) holder: Holder,
    pub(crate) way: (KvCodec, KvMode),
}

/// What a ticket says.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Ticket {
    holder: Holder,
    coding: KvCoding,
    prompt_tokens: u32,
    /// What is told of the first token, which travels with the cache.
    logprobs: Option<u8>,
}

/// A ticket that does not open a cache for this request.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum TicketError {
    #[error("kvferry_ticket is damaged; pass kv_transfer_params on as the prefill node has answered them")]
    Damaged,
    #[error("kvferry_ticket has version {got}, this server reads {VERSION}; run one release on all nodes")]
    Version { got: u8 },
    #[error(
        "kvferry_ticket belongs to another prompt: the kept cache is of {kept} tokens, this prompt has {sent}; send both \
         requests with the same prompt or messages"
    )]
    Prompt { kept: u32, sent: u32 },
    #[error(
        "kvferry_ticket was asked for with other logprobs than this request; send both requests with the same"
    )]
    Logprobs,
}

impl Ticket {
    fn encode(&self) -> Result<String, Error> {
        let internal =
            |error: &dyn std::fmt::Display| Error::Internal { reason: format!("no ticket: {error}") };
        let framed = frame::encode_message(self).map_err(|error| internal(&error))?;
        let body = &framed[FRAME_HEADER_BYTES..];
        let digest = blake3::hash(body);
        let bytes = [&[VERSION], &digest.as_bytes()[..DIGEST_BYTES], body].concat();
        let text = URL_SAFE_NO_PAD.encode(bytes);
        if text.len() > MAX_TICKET_BYTES { Err(internal(&"too long")) } else { Ok(text) }
    }

    fn decode(text: &str) -> Result<Self, TicketError> {
        if text.len() > MAX_TICKET_BYTES {
            return Err(TicketError::Damaged);
        }
        let bytes = URL_SAFE_NO_PAD.decode(text).map_err(|_| TicketError::Damaged)?;
        let (version, rest) = bytes.split_first().ok_or(TicketError::Damaged)?;
        if *version != VERSION {
            return Err(TicketError::Version { got: *version });
        }
        let (digest, body) = rest.split_at_checked(DIGEST_BYTES).ok_or(TicketError::Damaged)?;
        if digest != &blake3::hash(body).as_bytes()[..DIGEST_BYTES] {
            return Err(TicketError::Damaged);
        }
        let ticket: Self = frame::decode_message(body).map_err(|_| TicketError::Damaged)?;
        let is_sound = ticket.holder.node.check().is_ok() && ticket.holder.address.port() != 0;
        if is_sound { Ok(ticket) } else { Err(TicketError::Damaged) }
    }

    /// Whether it opens a cache for this request.
    fn check(self, token_ids: &[u32], logprobs: Option<u8>) -> Result<KeptCache, TicketError> {
        let sent = u32::try_from(token_ids.len()).unwrap_or(u32::MAX);
        if (self.prompt_tokens, self.holder.prompt) != (sent, PromptDigest::of(token_ids)) {
            return Err(TicketError::Prompt { kept: self.prompt_tokens, sent });
        }
        if self.logprobs != logprobs {
            return Err(TicketError::Logprobs);
        }
        let codec = KvCodec::named(&self.coding.codec).ok_or(TicketError::Damaged)?;
        Ok(KeptCache { holder: self.holder, way: (codec, self.coding.mode) })
    }
}

/// What a request's `kv_transfer_params` come to, once its prompt is known: whether its cache is to be kept, or which kept one
/// it goes on from.
pub(crate) fn check(ask: &Ask, asked: &KvHandover) -> Result<Option<KeptCache>, Error> {
    let with = match asked {
        KvHandover::Keep => "kv_transfer_params.do_remote_decode",
        KvHandover::Take { .. } => "kv_transfer_params.do_remote_prefill",
    };
    let only = |param: &str, value: &str, got: &dyn std::fmt::Display| {
        let range = format!("{value} with {with}");
        Error::Invalid(openai::InvalidRequest::Range { param: param.into(), range, got: got.to_string() })
    };
    let [prompt] = &ask.prompts[..] else {
        return Err(only("prompt", "one prompt", &format!("a list of {}", ask.prompts.len())));
    };
    if ask.n != 1 {
        return Err(only("n", "1", &ask.n));
    }
    match asked {
        KvHandover::Keep if ask.delivery.stream => Err(only("stream", "false", &true)),
        KvHandover::Keep if prompt.max_tokens != 1 => Err(only("max_tokens", "1", &prompt.max_tokens)),
        KvHandover::Keep => Ok(None),
        KvHandover::Take { ticket } => {
            let ticket = Ticket::decode(ticket)?;
            Ok(Some(ticket.check(&prompt.token_ids, ask.logprobs)?))
        }
    }
}

/// What the answer says of a cache that is kept now.
pub(crate) fn params(keeping: Keeping, ask: &Ask, id: RequestId) -> Result<KvTransferParams, Error> {
    let Keeping { kept, holder, coding } = keeping;
    let prompt_tokens = ask.prompts.first().map_or(0, crate::api::TokenPrompt::tokens);
    let ticket = Ticket { holder, coding, prompt_tokens, logprobs: ask.logprobs };
    Ok(KvTransferParams {
        do_remote_prefill: true,
        do_remote_decode: false,
        remote_engine_id: ticket.holder.node.0.clone(),
        remote_request_id: id.to_string(),
        remote_block_ids: Vec::new(),
        remote_host: ticket.holder.address.ip().to_string(),
        remote_port: ticket.holder.address.port(),
        tp_size: 1,
        remote_num_tokens: prompt_tokens,
        remote_blocks_expiry_time: kept.expires,
        kvferry_ticket: ticket.encode()?,
    })
}

#[cfg(test)]
#[path = "handover_tests.rs"]
mod tests;
