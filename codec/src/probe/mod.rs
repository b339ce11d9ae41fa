//! Parts of the codec alone, in the tiles and on the threads of the real thing: what a benchmark compares with the whole,
//! or with another method's.

mod products;
mod stages;

pub use products::{Product, Work, multiply, sgemm};
pub use stages::{Coded, Coefficients, Projected};
