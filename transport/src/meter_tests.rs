//! The account, told made-up counts.

use super::*;

/// A link of 1 byte per microsecond (8 Mb/s), with a clock that the test moves.
struct Link {
    clock: Clock,
    start: Instant,
    now: Counters,
}

const PIECE: u64 = 16 * 1024;

impl Link {
    fn new() -> Self {
        let start = Instant::now();
        Self { clock: Clock::default(), start, now: Counters { at: start, sent: 1000, blocked: 0 } }
    }

    fn wait(&mut self, micros: u64) {
        self.now.at += Duration::from_micros(micros);
    }

    /// Writes a frame piece by piece, each when the one before has left.
    fn write(&mut self, bytes: u64) {
        self.clock.begin(self.now, GAP);
        for _ in 0..bytes / PIECE {
            self.piece();
            self.wait(PIECE);
            self.now.sent += PIECE;
        }
        self.clock.writers -= 1;
    }

    fn piece(&mut self) {
        self.clock.look(self.now);
        self.clock.written += PIECE;
    }

    fn speed(&self) -> f64 {
        self.clock.estimate().unwrap() / 1e6
    }
}

#[test]
fn a_steady_sender_is_measured_exactly() {
    let mut link = Link::new();
    assert_eq!(link.clock.estimate(), None);
    link.write(100 * PIECE);
    assert!((link.speed() - 1.0).abs() < 0.01, "{}", link.speed());
    assert!(link.now.at.duration_since(link.start) > 10 * WINDOW);
}

#[test]
fn pauses_of_the_producer_do_not_count() {
    let mut link = Link::new();
    for _ in 0..10 {
        link.write(4 * PIECE);
        link.wait(500_000);
    }
    assert!((link.speed() - 1.0).abs() < 0.01, "{}", link.speed());
}

#[test]
fn what_lies_in_quics_buffers_is_waiting_too() {
    let mut link = Link::new();
    link.clock.begin(link.now, GAP);
    link.piece();
    link.clock.written += 40 * PIECE;
    link.clock.writers -= 1;
    let mut looks = 0;
    loop {
        link.wait(PIECE);
        link.now.sent += PIECE;
        looks += 1;
        if !link.clock.watch(link.now) {
            break;
        }
    }
    assert!((38..=41).contains(&looks), "watched for {looks} pieces of 41");
    // The first bytes count as gone when they are written.
    assert!((1.0..1.06).contains(&link.speed()), "{}", link.speed());
}

#[test]
fn what_had_left_before_anybody_looked_is_a_floor() {
    let mut link = Link::new();
    link.clock.begin(link.now, GAP);
    link.piece();
    link.clock.written += 9 * PIECE;
    link.clock.writers -= 1;
    link.wait(1000);
    link.now.sent += 10 * PIECE;
    assert!(!link.clock.watch(link.now));
    assert!((link.speed() - 10.0 * 16.384).abs() < 0.01, "{}", link.speed());
    // A measured window below the floor does not lower it, one above does not need it.
    link.write(100 * PIECE);
    assert!(link.speed() > 100.0);
}

#[test]
fn a_peer_that_holds_the_sender_back_does_not_make_the_link_slow() {
    let mut link = Link::new();
    link.write(30 * PIECE);
    link.clock.begin(link.now, GAP);
    // The reader takes a second for what the link carries in a tenth of it; QUIC keeps the rest and is told once.
    for piece in 0..60 {
        link.piece();
        link.wait(100_000);
        link.now.blocked += u64::from(piece == 3);
        link.now.sent += PIECE / 10;
    }
    // What has gathered goes faster than the link ever was, as behind a simulated link.
    for _ in 0..54 {
        link.clock.look(link.now);
        link.wait(10);
        link.now.sent += PIECE;
    }
    link.clock.writers -= 1;
    assert!((link.speed() - 1.0).abs() < 0.01, "{}", link.speed());
    // Once it has gone, the clock runs again.
    link.write(30 * PIECE);
    link.write(300 * PIECE);
    assert!((link.speed() - 1.0).abs() < 0.05, "{}", link.speed());
    assert!(link.clock.windows.len() > 10);
}

#[test]
fn bytes_of_a_stream_that_was_reset_are_not_waited_for() {
    let mut link = Link::new();
    link.clock.begin(link.now, GAP);
    link.piece();
    link.clock.written += 100 * PIECE;
    link.clock.writers -= 1;
    let mut looks = 0;
    while link.clock.watch(link.now) {
        link.wait(10_000);
        looks += 1;
        assert!(looks < 200, "watched for ever");
    }
    assert!(link.clock.run.is_none() && link.clock.estimate().is_none());
}
