//! A node as a process of its own: certificates, model, start, and the wait for its end. What kind of node it is, the
//! caller says.

use std::process::ExitCode;
use std::sync::Arc;

use service::{CommonArgs, Shutdown};
use transport::Identity;
use transport::message::Role;

use crate::args::{NodeArgs, served_name};
use crate::compute::{Served, Sizes};
use crate::runtime::{Runtime, StartError};

/// Runs a node that `start` brings up until it is told to end.
pub fn run(
    role: Role,
    args: &NodeArgs,
    common: &CommonArgs,
    start: impl AsyncFnOnce(Arc<Served>, &Identity, Shutdown) -> Result<Runtime, StartError>,
) -> ExitCode {
    let name = role.name();
    let body = async {
        let identity = Identity::load(&args.certs, name)?;
        let model_id = served_name(args.served_model_name.as_deref(), &args.model);
        let plan = args.plan.as_deref();
        let served = Served::load(args.device, &args.model, plan, model_id, Sizes::of(args))?;
        let shutdown = Shutdown::on_signals(common.grace()).map_err(StartError::Signals)?;
        start(Arc::new(served), &identity, shutdown).await?.finished().await;
        Ok::<_, StartError>(())
    };
    service::process::run(common, args.admin_listen, &format!("this {name} node cannot start"), body)
}
