//! Where a node's model runs and its caches live: in this process's memory, or on a GPU. Everything above asks here and does not know.
//!
//! A [`Served`] is what the node holds; its engine's thread takes the [`Runner`], sessions hold [`Cache`]s, and the codec's work goes
//! through [`Coder`] and [`Importer`].

mod cache;
mod choice;
mod coder;
#[cfg(feature = "cuda")]
#[allow(unsafe_code)] // one call that takes addresses on the device
mod cuda;
mod runner;
mod served;

pub use cache::{Cache, Part, Received};
pub use choice::DeviceChoice;
pub use coder::{Coder, Importer};
#[cfg(feature = "cuda")]
pub use cuda::MAX_CHUNK;
pub use runner::{Runner, Step};
pub use served::{Served, Sizes};
