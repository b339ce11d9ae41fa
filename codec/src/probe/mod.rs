//! What a benchmark compares the codec with: its matrix products alone, the entropy of its symbols, one stage at a time.

mod ideal;
mod product;
#[doc(hidden)]
pub mod stages;

pub use ideal::{Ideal, ideal};
pub use product::{Product, multiply};
