//! What a benchmark compares the codec with: its matrix products alone, the entropy of its symbols, what follows projection, one stage at a
//! time; and what it does that to where there is no model: a plan and caches of any shape.

mod coefficients;
#[cfg(feature = "cuda")]
#[doc(hidden)]
pub mod deflate;
mod ideal;
mod product;
#[doc(hidden)]
pub mod stages;
pub mod synthetic;
mod zlib;

pub use coefficients::{Coded, Coefficients, Projected};
pub use ideal::{Ideal, ideal};
pub use product::{Product, Work, multiply, sgemm};
pub use zlib::over_zlib;
