//! The two matrix products. Everything else the codec does is overhead on top of these.

use rayon::prelude::*;

use crate::{
    plan::{Plan, space::Space},
    stages::{
        pca::{TILE_ROWS, no_coefficients, project, reconstruct},
        quantize::Steps,
    },
    tokens::Side,
};

/// The two directions of the basis change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Product {
    /// Rows to coefficients, the encoder's.
    Project,
    /// Coefficients to rows, the decoder's.
    Reconstruct,
}

/// Runs one product over `tokens` body rows of zeros, keys and values side by side; `tokens` is rounded up to whole tiles.
/// The window's finer step, which keeps more components, is not part of it.
pub fn multiply(plan: &Plan, tier: u8, tokens: usize, product: Product) {
    let steps = plan.kvtc().steps(tier);
    let side = |side: Side| {
        let space = plan.kvtc().space(side);
        let kept = space.kept(body_exponent(&steps, side));
        (0..tokens.div_ceil(TILE_ROWS)).into_par_iter().for_each(|_| tile(space, kept, product));
    };
    rayon::join(|| side(Side::Keys), || side(Side::Values));
}

fn tile(space: &Space, kept: usize, product: Product) {
    let out = match product {
        Product::Project => project(space, kept, &mut vec![0.0; TILE_ROWS * space.mean.len()]),
        Product::Reconstruct => reconstruct(space, &no_coefficients(space, kept)),
    };
    std::hint::black_box(out);
}

fn body_exponent(steps: &Steps, side: Side) -> i32 {
    let body = crate::tokens::Group { tokens: Vec::new(), shift: 0, is_window: false };
    steps.exponent(side, &body)
}
