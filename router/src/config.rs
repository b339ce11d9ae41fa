//! Flags of the router. Times are seconds and may be fractions.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use transport::message::Role;

use crate::model::RouterModel;
use crate::policy::{Balance, LocalPrefill, PrefillFailure, Rules};

/// What a router can be told, but for its model and its certificates.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Router")]
pub struct Config {
    /// Address for clients: the OpenAI API, /health, /live, /ready and /metrics over HTTP.
    #[arg(long, env = "KVFERRY_HTTP", default_value = "0.0.0.0:8080")]
    pub http: SocketAddr,
    /// Address for nodes, which dial in over QUIC.
    #[arg(long, env = "KVFERRY_QUIC", default_value = "0.0.0.0:8081")]
    pub quic: SocketAddr,
    /// Sequences served at once; requests beyond are answered with 429.
    #[arg(long, visible_alias = "max-num-seqs", env = "KVFERRY_MAX_REQUESTS", default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..=65_536))]
    pub max_requests: u32,
    /// Longest request body in bytes; longer ones are answered with 413.
    #[arg(long, env = "KVFERRY_MAX_BODY_BYTES", default_value_t = 4 << 20, value_parser = clap::value_parser!(u32).range(1024..))]
    pub max_body_bytes: u32,
    /// Longest prompt plus generation in tokens, where it is to be less than the model's own context.
    #[arg(long, env = "KVFERRY_MAX_MODEL_LEN", value_parser = clap::value_parser!(u32).range(2..))]
    pub max_model_len: Option<u32>,
    /// Tokens generated at most for a chat request that does not say; decode nodes set memory aside for all of them.
    #[arg(long, env = "KVFERRY_CHAT_MAX_TOKENS", default_value_t = 1024, value_parser = clap::value_parser!(u32).range(1..))]
    pub chat_max_tokens: u32,
    /// File with the API keys that clients may use, one a line; without it nobody is asked for one.
    #[arg(long, env = "KVFERRY_API_KEY_FILE")]
    pub api_key_file: Option<PathBuf>,
    /// Certificate chain in PEM with which the API is served over TLS; needs --tls-key.
    #[arg(long, env = "KVFERRY_TLS_CERT", requires = "tls_key")]
    pub tls_cert: Option<PathBuf>,
    /// Private key in PEM of --tls-cert.
    #[arg(long, env = "KVFERRY_TLS_KEY", requires = "tls_cert")]
    pub tls_key: Option<PathBuf>,
    /// Web pages from these origins may call the API; "*" is all, "" none but the router's own.
    #[arg(long, env = "KVFERRY_ALLOWED_ORIGINS", default_value = "*", value_delimiter = ',')]
    pub allowed_origins: Vec<String>,
    /// When decode nodes run prompts themselves: while no prefill node can take them and, for kv_codec "auto", where that
    /// is quicker (auto), never, or always.
    #[arg(long, env = "KVFERRY_LOCAL_PREFILL", value_enum, default_value_t)]
    pub local_prefill: LocalPrefill,
    /// What becomes of a request whose prefill has failed on the nodes tried: an error, or a prompt pass on a decode node.
    #[arg(long, env = "KVFERRY_PREFILL_FAILURE", value_enum, default_value_t)]
    pub prefill_failure: PrefillFailure,
    /// Take and answer kv_transfer_params as vLLM does, so that proxies for its prefill and decode instances can use this cluster
    /// as either; otherwise the field is ignored.
    #[arg(long, env = "KVFERRY_KV_TRANSFER_PARAMS")]
    pub kv_transfer_params: bool,
    /// The kind of the one node that this router stands in front of, where it is that node's own face; no flag asks for it.
    #[arg(skip)]
    pub face_of: Option<Role>,
    /// How the least loaded node is found: among all, or as the better of two at random, for several routers side by side.
    #[arg(long, env = "KVFERRY_BALANCE", value_enum, default_value_t)]
    pub balance: Balance,
    /// Send prompts to the prefill node that has the cache of their beginning, where that has them done sooner.
    #[arg(long, env = "KVFERRY_PREFIX_AWARE", default_value_t = true, action = clap::ArgAction::Set)]
    pub prefix_aware: bool,
    /// Other nodes tried, before the first token only, when one is busy, draining, or cannot be reached.
    #[arg(long, env = "KVFERRY_RETRIES", default_value_t = 1, value_parser = clap::value_parser!(u32).range(..=16))]
    pub retries: u32,
    /// How long a node may take to accept a request.
    #[arg(long, env = "KVFERRY_RESERVE_SECONDS", default_value = "5", value_parser = seconds)]
    pub reserve_seconds: Duration,
    /// How long prompt and transfer may take, from the reservation to the first token.
    #[arg(long, env = "KVFERRY_FIRST_TOKEN_SECONDS", default_value = "120", value_parser = seconds)]
    pub first_token_seconds: Duration,
    /// How long each further token may take.
    #[arg(long, env = "KVFERRY_NEXT_TOKEN_SECONDS", default_value = "30", value_parser = seconds)]
    pub next_token_seconds: Duration,
    /// How long a client may take to send its body, or to take the next token.
    #[arg(long, env = "KVFERRY_CLIENT_SECONDS", default_value = "30", value_parser = seconds)]
    pub client_seconds: Duration,
    /// Nodes send a heartbeat every second; one that is silent for so long is dropped.
    #[arg(long, env = "KVFERRY_SILENCE_SECONDS", default_value = "3.5", value_parser = seconds)]
    pub silence_seconds: Duration,
}

impl Config {
    /// Settings of a router inside another process: loopback, ports chosen by the system, the rest at its default.
    #[must_use]
    pub fn local() -> Self {
        let any_port = SocketAddr::from(([127, 0, 0, 1], 0));
        Self {
            http: any_port,
            quic: any_port,
            max_requests: 256,
            max_body_bytes: 4 << 20,
            max_model_len: None,
            chat_max_tokens: 1024,
            api_key_file: None,
            tls_cert: None,
            tls_key: None,
            allowed_origins: vec!["*".into()],
            local_prefill: LocalPrefill::default(),
            prefill_failure: PrefillFailure::default(),
            kv_transfer_params: false,
            face_of: None,
            balance: Balance::default(),
            prefix_aware: true,
            retries: 1,
            reserve_seconds: Duration::from_secs(5),
            first_token_seconds: Duration::from_secs(120),
            next_token_seconds: Duration::from_secs(30),
            client_seconds: Duration::from_secs(30),
            silence_seconds: Duration::from_millis(3500),
        }
    }

    pub(crate) fn rules(&self, model: &RouterModel) -> Rules {
        Rules {
            local_prefill: self.local_prefill,
            balance: self.balance,
            prefix_aware: self.prefix_aware,
            bytes_per_token: model.bytes_per_token(),
            keeps: self.kv_transfer_params,
        }
    }
}

/// A time between a millisecond and a day.
fn seconds(given: &str) -> Result<Duration, String> {
    let seconds: f64 = given.parse().map_err(|_| "not a number of seconds".to_owned())?;
    if !(0.001..=86_400.0).contains(&seconds) {
        return Err("must be from 0.001 to 86400 seconds".into());
    }
    Ok(Duration::from_secs_f64(seconds))
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory, Parser};

    use super::*;

    #[derive(Parser)]
    struct Process {
        #[command(flatten)]
        config: Config,
    }

    #[test]
    fn flags_and_in_process_settings_have_the_same_defaults() {
        let flags = Process::parse_from(["router", "--http", "127.0.0.1:0", "--quic", "127.0.0.1:0"]).config;
        assert_eq!(format!("{flags:?}"), format!("{:?}", Config::local()));
    }

    #[test]
    fn every_flag_has_an_environment_variable_and_help() {
        for arg in Process::command().get_arguments().filter(|arg| arg.get_id() != "help") {
            let env = arg.get_env().and_then(|env| env.to_str()).unwrap_or_default();
            assert!(env.starts_with("KVFERRY_"), "--{} has no environment variable", arg.get_id());
            assert!(arg.get_help().is_some(), "--{} has no help", arg.get_id());
        }
    }

    #[test]
    fn times_are_fractions_of_seconds_within_a_day() {
        assert_eq!(seconds("0.25"), Ok(Duration::from_millis(250)));
        for nonsense in ["0", "-1", "1e9", "NaN", "soon", ""] {
            assert!(seconds(nonsense).is_err(), "{nonsense}");
        }
    }
}
