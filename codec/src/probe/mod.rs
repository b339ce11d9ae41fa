//! What a benchmark compares the codec with: its matrix products alone, and the entropy of its symbols.

mod ideal;
mod product;

pub use ideal::{Ideal, ideal};
pub use product::{Product, multiply};
