//! Standard output for results. A reader that has had enough (`| head`) ends the command quietly.

use std::fmt::Display;
use std::io::{ErrorKind, Write, stdout};

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
