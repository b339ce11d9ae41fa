//! The codec's two matrix products alone, in the tiles and on the threads of the real thing. Everything else the codec does is overhead
//! on top of these.

use std::time::{Duration, Instant};

use rayon::prelude::*;

use crate::{
    plan::{Plan, space::Space},
    side::tile_components,
    stages::{
        order::Order,
        pca::{TILE_ROWS, computed, no_coefficients, project, reconstruct},
        product::{Matrix, Onto, multiply as product},
    },
    tokens::{Place, Roles, Shifts, Side, WINDOW, groups},
};

/// The two directions of the basis change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Product {
    /// Rows to coefficients, the encoder's.
    Project,
    /// Coefficients to rows, the decoder's.
    Reconstruct,
}

/// What a run of products was.
#[derive(Debug, Clone, Copy)]
pub struct Work {
    /// Wall time.
    pub time: Duration,
    /// Multiplications with an addition each.
    pub multiply_adds: u64,
}

/// Runs one product over a prompt of zeros whose tokens have these shifts, keys and values side by side.
pub fn multiply(plan: &Plan, tier: u8, shifts: &[i8], which: Product) -> Work {
    let profile = plan.kvtc();
    let place = Place { first_token: 0, tokens: shifts.len(), prompt_tokens: shifts.len() };
    let roles = Roles::of(place, profile.sinks, WINDOW);
    let groups = groups(&roles, Shifts::All(&shifts[roles.coded()]));
    let steps = profile.shifted_steps(tier);
    let started = Instant::now();
    let side = |side: Side| {
        let space = profile.space(side);
        let order = Order::of(space, side, &steps, &groups);
        let tiles = tile_components(&groups, &order.kept);
        tiles.par_iter().map(|&kept| tile(space, kept, which)).sum::<u64>()
    };
    let (keys, values) = rayon::join(|| side(Side::Keys), || side(Side::Values));
    Work { time: started.elapsed(), multiply_adds: keys + values }
}

fn tile(space: &Space, kept: usize, which: Product) -> u64 {
    let features = space.mean.len();
    let out = match which {
        Product::Project => project(space, kept, &mut vec![0.0; TILE_ROWS * features]),
        Product::Reconstruct => reconstruct(space, &no_coefficients(space, kept)),
    };
    std::hint::black_box(out);
    (TILE_ROWS * features * computed(space, kept)) as u64
}

/// Products of square matrices on every thread: what this machine's single precision can do.
pub fn sgemm(size: usize) -> Work {
    let threads = rayon::current_num_threads();
    let matrix = vec![0.5f32; size * size];
    let started = Instant::now();
    (0..threads).into_par_iter().for_each(|_| {
        let mut out = vec![0.0; size * size];
        let square = Matrix::row_major(&matrix, size, size);
        product(square, square, &mut out, Onto::Nothing);
        std::hint::black_box(out);
    });
    Work { time: started.elapsed(), multiply_adds: (threads * size * size * size) as u64 }
}

impl Work {
    /// Floating-point operations a second, in units of 10^9.
    pub fn gflops(&self) -> f64 {
        2.0 * self.multiply_adds as f64 / self.time.as_secs_f64() / 1e9
    }
}
