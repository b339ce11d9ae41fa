//! `kvferry certs`: a small certificate authority for one cluster.

use std::path::PathBuf;

use anyhow::Context;
use transport::{Authority, Identity};

/// Names that the processes look for.
const ROLES: [&str; 3] = ["router", "prefill", "decode"];

/// Makes a cluster's certificate authority and a certificate for each kind of process.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Directory to write ca.pem, ca.key and a certificate and key per role into.
    pub dir: PathBuf,
}

/// Writes what is missing or no longer valid. An authority that is already there goes on being used, and a certificate
/// that it vouches for stays as it is, so that running the command again changes nothing for a cluster that is up.
///
/// # Errors
/// When the directory cannot be written or holds a damaged authority.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let authority = if args.dir.join("ca.key").exists() {
        Authority::load(&args.dir)
            .context("the authority in this directory cannot be used; choose an empty one")?
    } else {
        let made = Authority::new()?;
        made.write(&args.dir).context("certificates cannot be written; choose a directory that can be")?;
        made
    };
    let mut made = Vec::new();
    for role in ROLES.into_iter().filter(|role| Identity::load(&args.dir, role).is_err()) {
        authority.write_issued(&args.dir, role)?;
        Identity::load(&args.dir, role)
            .context("this authority issues nothing usable; choose an empty directory")?;
        made.push(role);
    }
    let dir = args.dir.display();
    match made.as_slice() {
        [] => eprintln!("the certificates in {dir} are all valid; nothing to do"),
        made => eprintln!("certificates for {} written to {dir}", made.join(", ")),
    }
    Ok(())
}
