//! What a benchmark compares the codec with: its matrix products alone, the entropy of its symbols, what follows projection, one stage at a
//! time.

mod coefficients;
#[cfg(feature = "cuda")]
#[doc(hidden)]
pub mod deflate;
mod ideal;
mod product;
#[doc(hidden)]
pub mod stages;

pub use coefficients::{Coded, Coefficients, Projected};
pub use ideal::{Ideal, ideal};
pub use product::{Product, Work, multiply, sgemm};
