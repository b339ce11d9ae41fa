//! How a process ends, on a clock that the tests move.

use std::time::Duration;

use service::{Drained, Shutdown};
use tokio::sync::oneshot;
use tokio::time::{Instant, sleep};

const GRACE: Duration = Duration::from_secs(30);

#[tokio::test(start_paused = true)]
async fn a_drain_waits_for_what_runs() {
    let shutdown = Shutdown::new(GRACE);
    let task = shutdown.spawn(async {
        sleep(Duration::from_secs(10)).await;
        "answered"
    });
    let begin = Instant::now();
    shutdown.drain();
    assert_eq!(shutdown.finished().await, Drained::Complete);
    assert_eq!(task.await.unwrap(), Some("answered"));
    assert_eq!(begin.elapsed().as_secs(), 10);
}

#[tokio::test(start_paused = true)]
async fn the_grace_period_ends_what_hangs() {
    let shutdown = Shutdown::new(GRACE);
    let (held, dropped) = oneshot::channel::<()>();
    shutdown.spawn(async move {
        let _held = held;
        std::future::pending::<()>().await;
    });
    let begin = Instant::now();
    shutdown.drain();
    assert_eq!(shutdown.finished().await, Drained::Cut { tasks: 1 });
    assert_eq!(begin.elapsed().as_secs(), GRACE.as_secs());
    assert!(dropped.await.is_err(), "the task's resources must be dropped");
}

#[tokio::test(start_paused = true)]
async fn ending_cuts_the_grace_period_short() {
    let shutdown = Shutdown::new(GRACE);
    shutdown.spawn(std::future::pending::<()>());
    shutdown.drain();
    let second = shutdown.clone();
    tokio::spawn(async move {
        sleep(Duration::from_secs(3)).await;
        second.end();
    });
    let begin = Instant::now();
    assert_eq!(shutdown.finished().await, Drained::Cut { tasks: 1 });
    assert_eq!(begin.elapsed().as_secs(), 3);
}

#[tokio::test(start_paused = true)]
async fn loops_hear_of_the_drain_before_the_end() {
    let shutdown = Shutdown::new(GRACE);
    assert!(!shutdown.is_draining());
    let heard = tokio::spawn(shutdown.draining());
    shutdown.drain();
    heard.await.unwrap();
    assert!(shutdown.is_draining());
    assert_eq!(shutdown.finished().await, Drained::Complete);
    shutdown.ended().await;
}
