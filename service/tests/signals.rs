//! Real signals, in a process of their own: this file's only test.
#![cfg(unix)]

use std::process::Command;
use std::time::Duration;

use service::{Drained, Shutdown};

const SOON: Duration = Duration::from_secs(10);

#[tokio::test]
async fn the_first_signal_drains_and_the_second_ends() {
    let shutdown = Shutdown::on_signals(Duration::from_secs(3600)).unwrap();
    let signal = |name: &str| {
        let me = std::process::id().to_string();
        assert!(Command::new("kill").args(["-s", name, &me]).status().unwrap().success());
    };
    shutdown.spawn(std::future::pending::<()>());
    signal("TERM");
    tokio::time::timeout(SOON, shutdown.draining()).await.unwrap();
    let finished = tokio::spawn({
        let shutdown = shutdown.clone();
        async move { shutdown.finished().await }
    });
    signal("INT");
    assert_eq!(tokio::time::timeout(SOON, finished).await.unwrap().unwrap(), Drained::Cut { tasks: 1 });
}
