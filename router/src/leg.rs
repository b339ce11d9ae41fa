//! One request stream to one node: messages with deadlines, errors that name the node. A request has one leg, or two
//! when it is split; a dropped leg cancels its part of the request on the node.

use std::time::{Duration, Instant};

use serde::de::DeserializeOwned;
use tracing::Span;
use transport::ids::NodeId;
use transport::message::{Failure, FromPrefill, Request, Role};
use transport::{Frame, OpenError, RecvError, SendError, Stream};

use crate::cluster::Assigned;

/// A request stream, and the node's load that it stands for.
#[derive(Debug)]
pub(crate) struct Leg {
    stream: Stream,
    node: Assigned,
    /// Ends with the leg, in the request's trace.
    _span: Span,
}

/// A node did not do its part.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[error("{} node {node} {cause}", .role.name())]
pub(crate) struct NodeError {
    pub(crate) node: NodeId,
    pub(crate) role: Role,
    pub(crate) cause: Cause,
}

/// What a node did wrong.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub(crate) enum Cause {
    /// It said so itself.
    #[error("failed: {}", .0.message)]
    Failed(Failure),
    /// Its connection or stream ended early.
    #[error("was lost: {0}")]
    Lost(String),
    /// It was silent for too long.
    #[error("gave no {phase} within {after:?}")]
    Deadline { phase: Phase, after: Duration },
    /// It said something that does not belong here.
    #[error("broke the protocol: {0}")]
    Protocol(String),
}

/// What the router waited for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    Reserve,
    FirstToken,
    NextToken,
}

impl std::fmt::Display for Phase {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Reserve => "answer",
            Self::FirstToken => "first token",
            Self::NextToken => "next token",
        })
    }
}

impl Leg {
    /// Opens a stream to the node and sends the request, within `deadline`.
    pub(crate) async fn open(
        node: Assigned,
        request: &Request,
        deadline: Duration,
    ) -> Result<Self, NodeError> {
        let opened = tokio::time::timeout(deadline, async {
            let mut stream = node.peer.open().await.map_err(open_cause)?;
            stream.sender.send(request).await.map_err(send_cause)?;
            Ok(stream)
        });
        let opened = opened.await.unwrap_or(Err(Cause::Deadline { phase: Phase::Reserve, after: deadline }));
        match opened {
            Ok(stream) => Ok(Self { stream, node, _span: Span::none() }),
            Err(cause) => Err(error_of(&node, cause)),
        }
    }

    /// The leg with a span that ends when it does.
    pub(crate) fn within(self, span: Span) -> Self {
        Self { _span: span, ..self }
    }

    /// The node's next message.
    pub(crate) async fn recv<M: DeserializeOwned>(
        &mut self,
        phase: Phase,
        deadline: Duration,
    ) -> Result<M, NodeError> {
        let received = self.stream.receiver.recv_message(deadline).await;
        received.map_err(|error| self.error(recv_cause(error, phase)))
    }

    /// When the node's last message was read.
    pub(crate) fn read_at(&self) -> Instant {
        self.stream.receiver.last_read()
    }

    /// Tells the node that the request is over and went well.
    pub(crate) fn finish(&mut self) {
        // Fails only if the node has stopped listening, and then it knows.
        let _ = self.stream.sender.finish();
    }

    /// Hears the node out when the request went well and only its last words are missing: dropping the leg instead
    /// would look like a cancellation. Gives up after `deadline`.
    pub(crate) async fn settle(mut self, deadline: Duration) {
        self.finish();
        let to_the_end = async {
            while let Ok(Frame::Message(_) | Frame::Data(_)) =
                self.stream.receiver.recv::<FromPrefill>(deadline).await
            {}
        };
        // Late or wrong words change nothing any more.
        let _ = tokio::time::timeout(deadline, to_the_end).await;
    }

    /// The node at the other end.
    pub(crate) fn node(&self) -> &Assigned {
        &self.node
    }

    /// An error of this leg's node.
    pub(crate) fn error(&self, cause: Cause) -> NodeError {
        error_of(&self.node, cause)
    }
}

fn error_of(node: &Assigned, cause: Cause) -> NodeError {
    NodeError { node: node.id.clone(), role: node.role, cause }
}

fn open_cause(error: OpenError) -> Cause {
    match error {
        OpenError::Timeout { after } => Cause::Deadline { phase: Phase::Reserve, after },
        other => Cause::Lost(other.to_string()),
    }
}

fn send_cause(error: SendError) -> Cause {
    match error {
        SendError::Stalled { after } => Cause::Deadline { phase: Phase::Reserve, after },
        SendError::Frame(error) => Cause::Protocol(error.to_string()),
        other => Cause::Lost(other.to_string()),
    }
}

fn recv_cause(error: RecvError, phase: Phase) -> Cause {
    match error {
        RecvError::Timeout { after } => Cause::Deadline { phase, after },
        lost @ (RecvError::Reset { .. } | RecvError::ConnectionLost(_)) => Cause::Lost(lost.to_string()),
        RecvError::Unexpected { .. } => Cause::Lost("it ended the stream before the request was over".into()),
        other => Cause::Protocol(other.to_string()),
    }
}
