//! Flags that all processes share. Every flag has an environment variable, so that a compose file and a command line can say
//! the same things: `KVFERRY_…`, but for what OpenTelemetry has named.

use std::time::Duration;

use clap::{Args, ValueEnum};

/// To be flattened into a process's own flags with `#[command(flatten)]`.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Common")]
pub struct CommonArgs {
    /// Form of the log lines on standard error.
    #[arg(long, env = "KVFERRY_LOG", value_enum, default_value_t = LogFormat::Text)]
    pub log: LogFormat,
    /// What to log: a level, or directives such as `info,transport=debug`. RUST_LOG, where set, wins.
    #[arg(long, env = "KVFERRY_LOG_LEVEL", default_value = "info")]
    pub log_level: String,
    /// How long requests may go on after the first SIGINT or SIGTERM, in seconds; a second signal ends them at once.
    #[arg(long, env = "KVFERRY_GRACE_SECONDS", default_value_t = 30, value_parser = clap::value_parser!(u32).range(..=86_400))]
    pub grace_seconds: u32,
    /// How long a process that cannot start stays to tell probes of its health why, in seconds, before it ends with an
    /// error; useful where something starts it again and again.
    #[arg(long, env = "KVFERRY_LINGER_SECONDS", default_value_t = 0, value_parser = clap::value_parser!(u32).range(..=86_400))]
    pub linger_seconds: u32,
    /// Base URL of an OpenTelemetry collector, such as http://127.0.0.1:4318: spans go there over OTLP/HTTP. Nothing is exported
    /// without one.
    #[arg(long, env = "OTEL_EXPORTER_OTLP_ENDPOINT")]
    pub otlp_endpoint: Option<String>,
}

/// Form of the log lines.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, ValueEnum)]
pub enum LogFormat {
    /// One line per event, for people.
    #[default]
    Text,
    /// One JSON object per event, for collectors.
    Json,
}

impl CommonArgs {
    /// The grace period as a duration, for [`crate::Shutdown`].
    pub fn grace(&self) -> Duration {
        Duration::from_secs(self.grace_seconds.into())
    }

    /// The time for last words as a duration, for [`crate::process`].
    pub fn linger(&self) -> Duration {
        Duration::from_secs(self.linger_seconds.into())
    }
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory, Parser};

    use super::*;

    #[derive(Parser)]
    struct Process {
        #[command(flatten)]
        common: CommonArgs,
    }

    #[test]
    fn flags_have_defaults_and_can_be_set() {
        let common = Process::parse_from(["process", "--log", "json", "--grace-seconds", "5"]).common;
        assert_eq!((common.log, common.grace()), (LogFormat::Json, Duration::from_secs(5)));
        assert_eq!(common.log_level, "info");
    }

    #[test]
    fn every_flag_has_an_environment_variable() {
        for arg in Process::command().get_arguments().filter(|arg| arg.get_id() != "help") {
            let env = arg.get_env().and_then(|env| env.to_str()).unwrap_or_default();
            let is_named = env.starts_with("KVFERRY_") || env.starts_with("OTEL_");
            assert!(is_named, "--{} has no environment variable", arg.get_id());
        }
    }

    #[test]
    fn nonsense_is_refused() {
        assert!(Process::try_parse_from(["process", "--log", "xml"]).is_err());
        assert!(Process::try_parse_from(["process", "--grace-seconds", "-1"]).is_err());
    }
}
