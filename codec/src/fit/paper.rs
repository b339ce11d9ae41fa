//! Calibration of kvtc-paper: plain PCA, and bits by the dynamic program over measured errors.

use crate::{
    coding::PAPER_TIERS,
    error::{Error, Result},
    fit::{
        builder::{Basis, Progress, WIDE_SHARE, check},
        coefficients::Coefficients,
    },
    paper::{
        allocate::{BlockErrors, allocate},
        kept,
        profile::{PaperProfile, PaperTables},
    },
    plan::{
        Plan,
        classes::{ClassTable, ClassTables},
        elements::Rows,
        space::Space,
    },
    stages::{pack::Packing, quantize::CENTROIDS},
};

/// Rows that errors are measured on: the time goes with them, and twice as many change a block's error by a percent.
const MAX_ROWS: usize = 2_048;

/// The plan with the tables of kvtc-paper added, or replaced. Its id changes: both ends must load the new one.
///
/// `keys` and `values` each are a basis without weights, of as many components as may be coded, and calibration rows `[n, P]` (keys
/// without RoPE, see [`rows`](super::rows)) of body tokens; of more than 2,048 rows, so many are taken evenly. What a tier got is
/// in [`Plan::paper_allocation`] and [`Plan::paper_spaces`].
///
/// Time goes into measuring errors, in proportion to components and rows: 10 s a side for 1,536 components on two cores. Memory goes
/// into the dynamic program: 128 MiB for 8,192 components of as many features, 384 MiB for 16,384, besides two copies of the coefficients. `progress` is
/// called from this thread.
///
/// # Errors
/// [`Error::InvalidArgument`] when sizes do not fit, numbers are not finite or a basis has weights.
pub fn add_paper(
    plan: &Plan,
    keys: (Basis, Vec<f32>),
    values: (Basis, Vec<f32>),
    progress: &mut dyn FnMut(Progress),
) -> Result<Plan> {
    let features = plan.layout().features();
    check_side(&keys, features)?;
    check_side(&values, features)?;
    let mut report = |stage, done, total| progress(Progress { stage, done, total });
    let keys = fit(keys, features, ["kvtc-paper errors, keys", "kvtc-paper bits, keys"], &mut report);
    let stages = ["kvtc-paper errors, values", "kvtc-paper bits, values"];
    let values = fit(values, features, stages, &mut report);
    Ok(plan.with_paper(PaperProfile { keys, values }))
}

fn check_side((basis, rows): &(Basis, Vec<f32>), features: usize) -> Result<()> {
    if basis.weights.is_some() {
        let detail = "kvtc-paper is plain PCA: its basis must have no weights";
        return Err(Error::InvalidArgument(detail.to_owned()));
    }
    check(basis, rows, features)
}

/// The tables of one side, trimmed to the components that some tier codes.
fn fit(
    (basis, rows): (Basis, Vec<f32>),
    features: usize,
    [errors_stage, bits_stage]: [&'static str; 2],
    report: &mut dyn FnMut(&'static str, usize, usize),
) -> PaperTables {
    let mut space = Space {
        mean: basis.mean,
        weights: None,
        inverse_weights: None,
        log_sigma: Vec::new(),
        basis: Rows::round(basis.vectors, features, features),
        classes: no_classes(),
    };
    let coefficients =
        Coefficients::measure(&mut space, &sample(rows, features), features.div_ceil(WIDE_SHARE)).by_row();
    let components = space.log_sigma.len();
    let budgets = PAPER_TIERS.map(|tier| 16 * features / usize::from(tier));
    let errors = BlockErrors::measure(&coefficients, components, budgets[0], &mut |done, total| {
        report(errors_stage, done, total);
    });
    drop(coefficients);
    let plans = allocate(&errors, &budgets, &mut |done, total| report(bits_stage, done, total));
    let groups: [_; PAPER_TIERS.len()] =
        plans.try_into().expect("there is a plan for every budget; this is a bug");
    let kept = groups.iter().map(|groups| kept(groups)).max().unwrap_or_default();
    space.log_sigma.truncate(kept);
    space.basis.truncate(kept, features);
    PaperTables { space, groups }
}

/// At most [`MAX_ROWS`] rows, evenly taken.
fn sample(rows: Vec<f32>, features: usize) -> Vec<f32> {
    let count = rows.len() / features;
    if count <= MAX_ROWS {
        return rows;
    }
    (0..MAX_ROWS).flat_map(|i| &rows[i * count / MAX_ROWS * features..][..features]).copied().collect()
}

/// The one class table that a space must have, of no meaning in this profile.
fn no_classes() -> ClassTables {
    let table = ClassTable { packing: Packing::Base3, centroids: [0.0; CENTROIDS] };
    ClassTables { first_class: 0, tables: vec![table] }
}
