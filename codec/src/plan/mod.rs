//! A plan: everything that the lossy codecs must know about one model, calibrated once, the same bytes on both ends.
//!
//! Not how it is found: that is [`crate::fit`].

pub(crate) mod classes;
pub(crate) mod elements;
mod file;
pub(crate) mod predictor;
pub(crate) mod profile;
pub(crate) mod space;
pub(crate) mod tiers;

use std::fmt;

use crate::{
    coding::CodecKind,
    error::{Error, Result, hex},
    layout::KvLayout,
    paper::{BitGroup, PaperSpace, profile::PaperProfile},
};
pub use file::MAX_PLAN_BYTES;
pub(crate) use profile::KvtcProfile;
pub use tiers::TierSteps;

/// Content id of a plan: the first 16 bytes of BLAKE3 over its file.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct PlanId(pub [u8; 16]);

impl PlanId {
    /// In chunks of codecs that need no plan.
    pub const NONE: Self = Self([0; 16]);
}

impl fmt::Display for PlanId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex(&self.0))
    }
}

impl fmt::Debug for PlanId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PlanId({self})")
    }
}

/// The calibrated tables of one model. Cheap to share behind an [`Arc`](std::sync::Arc), never changed.
#[derive(Debug, Clone, PartialEq)]
pub struct Plan {
    id: PlanId,
    model: [u8; 16],
    layout: KvLayout,
    kvtc: KvtcProfile,
    paper: Option<PaperProfile>,
}

impl Plan {
    /// The content id, equal on both ends exactly when the plans are.
    pub fn id(&self) -> PlanId {
        self.id
    }

    /// Fingerprint of the model it was calibrated on.
    pub fn model_fingerprint(&self) -> [u8; 16] {
        self.model
    }

    /// Shape of that model's cache.
    pub fn layout(&self) -> &KvLayout {
        &self.layout
    }

    /// The measured steps by tier; other tiers are interpolated.
    pub fn tiers(&self) -> &[TierSteps] {
        &self.kvtc.tiers.0
    }

    /// The measured steps by tier where every token has a shift; none in a plan that was made without shifts.
    pub fn shifted_tiers(&self) -> Option<&[TierSteps]> {
        self.kvtc.shifted_tiers.as_ref().map(|table| table.0.as_slice())
    }

    /// What attention in each layer is worth when shifts are chosen, 1 on average; none in a plan that does not know.
    pub fn layer_weights(&self) -> Option<&[f32]> {
        self.kvtc.layer_weights.as_deref()
    }

    /// Components in the bases of keys and of values.
    pub fn components(&self) -> (usize, usize) {
        (self.kvtc.keys.log_sigma.len(), self.kvtc.values.log_sigma.len())
    }

    /// Components that a tier codes for body tokens, of keys and of values.
    pub fn kept_components(&self, tier: u8) -> (usize, usize) {
        let steps = self.kvtc.tiers.steps(tier);
        (self.kvtc.keys.kept(steps.keys.into()), self.kvtc.values.kept(steps.values.into()))
    }

    /// Refuses a cache of another shape or with other RoPE frequencies.
    ///
    /// # Errors
    /// [`Error::LayoutMismatch`] with the first difference.
    pub fn check_layout(&self, layout: &KvLayout) -> Result<()> {
        layout.check("plan", &self.layout)
    }

    /// Refuses another model or cache shape.
    ///
    /// # Errors
    /// [`Error::ModelMismatch`] or [`Error::LayoutMismatch`].
    pub fn check(&self, layout: &KvLayout, model: [u8; 16]) -> Result<()> {
        self.check_layout(layout)?;
        if self.model != model {
            return Err(Error::ModelMismatch { what: "plan", expected: model, got: self.model });
        }
        Ok(())
    }

    /// Whether the plan has the tables that a codec needs. Plans from before kvtc-paper lack that codec's.
    pub fn supports(&self, kind: CodecKind) -> bool {
        match kind {
            CodecKind::Raw | CodecKind::Lossless | CodecKind::Fp8 | CodecKind::Kvtc => true,
            CodecKind::KvtcPaper | CodecKind::KvtcPaperCodedWindow => self.paper.is_some(),
        }
    }

    /// The bit plans of kvtc-paper, of keys and of values: groups from component 0 on, each starting where the one before ends; components
    /// after the last are not coded. None when the plan lacks this codec's tables, or for a tier that is none of
    /// [`PAPER_TIERS`](crate::PAPER_TIERS).
    pub fn paper_allocation(&self, tier: u8) -> Option<(&[BitGroup], &[BitGroup])> {
        let paper = self.paper.as_ref()?;
        paper.keys.plan(tier).zip(paper.values.plan(tier))
    }

    /// The bases of kvtc-paper, of keys and of values; none when the plan lacks this codec's tables.
    pub fn paper_spaces(&self) -> Option<(PaperSpace<'_>, PaperSpace<'_>)> {
        let paper = self.paper.as_ref()?;
        Some((PaperSpace::of(&paper.keys.space), PaperSpace::of(&paper.values.space)))
    }

    pub(crate) fn kvtc(&self) -> &KvtcProfile {
        &self.kvtc
    }

    pub(crate) fn paper(&self) -> Option<&PaperProfile> {
        self.paper.as_ref()
    }
}
