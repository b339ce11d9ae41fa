//! From bases and held-out rows to a finished plan.

use half::f16;

use crate::{
    coding::TIERS,
    error::{Error, Result},
    fit::{classes, coefficients::Coefficients, steps, steps::Measured, threshold},
    layout::KvLayout,
    plan::{
        KvtcProfile, Plan,
        space::{Space, invert},
        tiers::{TierSteps, TierTable},
    },
};

/// Tiers that are measured; those between are interpolated.
const MEASURED_TIERS: [u8; 16] = [4, 5, 6, 8, 10, 12, 16, 20, 24, 32, 40, 48, 64, 80, 96, 128];
/// Tier at which the last tokens of a prompt are coded.
const WINDOW_TIER: u8 = 6;
/// Fewer held-out rows say too little about 8 magnitudes of 40 classes.
const MIN_ROWS: usize = 256;

/// The space of one side, as an eigensolver leaves it.
#[derive(Debug, Clone)]
pub struct Basis {
    /// `[P]`, taken off every row.
    pub mean: Vec<f32>,
    /// `[P]`, positive: features are multiplied by them before projection and divided after. None is plain PCA.
    pub weights: Option<Vec<f32>>,
    /// `[components, P]`: orthonormal eigenvectors of the (weighted) covariance, one per row, in any order.
    pub vectors: Vec<f32>,
}

/// How the steps of keys and values relate.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Balance {
    /// Each side gets half of the bytes: right where the two have no common scale (plain PCA).
    EqualBytes,
    /// One step for both: right where the weights put both on one scale of harm.
    OneStep,
}

/// How far [`PlanBuilder::build`] has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    /// What is being done.
    pub stage: &'static str,
    /// Parts of it that are done.
    pub done: usize,
    /// All parts.
    pub total: usize,
}

/// Makes a plan from bases and rows that the bases were not made from.
#[derive(Debug)]
pub struct PlanBuilder {
    layout: KvLayout,
    model: [u8; 16],
    keys: (Basis, Vec<f32>),
    values: (Basis, Vec<f32>),
    balance: Balance,
}

impl PlanBuilder {
    /// `keys` and `values` each are a basis and held-out rows `[n, P]` (keys without RoPE, see [`rows`](super::rows)) of body tokens:
    /// no sinks; some thousand rows from many documents.
    pub fn new(
        layout: KvLayout,
        model_fingerprint: [u8; 16],
        keys: (Basis, Vec<f32>),
        values: (Basis, Vec<f32>),
    ) -> Self {
        Self { layout, model: model_fingerprint, keys, values, balance: Balance::EqualBytes }
    }

    /// Sets how the steps of keys and values relate; default [`Balance::EqualBytes`].
    #[must_use]
    pub fn balance(mut self, balance: Balance) -> Self {
        self.balance = balance;
        self
    }

    /// Measures and builds. `progress` is called from this thread after every part.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] when sizes do not fit or numbers are not finite.
    pub fn build(self, progress: &mut dyn FnMut(Progress)) -> Result<Plan> {
        self.layout.validate()?;
        let features = self.layout.features();
        let mut report = |stage, done, total| progress(Progress { stage, done, total });
        let keys = measure(self.keys, features)?;
        report("class tables", 1, 2);
        let values = measure(self.values, features)?;
        report("class tables", 2, 2);
        let mut tiers: Vec<TierSteps> = Vec::new();
        for (i, tier) in MEASURED_TIERS.into_iter().enumerate() {
            tiers.push(steps::find(&keys, &values, tier, self.balance, tiers.last().copied()));
            report("steps", i + 1, MEASURED_TIERS.len());
        }
        let finest = tiers[0];
        let profile = KvtcProfile {
            window_tier: WINDOW_TIER,
            tiers: TierTable::new(tiers)?,
            keys: trim(keys.space, finest.keys),
            values: trim(values.space, finest.values),
        };
        debug_assert!(TIERS.contains(&profile.window_tier));
        Ok(Plan::new(self.model, self.layout, profile))
    }
}

fn measure((basis, rows): (Basis, Vec<f32>), features: usize) -> Result<Measured> {
    check(&basis, &rows, features)?;
    let mut space = Space {
        inverse_weights: basis.weights.as_deref().map(invert),
        mean: basis.mean,
        weights: basis.weights,
        log_sigma: Vec::new(),
        basis: basis.vectors.into_iter().map(|x| f16::from_f32(x).to_f32()).collect(),
        classes: classes::neutral(),
    };
    let coefficients = Coefficients::measure(&mut space, &rows);
    space.classes = classes::fit(&space, &coefficients);
    let mut side = Measured { space, coefficients };
    threshold::choose(&mut side);
    Ok(side)
}

pub(super) fn check(basis: &Basis, rows: &[f32], features: usize) -> Result<()> {
    let refuse = |what: String| Err(Error::InvalidArgument(what));
    let weights = basis.weights.as_deref().unwrap_or_default();
    if basis.mean.len() != features || (basis.weights.is_some() && weights.len() != features) {
        return refuse(format!(
            "mean of {} and {} weights for {features} features",
            basis.mean.len(),
            weights.len()
        ));
    }
    let vectors = basis.vectors.len();
    if !vectors.is_multiple_of(features) || vectors / features > features {
        return refuse(format!(
            "{vectors} basis elements are no rows of {features}, or more than there can be"
        ));
    }
    if !rows.len().is_multiple_of(features) || rows.len() / features < MIN_ROWS {
        return refuse(format!("{} sample numbers; {MIN_ROWS} rows of {features} are needed", rows.len()));
    }
    if weights.iter().any(|&weight| !(weight > 0.0 && weight.is_finite() && (1.0 / weight).is_finite())) {
        return refuse("a feature weight is not positive and finite".to_owned());
    }
    if ![&basis.mean, &basis.vectors, rows].into_iter().all(|list| list.iter().all(|x| x.is_finite())) {
        return refuse("a number of basis or sample is not finite".to_owned());
    }
    Ok(())
}

/// Drops components that not even the finest tier codes.
fn trim(mut space: Space, finest: i16) -> Space {
    let kept = space.kept(finest.into());
    space.log_sigma.truncate(kept);
    space.basis.truncate(kept * space.mean.len());
    space
}
