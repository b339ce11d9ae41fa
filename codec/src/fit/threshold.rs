//! Where coding a component stops paying: a class of rare symbols costs whole bits in DEFLATE, which a finer step elsewhere uses better.
//!
//! It also decides the speed: components that are not coded drop out of both matrix products.

use crate::fit::steps::{Coded, Measured};

/// Class tables that may be cut from the bottom.
const CANDIDATES: usize = 6;

/// Cuts the lowest classes as long as the error at equal bytes does not grow, the bytes of tier `target`.
pub(crate) fn choose(side: &mut Measured, target: u8) {
    let (lowest, tables) = (side.space.classes.first_class, side.space.classes.tables.clone());
    let mut best: Option<(f64, usize)> = None;
    for cut in 0..CANDIDATES {
        side.space.classes.first_class = lowest + cut as i32;
        side.space.classes.tables = tables[cut..].to_vec();
        let error = side.coefficients.squared_error(&side.space, side.find(target, Coded::default()));
        if best.is_none_or(|(least, _)| error <= least) {
            best = Some((error, cut));
        }
    }
    let cut = best.map_or(0, |(_, cut)| cut);
    side.space.classes.first_class = lowest + cut as i32;
    side.space.classes.tables = tables[cut..].to_vec();
}
