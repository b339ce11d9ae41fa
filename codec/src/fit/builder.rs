//! From bases and held-out rows to a finished plan.

use half::bf16;

use crate::{
    coding::TIERS,
    error::{Error, Result},
    fit::{
        Predictor, classes,
        coefficients::Coefficients,
        report::{Energy, Report},
        steps,
        steps::{Coded, MEASURED_TIERS, Measured},
        threshold,
    },
    format::segments::SEGMENT_BYTES,
    kvtc::write_ids,
    layout::KvLayout,
    plan::{
        KvtcProfile, Plan,
        elements::Rows,
        predictor::FirstRow,
        space::{Space, invert},
        tiers::TierTable,
    },
    stages::{deflate::deflate, quantize::GRID_PER_CLASS},
    tokens::{SHIFTS, SINKS},
};

/// Tier at which the last tokens of a prompt are coded.
const WINDOW_TIER: u8 = 6;
/// Sinks that stay exact where the plan knows what others are worth: the first token alone, whose row depends on nothing.
const KNOWN_SINKS: u16 = 1;
/// One component in so many keeps f16 elements; rounding the others to bytes costs less than a hundredth of what the quantizer does.
pub(crate) const WIDE_SHARE: usize = 12;
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

/// How far [`PlanBuilder::build_with_report`] has come.
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
    predictor: Option<(Predictor, Vec<u32>)>,
    shifts: Option<Vec<i8>>,
    first: Option<FirstRow>,
    layer_weights: Option<Vec<f32>>,
    target: u8,
}

/// Tier that a plan is tuned for by default.
const TARGET: u8 = 32;

impl PlanBuilder {
    /// `keys` and `values` each are a basis and held-out rows `[n, P]` (keys without RoPE, see [`rows`](super::rows)) of body tokens:
    /// no sinks; some thousand rows from many documents.
    pub fn new(
        layout: KvLayout,
        model_fingerprint: [u8; 16],
        keys: (Basis, Vec<f32>),
        values: (Basis, Vec<f32>),
    ) -> Self {
        Self {
            layout,
            model: model_fingerprint,
            keys,
            values,
            balance: Balance::EqualBytes,
            predictor: None,
            shifts: None,
            first: None,
            layer_weights: None,
            target: TARGET,
        }
    }

    /// Sets how the steps of keys and values relate; default [`Balance::EqualBytes`].
    #[must_use]
    pub fn balance(mut self, balance: Balance) -> Self {
        self.balance = balance;
        self
    }

    /// Sets the tier at which it is decided from which class on coding a component pays; default 32.
    #[must_use]
    pub fn target(self, tier: u8) -> Self {
        Self { target: tier, ..self }
    }

    /// Rows are what this predictor left of them; `ids` are the tokens of the held-out rows.
    #[must_use]
    pub fn predicting(self, predictor: Predictor, ids: Vec<u32>) -> Self {
        Self { predictor: Some((predictor, ids)), ..self }
    }

    /// Shifts of the held-out rows, by which the steps of tiers with a shift per token are found.
    #[must_use]
    pub fn shifts(self, shifts: Vec<i8>) -> Self {
        Self { shifts: Some(shifts), ..self }
    }

    /// The cache of the token that prompts begin with, alone at position 0: keys and values, `[P]` each.
    #[must_use]
    pub fn first_row(self, token: u32, keys: Vec<bf16>, values: Vec<bf16>) -> Self {
        Self { first: Some(FirstRow { token, keys, values }), ..self }
    }

    /// What attention in each layer is worth when shifts are chosen: one number per layer, none negative.
    #[must_use]
    pub fn layer_weights(self, weights: Vec<f32>) -> Self {
        Self { layer_weights: Some(weights), ..self }
    }

    /// [`Self::build_with_report`] without the report.
    ///
    /// # Errors
    /// The same.
    pub fn build(self, progress: &mut dyn FnMut(Progress)) -> Result<Plan> {
        Ok(self.build_with_report(progress)?.0)
    }

    /// Measures and builds, and says what was measured. `progress` is called from this thread after every part.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] when sizes do not fit or numbers are not finite.
    pub fn build_with_report(self, progress: &mut dyn FnMut(Progress)) -> Result<(Plan, Report)> {
        self.check_extras()?;
        let features = self.layout.features();
        let mut say = |stage, done, total| progress(Progress { stage, done, total });
        let keys = measure(self.keys, features, self.target)?;
        say("class tables", 1, 2);
        let values = measure(self.values, features, self.target)?;
        say("class tables", 2, 2);
        let ids = self.predictor.as_ref().map_or(0, |(predictor, ids)| id_bytes(predictor, ids));
        let uniform = Coded { shifts: None, beside: ids };
        let with_shifts = |shifts| Coded { shifts: Some(shifts), beside: ids + shift_bytes(shifts) };
        let shifted = self.shifts.as_deref().map(with_shifts);
        let (mut done, total) = (0, MEASURED_TIERS.len() * if shifted.is_some() { 2 } else { 1 });
        let mut table = |coded| {
            steps::table(&keys, &values, (self.balance, coded), &mut || {
                done += 1;
                say("steps", done, total);
            })
        };
        let tiers = table(uniform)?;
        let shifted_tiers = shifted.map(table).transpose()?;
        let report = Report::measure(&keys, &values, (uniform, &tiers), shifted.zip(shifted_tiers.as_ref()));
        let finest = finest(&tiers, shifted_tiers.as_ref(), self.shifts.as_deref());
        let profile = KvtcProfile {
            sinks: if shifted_tiers.is_some() { KNOWN_SINKS } else { SINKS },
            window_tier: WINDOW_TIER,
            tiers,
            shifted_tiers,
            keys: trim(keys.space, finest.0),
            values: trim(values.space, finest.1),
            predictor: self.predictor.map(|(predictor, _)| predictor.stored),
            first: self.first,
            layer_weights: self.layer_weights,
        };
        debug_assert!(TIERS.contains(&profile.window_tier));
        Ok((Plan::new(self.model, self.layout, profile), report))
    }

    fn check_extras(&self) -> Result<()> {
        self.layout.validate()?;
        let refuse = |what: String| Err(Error::InvalidArgument(what));
        if !TIERS.contains(&self.target) {
            let (target, first, last) = (self.target, TIERS.start(), TIERS.end());
            return refuse(format!("target tier {target} is outside {first} to {last}"));
        }
        let (features, rows) = (self.layout.features(), self.keys.1.len() / self.layout.features());
        if let Some((predictor, ids)) = &self.predictor {
            let mapped = predictor.maps().0.len() / predictor.stored.inputs();
            if ids.len() != rows || mapped != features {
                return refuse(format!(
                    "{} ids for {rows} rows, a predictor of {mapped} features",
                    ids.len()
                ));
            }
        }
        if let Some(shifts) = &self.shifts
            && (shifts.len() != rows || shifts.iter().any(|shift| !SHIFTS.contains(shift)))
        {
            return refuse(format!("{} shifts for {rows} rows, or one out of range", shifts.len()));
        }
        if let Some(weights) = &self.layer_weights
            && (weights.len() != self.layout.layers || weights.iter().any(|w| !w.is_finite() || *w < 0.0))
        {
            return refuse(format!("{} layer weights, or one that is negative or not finite", weights.len()));
        }
        match &self.first {
            Some(first) if first.keys.len() != features || first.values.len() != features => {
                refuse(format!("a first row of {} keys for {features} features", first.keys.len()))
            }
            _ => Ok(()),
        }
    }
}

/// Bytes of the rows' token ids, deflated.
fn id_bytes(predictor: &Predictor, ids: &[u32]) -> usize {
    let (mut bytes, mut breaks) = (Vec::new(), Vec::new());
    write_ids(ids, predictor.stored.id_bytes, &mut bytes, &mut breaks);
    deflate(&bytes, &breaks, SEGMENT_BYTES as usize).iter().map(Vec::len).sum()
}

/// Bytes of the rows' shifts, deflated.
fn shift_bytes(shifts: &[i8]) -> usize {
    let bytes: Vec<u8> = shifts.iter().map(|&shift| shift as u8).collect();
    deflate(&bytes, &[], SEGMENT_BYTES as usize).iter().map(Vec::len).sum()
}

/// Finest step of keys and of values that any tier gives a token. Shifts are followed as far down as one row in a hundred goes: what only
/// a handful of tokens would use is not worth its bytes in the plan.
fn finest(tiers: &TierTable, shifted: Option<&TierTable>, shifts: Option<&[i8]>) -> (i32, i32) {
    let of = |table: &TierTable| (i32::from(table.0[0].keys), i32::from(table.0[0].values));
    let (mut keys, mut values) = of(tiers);
    if let (Some(table), Some(shifts)) = (shifted, shifts) {
        let mut sorted = shifts.to_vec();
        sorted.sort_unstable();
        let usual = sorted.get(sorted.len() / 100).copied().unwrap_or(0);
        let (shifted_keys, shifted_values) = of(table);
        let lower = GRID_PER_CLASS * i32::from(usual);
        (keys, values) = (keys.min(shifted_keys + lower), values.min(shifted_values + lower));
    }
    (keys, values)
}

fn measure((basis, rows): (Basis, Vec<f32>), features: usize, target: u8) -> Result<Measured> {
    check(&basis, &rows, features)?;
    let mut space = Space {
        inverse_weights: basis.weights.as_deref().map(invert),
        mean: basis.mean,
        weights: basis.weights,
        log_sigma: Vec::new(),
        basis: Rows::round(basis.vectors, features, features),
        classes: classes::neutral(),
    };
    let coefficients = Coefficients::measure(&mut space, &rows, features.div_ceil(WIDE_SHARE));
    space.classes = classes::fit(&space, &coefficients);
    let energy = Energy::of(&space, &rows);
    let mut side = Measured { space, coefficients, energy };
    threshold::choose(&mut side, target);
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
fn trim(mut space: Space, finest: i32) -> Space {
    let kept = space.kept(finest);
    space.log_sigma.truncate(kept);
    space.basis.truncate(kept, space.mean.len());
    space
}
