//! Frames in and out of one bidirectional stream, with deadlines; a dropped half cancels what it carried.
//!
//! The two halves are independent. A half that is dropped before its end tells the peer: an unfinished
//! [`Sender`] resets its direction (QUIC would otherwise end it as if all had been said), an unfinished
//! [`Receiver`] asks the peer to stop. So a request that fails anywhere ends everywhere, by `Drop` alone.

use std::future::poll_fn;
use std::pin::pin;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use bytes::Bytes;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::{ConnectionLost, RecvError, SendError, StreamCode};
use crate::frame::{self, Decoder, Frame, RawFrame};
use crate::meter::{LinkMeter, Writing};
use crate::shaper::{LinkShaper, PIECE_BYTES};

/// Pieces fetched from QUIC at once; about one datagram each.
const READ_BATCH: usize = 32;

/// One bidirectional stream. Take it apart to use both halves at once.
///
/// The peer learns of a stream only with its first bytes: whoever opens must send first.
#[derive(Debug)]
pub struct Stream {
    /// Frames to the peer.
    pub sender: Sender,
    /// Frames from the peer.
    pub receiver: Receiver,
}

impl Stream {
    pub(crate) fn new(
        (send, receive): (quinn::SendStream, quinn::RecvStream),
        link: LinkShaper,
        meter: LinkMeter,
        write_timeout: Duration,
    ) -> Self {
        Self { sender: Sender::new(send, link, meter, write_timeout), receiver: Receiver::new(receive) }
    }
}

/// Sends frames. Dropped before [`Sender::finish`], it resets the stream with [`StreamCode::CANCELLED`].
#[derive(Debug)]
pub struct Sender {
    stream: quinn::SendStream,
    link: LinkShaper,
    meter: LinkMeter,
    write_timeout: Duration,
    written: u64,
    state: SendState,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum SendState {
    /// Between frames.
    Open,
    /// A frame was begun; only a send that was cancelled or failed leaves it so.
    MidFrame,
    /// Finished or reset.
    Closed,
}

/// How the sending direction of a stream ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SendEnd {
    /// It was finished and the peer's QUIC has acknowledged every byte; or it was reset here.
    Delivered,
    /// The peer wants no more.
    Stopped {
        /// Its reason.
        code: StreamCode,
    },
    /// The connection is gone.
    ConnectionLost(ConnectionLost),
}

impl Sender {
    fn new(stream: quinn::SendStream, link: LinkShaper, meter: LinkMeter, write_timeout: Duration) -> Self {
        Self { stream, link, meter, write_timeout, written: 0, state: SendState::Open }
    }

    /// Sends one message. A future dropped half-way leaves the stream closed for sending.
    ///
    /// # Errors
    /// [`SendError::Frame`] above [`frame::MAX_MESSAGE_BYTES`], with nothing written; [`SendError::Stalled`]
    /// if the receiver took nothing for the write timeout; the others as they say.
    pub async fn send(&mut self, message: &impl Serialize) -> Result<(), SendError> {
        let bytes = frame::encode_message(message)?;
        self.begin_frame()?;
        self.write(bytes, None).await?;
        self.state = SendState::Open;
        Ok(())
    }

    /// Sends one data frame, without copying the payload. A future dropped half-way leaves the stream closed.
    ///
    /// # Errors
    /// As [`Sender::send`], with [`frame::MAX_DATA_BYTES`] as the limit.
    pub async fn send_data(&mut self, payload: Bytes) -> Result<(), SendError> {
        let header = frame::data_header(payload.len())?;
        self.begin_frame()?;
        let writing = self.meter.writing(self.link.gbps().is_some());
        self.write(Bytes::copy_from_slice(&header), None).await?;
        self.write(payload, Some(&writing)).await?;
        writing.finish();
        self.state = SendState::Open;
        Ok(())
    }

    /// Says that no more frames follow. Delivery goes on in the background for as long as the connection lives;
    /// see [`Sender::stopped`] to wait for it.
    ///
    /// # Errors
    /// [`SendError::Closed`] after a send that failed or was cancelled.
    pub fn finish(&mut self) -> Result<(), SendError> {
        if self.state != SendState::Open {
            return Err(SendError::Closed);
        }
        self.state = SendState::Closed;
        // A stream that the peer has stopped is no error here; `stopped` tells about that.
        self.stream.finish().map_err(|_closed| SendError::Closed)
    }

    /// Ends the stream with everything delivered, or after `deadline` without: for the last words of a task with which the connection may
    /// close.
    ///
    /// # Errors
    /// As [`Sender::finish`], and when the peer wants no more or is gone. Whoever only takes long may have everything, or get it yet.
    pub async fn deliver(&mut self, deadline: Duration) -> Result<(), SendError> {
        self.finish()?;
        match tokio::time::timeout(deadline, self.stopped()).await {
            Ok(SendEnd::Delivered) | Err(_) => Ok(()),
            Ok(SendEnd::Stopped { code }) => Err(SendError::Stopped { code }),
            Ok(SendEnd::ConnectionLost(lost)) => Err(SendError::ConnectionLost(lost)),
        }
    }

    /// Drops everything that was not delivered yet and tells the peer why.
    pub fn reset(&mut self, code: StreamCode) {
        if self.state != SendState::Closed {
            self.state = SendState::Closed;
            // Fails only when the peer has stopped the stream already, and then there is nobody to tell.
            let _ = self.stream.reset(code.to_wire());
        }
    }

    /// Every byte written to the stream, frame headers included.
    pub fn bytes_written(&self) -> u64 {
        self.written
    }

    /// Gigabits (10^9 bits) of UDP payload per second that the path to the peer takes, measured over all streams of the
    /// connection while data frames were waiting to be sent; none before there was enough of that.
    pub fn link_gbps(&self) -> Option<f64> {
        self.meter.bytes_per_second().map(|speed| speed * 8.0 / 1e9)
    }

    /// Resolves when the peer wants no more, when everything was delivered after [`Sender::finish`], or when the
    /// connection is gone. Does not borrow the sender, so it can be awaited beside a send.
    pub fn stopped(&self) -> impl Future<Output = SendEnd> + Send + 'static {
        let stopped = self.stream.stopped();
        async move {
            match stopped.await {
                Ok(None) => SendEnd::Delivered,
                Ok(Some(code)) => SendEnd::Stopped { code: StreamCode::from_wire(code) },
                Err(quinn::StoppedError::ConnectionLost(lost)) => SendEnd::ConnectionLost(lost.into()),
                Err(quinn::StoppedError::ZeroRttRejected) => SendEnd::ConnectionLost(ConnectionLost::Reset),
            }
        }
    }

    fn begin_frame(&mut self) -> Result<(), SendError> {
        if self.state != SendState::Open {
            return Err(SendError::Closed);
        }
        self.state = SendState::MidFrame;
        Ok(())
    }

    async fn write(&mut self, mut bytes: Bytes, measured: Option<&Writing>) -> Result<(), SendError> {
        while !bytes.is_empty() {
            let piece = bytes.split_to(bytes.len().min(PIECE_BYTES));
            let length = piece.len();
            self.link.pass(length).await;
            match tokio::time::timeout(self.write_timeout, self.stream.write_chunk(piece)).await {
                Ok(outcome) => outcome.map_err(send_error)?,
                Err(_elapsed) => return Err(SendError::Stalled { after: self.write_timeout }),
            }
            self.written += length as u64;
            if let Some(writing) = measured {
                writing.wrote(length);
            }
        }
        Ok(())
    }
}

impl Drop for Sender {
    fn drop(&mut self) {
        self.reset(StreamCode::CANCELLED);
    }
}

fn send_error(error: quinn::WriteError) -> SendError {
    match error {
        quinn::WriteError::Stopped(code) => SendError::Stopped { code: StreamCode::from_wire(code) },
        quinn::WriteError::ConnectionLost(lost) => SendError::ConnectionLost(lost.into()),
        quinn::WriteError::ClosedStream | quinn::WriteError::ZeroRttRejected => SendError::Closed,
    }
}

/// Receives frames. Dropped before [`Frame::End`], it stops the sender with [`StreamCode::CANCELLED`].
#[derive(Debug)]
pub struct Receiver {
    stream: quinn::RecvStream,
    decoder: Decoder,
    read: u64,
    clock: FrameClock,
    ended: bool,
    closed: bool,
}

impl Receiver {
    fn new(stream: quinn::RecvStream) -> Self {
        let clock = FrameClock::new();
        Self { stream, decoder: Decoder::default(), read: 0, clock, ended: false, closed: false }
    }

    /// The next frame, or [`Frame::End`] (again and again) once the sender has finished. No bytes are lost when
    /// the future is dropped or the deadline passes: the next call goes on where this one stopped.
    ///
    /// # Errors
    /// [`RecvError::Timeout`] if no whole frame was there within `deadline`. After any other error the stream is
    /// stopped: with [`StreamCode::MALFORMED`] if the bytes were at fault.
    pub async fn recv<M: DeserializeOwned>(&mut self, deadline: Duration) -> Result<Frame<M>, RecvError> {
        if self.closed {
            return Err(RecvError::Closed);
        }
        let outcome = match tokio::time::timeout(deadline, self.next_frame()).await {
            Ok(outcome) => outcome.and_then(|raw| parse(raw).map_err(RecvError::from)),
            Err(_elapsed) => return Err(RecvError::Timeout { after: deadline }),
        };
        if outcome.is_err() {
            self.stop(StreamCode::MALFORMED);
        }
        outcome
    }

    /// The next frame, which has to be a message.
    ///
    /// # Errors
    /// As [`Receiver::recv`]; [`RecvError::Unexpected`] for data or the end.
    pub async fn recv_message<M: DeserializeOwned>(&mut self, deadline: Duration) -> Result<M, RecvError> {
        let got = match self.recv(deadline).await? {
            Frame::Message(message) => return Ok(message),
            Frame::Data(_) => "data",
            Frame::End => "the end of the stream",
        };
        self.stop(StreamCode::MALFORMED);
        Err(RecvError::Unexpected { expected: "a message", got })
    }

    /// Tells the sender that no more is wanted, and why.
    pub fn stop(&mut self, code: StreamCode) {
        if !self.ended && !self.closed {
            // Fails only when the stream is over, and then there is nothing to stop.
            let _ = self.stream.stop(code.to_wire());
        }
        self.closed = true;
    }

    /// When bytes were last read from the stream; before the first ones, when it was opened.
    pub fn last_read(&self) -> Instant {
        self.clock.last_read
    }

    /// Every byte read from the stream, frame headers included.
    pub fn bytes_read(&self) -> u64 {
        self.read
    }

    /// Time during which a frame was arriving (its first header byte until its last payload byte), summed over
    /// frames. Truthful only while somebody waits in [`Receiver::recv`]: bytes that arrive while the caller is busy
    /// wait in QUIC's buffers and cost no time here. A frame that fits one read counts as zero.
    pub fn receive_time(&self) -> Duration {
        self.clock.total
    }

    /// The next frame, or none at the end of the stream. Safe to drop at any await.
    async fn next_frame(&mut self) -> Result<Option<RawFrame>, RecvError> {
        loop {
            if let Some(frame) = self.decoder.next_frame()? {
                self.clock.completed();
                return Ok(Some(frame));
            }
            if self.ended {
                self.decoder.end()?;
                return Ok(None);
            }
            if self.decoder.is_mid_frame() {
                self.clock.began();
            }
            self.read_some().await?;
        }
    }

    async fn read_some(&mut self) -> Result<(), RecvError> {
        poll_fn(|context| self.poll_some(context)).await.map_err(recv_error)
    }

    /// The pieces are there for one poll: as part of a future they would be a kilobyte of every stream that waits.
    fn poll_some(&mut self, context: &mut Context<'_>) -> Poll<Result<(), quinn::ReadError>> {
        let mut pieces = [const { Bytes::new() }; READ_BATCH];
        let count = ready!(pin!(self.stream.read_chunks(&mut pieces)).poll(context))?;
        self.clock.last_read = Instant::now();
        self.ended = count.is_none();
        for piece in pieces.into_iter().take(count.unwrap_or(0)) {
            self.read += piece.len() as u64;
            self.decoder.push(piece);
        }
        Poll::Ready(Ok(()))
    }
}

impl Drop for Receiver {
    fn drop(&mut self) {
        self.stop(StreamCode::CANCELLED);
    }
}

fn parse<M: DeserializeOwned>(raw: Option<RawFrame>) -> Result<Frame<M>, frame::FrameError> {
    Ok(match raw {
        Some(RawFrame::Message(payload)) => Frame::Message(frame::decode_message(&payload)?),
        Some(RawFrame::Data(payload)) => Frame::Data(payload),
        None => Frame::End,
    })
}

fn recv_error(error: quinn::ReadError) -> RecvError {
    match error {
        quinn::ReadError::Reset(code) => RecvError::Reset { code: StreamCode::from_wire(code) },
        quinn::ReadError::ConnectionLost(lost) => RecvError::ConnectionLost(lost.into()),
        quinn::ReadError::ClosedStream | quinn::ReadError::ZeroRttRejected => RecvError::Closed,
        quinn::ReadError::IllegalOrderedRead => RecvError::Malformed { reason: error.to_string() },
    }
}

/// Adds up the time during which frames were arriving, from the instants of the reads that brought their bytes.
#[derive(Debug)]
struct FrameClock {
    last_read: Instant,
    begun: Option<Instant>,
    total: Duration,
}

impl FrameClock {
    fn new() -> Self {
        Self { last_read: Instant::now(), begun: None, total: Duration::ZERO }
    }

    /// A frame is incomplete after the last read; that read brought its first byte, unless an earlier one did.
    fn began(&mut self) {
        self.begun.get_or_insert(self.last_read);
    }

    /// The last read completed a frame.
    fn completed(&mut self) {
        if let Some(begun) = self.begun.take() {
            self.total += self.last_read - begun;
        }
    }
}
