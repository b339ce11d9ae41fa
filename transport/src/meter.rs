//! How fast the path to a peer is: measured where the bytes leave, and only while some were waiting to.
//!
//! A receiver cannot tell: bytes that arrive while it works wait in QUIC's buffers and seem to take no time, and a sender
//! that has nothing to say yet looks like a slow link. The sender knows when it has something to say. So the clock
//! runs from the beginning of a data frame until QUIC has put the last one on the wire (its count of
//! UDP bytes sent), over all streams of the connection together, and stops while the *peer* holds the sender back
//! (QUIC says so: blocked by flow control) and until QUIC has caught up, which is the reader's speed and not the link's.
//!
//! Time on the clock is cut into windows. A simulated link lets a sender that woke late catch up, so windows
//! are several times as long as that; congestion control needs its round trips to find the speed, so the upper quartile
//! of the last windows is taken.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::shaper;

/// A window is full after so long.
const WINDOW: Duration = Duration::from_millis(100);
/// Shorter ones only say how fast the path is at least.
const SHORTEST: Duration = Duration::from_micros(500);
/// A later window of a run that is shorter may be nothing but a sender that catches up, and says nothing.
const SHORTEST_LATER: Duration = Duration::from_millis(20);
/// Nor do ones with fewer bytes.
const FEWEST_BYTES: u64 = 48 * 1024;
/// Windows remembered.
const WINDOWS: usize = 16;
/// Time between looks at QUIC's counters while nobody writes.
const LOOK: Duration = Duration::from_millis(1);
/// Frames with a shorter gap between them follow each other.
const GAP: Duration = Duration::from_micros(500);
/// The same on a simulated link, which lets the second one catch up on the gap.
const SIMULATED_GAP: Duration = shaper::REST;
/// Bytes that were written and not yet sent count as gone up to here, since QUIC is always a little behind.
const WAITING_BYTES: u64 = 32 * 1024;
/// Without progress for so long, what is left will not be sent: its stream was reset.
const GIVE_UP: Duration = Duration::from_secs(1);

/// Measures one connection; clones share it.
#[derive(Debug, Clone)]
pub(crate) struct LinkMeter {
    connection: quinn::Connection,
    clock: Arc<Mutex<Clock>>,
}

/// A data frame that is being written.
#[derive(Debug)]
pub(crate) struct Writing {
    meter: LinkMeter,
    is_finished: bool,
}

impl LinkMeter {
    pub(crate) fn new(connection: quinn::Connection) -> Self {
        Self { connection, clock: Arc::default() }
    }

    /// Bytes of UDP payload per second that the path takes, as far as it has been measured.
    pub(crate) fn bytes_per_second(&self) -> Option<f64> {
        self.clock().estimate()
    }

    /// To be held while a data frame is written, perhaps through a simulated link.
    pub(crate) fn writing(&self, is_simulated: bool) -> Writing {
        let mut clock = self.clock();
        clock.begin(self.counters(), if is_simulated { SIMULATED_GAP } else { GAP });
        Writing { meter: self.clone(), is_finished: false }
    }

    fn clock(&self) -> MutexGuard<'_, Clock> {
        self.clock.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// To be asked while the clock is held, so that it never runs backwards.
    fn counters(&self) -> Counters {
        let stats = self.connection.stats();
        let blocked = stats.frame_tx.data_blocked + stats.frame_tx.stream_data_blocked;
        Counters { at: Instant::now(), sent: stats.udp_tx.bytes, blocked }
    }

    fn look_on(&self) -> bool {
        let mut clock = self.clock();
        clock.watch(self.counters())
    }

    /// Looks on until what was written has left, or will not any more. One task at a time.
    async fn watch(self) {
        loop {
            tokio::time::sleep(LOOK).await;
            if !self.look_on() || self.connection.close_reason().is_some() {
                return;
            }
        }
    }
}

impl Writing {
    /// A piece of so many bytes went to QUIC. It counts as gone when the next one goes: a simulated link lets a piece
    /// through at the beginning of its time.
    pub(crate) fn wrote(&self, bytes: usize) {
        let mut clock = self.meter.clock();
        clock.look(self.meter.counters());
        clock.written += bytes as u64;
    }

    /// The whole frame went to QUIC; what it still holds is watched.
    pub(crate) fn finish(mut self) {
        self.is_finished = true;
        let mut clock = self.meter.clock();
        if clock.is_waiting(self.meter.counters()) && !std::mem::replace(&mut clock.is_watched, true) {
            tokio::spawn(self.meter.clone().watch());
        }
    }
}

impl Drop for Writing {
    fn drop(&mut self) {
        let mut clock = self.meter.clock();
        clock.writers -= 1;
        if !self.is_finished {
            clock.run = None; // its stream is reset, and what waited is gone
        }
    }
}

/// What QUIC has counted at an instant.
#[derive(Debug, Clone, Copy)]
struct Counters {
    at: Instant,
    /// UDP payload bytes sent.
    sent: u64,
    /// Times that the peer's flow control held something back.
    blocked: u64,
}

/// A stretch of time during which something was always waiting to be sent.
#[derive(Debug, Clone, Copy)]
struct Run {
    /// Where the present window begins.
    start: Mark,
    last: Mark,
    /// The last look that saw bytes go.
    moved: Instant,
    /// Bytes written and sent when the run began.
    base: (u64, u64),
    /// What [`Counters::blocked`] was at the last look.
    blocked: u64,
    /// The peer holds the sender back: nothing counts until QUIC is no longer behind.
    is_held: bool,
}

/// Bytes of a run that had gone at an instant.
#[derive(Debug, Clone, Copy)]
struct Mark {
    at: Instant,
    gone: u64,
}

impl Run {
    fn new(written: u64, now: Counters) -> Self {
        let start = Mark { at: now.at, gone: 0 };
        let base = (written, now.sent);
        Self { start, last: start, moved: now.at, base, blocked: now.blocked, is_held: false }
    }

    fn mark(&self, written: u64, now: Counters) -> Mark {
        let (written, sent) = (written - self.base.0, now.sent - self.base.1);
        Mark { at: now.at, gone: written.min(sent + WAITING_BYTES) }
    }
}

/// Speed over a stretch of a run.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Window {
    bytes_per_second: f64,
    /// All had left some time before the look that ended the window, so the path is at least so fast.
    is_floor: bool,
}

impl Window {
    fn between(start: Mark, end: Mark, is_floor: bool) -> Option<Self> {
        let (bytes, time) = (end.gone - start.gone, end.at.saturating_duration_since(start.at));
        let bytes_per_second = bytes as f64 / time.max(SHORTEST).as_secs_f64();
        let is_floor = is_floor || time < SHORTEST;
        let counts = bytes >= FEWEST_BYTES && (start.gone == 0 || time >= SHORTEST_LATER);
        counts.then_some(Self { bytes_per_second, is_floor })
    }
}

/// The account of one connection, told what was counted when.
#[derive(Debug, Default)]
struct Clock {
    /// Frames being written.
    writers: u32,
    /// Bytes of data frames that went to QUIC.
    written: u64,
    run: Option<Run>,
    is_watched: bool,
    windows: VecDeque<Window>,
}

impl Clock {
    /// A frame begins: if the last one left a gap, its run is over and another one begins.
    fn begin(&mut self, now: Counters, gap: Duration) {
        let follows = |run: Run| now.at.saturating_duration_since(run.last.at) < gap;
        if self.writers == 0 && !self.run.is_some_and(follows) && !self.is_waiting(now) {
            let window = self.open_window();
            self.run = None;
            self.remember(window);
        }
        self.run.get_or_insert_with(|| Run::new(self.written, now));
        self.writers += 1;
    }

    /// Something was waiting up to now.
    fn look(&mut self, now: Counters) {
        let is_behind = self.is_waiting(now);
        let Some(run) = &mut self.run else { return };
        let mark = run.mark(self.written, now);
        if mark.gone > run.last.gone {
            run.moved = now.at;
        }
        if now.blocked != run.blocked {
            run.is_held = true;
        } else if run.is_held && !is_behind {
            (run.is_held, run.start) = (false, mark);
        }
        (run.last, run.blocked) = (mark, now.blocked);
        if !run.is_held && mark.at.saturating_duration_since(run.start.at) >= WINDOW {
            let window = Window::between(run.start, mark, false);
            run.start = mark;
            self.remember(window);
        }
    }

    /// A look while nobody writes; says whether to go on.
    fn watch(&mut self, now: Counters) -> bool {
        let stuck = |run: Run| now.at.saturating_duration_since(run.moved) > GIVE_UP;
        if self.writers == 0 && self.is_waiting(now) && !self.run.is_some_and(stuck) {
            self.look(now);
            return true;
        }
        self.is_watched = false;
        if self.writers == 0 && self.is_waiting(now) {
            self.run = None; // will not be sent: its stream was reset
        } else if self.writers == 0 {
            self.drained(now);
        }
        false
    }

    /// Everything has left since the last look: where that is all that is known of the run, it is a floor.
    fn drained(&mut self, now: Counters) {
        let Some(run) = self.run.take() else { return };
        if !run.is_held && now.blocked == run.blocked {
            let exact = Window::between(run.start, run.last, false);
            let mark = run.mark(self.written, now);
            self.remember(exact.or_else(|| Window::between(run.start, mark, true)));
        }
    }

    /// The window that is not full yet.
    fn open_window(&self) -> Option<Window> {
        let run = self.run.filter(|run| !run.is_held)?;
        Window::between(run.start, run.last, false)
    }

    /// Whether bytes that were written have not left.
    fn is_waiting(&self, now: Counters) -> bool {
        let waiting = |run: Run| (self.written - run.base.0).saturating_sub(now.sent - run.base.1);
        self.run.is_some_and(|run| waiting(run) > WAITING_BYTES)
    }

    fn remember(&mut self, window: Option<Window>) {
        self.windows.extend(window);
        if self.windows.len() > WINDOWS {
            self.windows.pop_front();
        }
    }

    /// The upper quartile of what was seen exactly, or the fastest floor, if that is faster.
    fn estimate(&self) -> Option<f64> {
        let windows = self.windows.iter().copied().chain(self.open_window());
        let (floors, exact): (Vec<_>, Vec<_>) = windows.partition(|window| window.is_floor);
        let speeds = |windows: Vec<Window>| {
            let mut speeds: Vec<_> = windows.into_iter().map(|window| window.bytes_per_second).collect();
            speeds.sort_by(f64::total_cmp);
            speeds
        };
        let (exact, floors) = (speeds(exact), speeds(floors));
        let quartile = exact.get(exact.len().saturating_sub(1) * 3 / 4).copied();
        quartile.into_iter().chain(floors.last().copied()).reduce(f64::max)
    }
}

#[cfg(test)]
#[path = "meter_tests.rs"]
mod tests;
