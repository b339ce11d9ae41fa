//! The binary `prefill-node`; everything is in the library, where it is compiled once.

use std::process::ExitCode;

fn main() -> ExitCode {
    prefill_node::command::main()
}
