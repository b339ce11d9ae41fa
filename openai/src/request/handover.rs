//! `kv_transfer_params`: a cache that one server makes and another goes on from, with a proxy between them that knows vLLM's
//! fields. A proxy sends `do_remote_decode` to the first, and what that answered, with `do_remote_prefill` in it, to the second.

use serde_json::Value;

use crate::error::InvalidRequest;
use crate::fields::{Fields, show};

/// The field.
pub(super) const PARAM: &str = "kv_transfer_params";
/// Longest ticket that is read, in bytes.
pub const MAX_TICKET_BYTES: usize = 1024;

/// What `kv_transfer_params` ask for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KvHandover {
    /// `do_remote_decode`: run the prompt and keep its cache for a decode node.
    Keep,
    /// `do_remote_prefill`: go on from a cache that a prefill node keeps.
    Take {
        /// What that node's answer said, not looked into yet.
        ticket: String,
    },
}

impl KvHandover {
    /// Reads the field's value; nothing where it asks for neither. Of the fields inside, those that say nothing to a server of
    /// ours are not looked at.
    ///
    /// # Errors
    /// The first fault found, naming the field.
    pub fn read(value: Value) -> Result<Option<Self>, InvalidRequest> {
        let Value::Object(map) = value else {
            return Err(InvalidRequest::Type {
                param: PARAM.into(),
                expected: "an object",
                got: show(&value),
            });
        };
        let mut fields = Fields::inside(map, "kv_transfer_params.");
        let keep = fields.bool("do_remote_decode")?.unwrap_or(false);
        let take = fields.bool("do_remote_prefill")?.unwrap_or(false);
        let ticket = fields.string("kvferry_ticket")?;
        match (keep, take, ticket) {
            (true, true, _) => Err(InvalidRequest::Dependent {
                param: fields.path("do_remote_prefill"),
                needs: "do_remote_decode is false",
            }),
            (true, false, _) => Ok(Some(Self::Keep)),
            (false, true, Some(ticket)) if ticket.len() <= MAX_TICKET_BYTES => {
                Ok(Some(Self::Take { ticket }))
            }
            (false, true, Some(ticket)) => Err(InvalidRequest::Range {
                param: fields.path("kvferry_ticket"),
                range: format!("at most {MAX_TICKET_BYTES} bytes long"),
                got: ticket.len().to_string(),
            }),
            (false, true, None) => Err(InvalidRequest::Missing {
                param: fields.path("kvferry_ticket"),
                expected: "what a kvferry prefill node has answered; a cache of another server cannot be read here",
            }),
            (false, false, _) => Ok(None),
        }
    }
}
