//! The binary `kvferry`; everything is in the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    kvferry::command::main()
}
