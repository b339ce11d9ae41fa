//! `kvferry certs`: a small certificate authority for one cluster.

use std::path::PathBuf;

use anyhow::Context;
use transport::Authority;

/// Names that the processes look for.
const ROLES: [&str; 3] = ["router", "prefill", "decode"];

/// Makes a cluster's certificate authority and a certificate for each kind of process.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Directory to write ca.pem, ca.key and a certificate and key per role into.
    pub dir: PathBuf,
}

/// Writes the files; an authority that is already there goes on being used.
///
/// # Errors
/// When the directory cannot be written or holds a damaged authority.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let existing = args.dir.join("ca.key").exists();
    let authority = if existing {
        Authority::load(&args.dir).context("the authority in this directory cannot be used")?
    } else {
        let made = Authority::new()?;
        made.write(&args.dir)?;
        made
    };
    for role in ROLES {
        authority.write_issued(&args.dir, role)?;
    }
    let how = if existing { "issued again by the authority that was there" } else { "made" };
    eprintln!("certificates for {} {how} in {}", ROLES.join(", "), args.dir.display());
    Ok(())
}
