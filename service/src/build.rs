//! Which build is running.

use std::sync::LazyLock;

use serde::Serialize;

/// Version, commit and profile of this build; part of `/health` and the metric `kvferry_build_info`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct BuildInfo {
    /// Version of the workspace.
    pub version: &'static str,
    /// Commit it was built from, where whoever packaged it says so in `KVFERRY_COMMIT`.
    pub commit: String,
    /// "release", or "debug" where assertions are on.
    pub profile: &'static str,
}

/// This build. The commit is read when the process runs: baked in, every commit would compile half the workspace again.
pub static BUILD: LazyLock<BuildInfo> = LazyLock::new(|| BuildInfo {
    version: env!("CARGO_PKG_VERSION"),
    commit: commit(std::env::var("KVFERRY_COMMIT").ok()),
    profile: if cfg!(debug_assertions) { "debug" } else { "release" },
});

fn commit(named: Option<String>) -> String {
    named.filter(|commit| !commit.is_empty()).unwrap_or_else(|| "unknown".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unnamed_commit_is_unknown() {
        assert_eq!(commit(Some("5ef38bd".into())), "5ef38bd");
        assert_eq!((commit(Some(String::new())), commit(None)), ("unknown".into(), "unknown".into()));
    }
}
