//! The binary `kvferry`; everything is in the library. Under the name of one of the cluster's programs it is that program, so that an
//! image needs the code that they share once, and three links.

use std::process::ExitCode;

fn main() -> ExitCode {
    match service::process::program().as_str() {
        "router" => router::command::main(),
        "prefill-node" => prefill_node::command::main(),
        "decode-node" => decode_node::command::main(),
        _ => kvferry::command::main(),
    }
}
