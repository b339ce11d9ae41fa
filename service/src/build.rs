//! Which build is running.

use serde::Serialize;

/// Version, commit and profile of this build; part of `/health` and the metric `kvferry_build_info`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct BuildInfo {
    /// Version of the workspace.
    pub version: &'static str,
    /// Commit it was built from, where the build said so in `KVFERRY_COMMIT`.
    pub commit: &'static str,
    /// "release", or "debug" where assertions are on.
    pub profile: &'static str,
}

/// This build.
pub const BUILD: BuildInfo = BuildInfo {
    version: env!("CARGO_PKG_VERSION"),
    commit: match option_env!("KVFERRY_COMMIT") {
        Some(commit) => commit,
        None => "unknown",
    },
    profile: if cfg!(debug_assertions) { "debug" } else { "release" },
};
