//! The binary `decode-node`; everything is in the library, where it is compiled once.

use std::process::ExitCode;

fn main() -> ExitCode {
    decode_node::command::main()
}
