//! Standard output for results, and the sign on standard error that work goes on. A reader that has had enough (`| head`) ends the command quietly.

use std::fmt::Display;
use std::io::{ErrorKind, Write, stdout};
use std::time::Duration;

use indicatif::ProgressBar;

/// Prints a line.
///
/// # Errors
/// When the output cannot be written. If nobody reads it any more, the process ends here, as successful.
pub fn line(text: impl Display) -> anyhow::Result<()> {
    match writeln!(stdout().lock(), "{text}") {
        Err(error) if error.kind() == ErrorKind::BrokenPipe => std::process::exit(0),
        outcome => Ok(outcome?),
    }
}

/// Turns beside `message` until it is finished and cleared.
pub(crate) fn spinner(message: &str) -> ProgressBar {
    let spinner = ProgressBar::new_spinner().with_message(message.to_owned());
    spinner.enable_steady_tick(Duration::from_millis(100));
    spinner
}
