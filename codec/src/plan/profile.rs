//! What the `kvtc` codec finds in a plan: token roles, tiers, a space for each side, and what is known before anything is sent.

use crate::{
    coding::TIERS,
    error::{Error, Result},
    format::bytes::{Reader, Write},
    plan::{
        predictor::{FirstRow, Predictor},
        space::Space,
        tiers::TierTable,
    },
    stages::quantize::Steps,
    tokens::{SINKS, Side, WINDOW},
};

/// Tables of the `kvtc` codec.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct KvtcProfile {
    /// First tokens of a prompt that are sent exactly.
    pub(crate) sinks: u16,
    /// Tier whose steps the window is coded with.
    pub(crate) window_tier: u8,
    /// Steps where all body tokens have one.
    pub(crate) tiers: TierTable,
    /// Steps where each token has a shift.
    pub(crate) shifted_tiers: Option<TierTable>,
    pub(crate) keys: Space,
    pub(crate) values: Space,
    /// What the tokens' ids say of their rows.
    pub(crate) predictor: Option<Predictor>,
    pub(crate) first: Option<FirstRow>,
    /// What attention in each layer is worth when shifts are chosen; only encoders need it.
    pub(crate) layer_weights: Option<Vec<f32>>,
}

const WHAT: &str = "kvtc profile";
const FLAG_SHIFTED_TIERS: u16 = 1;
const FLAG_PREDICTOR: u16 = 2;
const FLAG_FIRST_ROW: u16 = 4;
const FLAG_LAYER_WEIGHTS: u16 = 8;

impl KvtcProfile {
    /// One side's tables.
    pub(crate) fn space(&self, side: Side) -> &Space {
        match side {
            Side::Keys => &self.keys,
            Side::Values => &self.values,
        }
    }

    /// Tier of the window in a chunk of body tier `tier`: never coarser than the body.
    pub(crate) fn window_tier(&self, tier: u8) -> u8 {
        self.window_tier.min(tier)
    }

    /// Steps of a chunk of body tier `tier` whose body tokens have one step.
    pub(crate) fn steps(&self, tier: u8) -> Steps {
        let body = self.tiers.steps(tier);
        let window = self.tiers.steps(self.window_tier(tier));
        Steps { keys: body.keys, values: body.values, window_keys: window.keys, window_values: window.values }
    }

    /// Steps of a chunk of tier `tier` whose tokens all have shifts.
    pub(crate) fn shifted_steps(&self, tier: u8) -> Steps {
        let body = self.shifted_tiers.as_ref().unwrap_or(&self.tiers).steps(tier);
        Steps { keys: body.keys, values: body.values, ..Steps::default() }
    }

    /// Steps of a chunk of tier `tier`, whose tokens have shifts or not.
    pub(crate) fn steps_of(&self, tier: u8, is_shifted: bool) -> Steps {
        if is_shifted { self.shifted_steps(tier) } else { self.steps(tier) }
    }

    pub(crate) fn read_from(reader: &mut Reader<'_>, layers: usize, features: usize) -> Result<Self> {
        let (sinks, window) = (reader.u16()?, reader.u16()?);
        let (window_tier, tiers, flags) = (reader.u8()?, reader.u8()?, reader.u16()?);
        let known = FLAG_SHIFTED_TIERS | FLAG_PREDICTOR | FLAG_FIRST_ROW | FLAG_LAYER_WEIGHTS;
        let is_sane =
            sinks <= SINKS && window == WINDOW && TIERS.contains(&window_tier) && flags & !known == 0;
        if !is_sane {
            let detail =
                format!("{sinks} sinks, {window} window tokens at tier {window_tier}, flags {flags:#06x}");
            return Err(Error::corrupt(WHAT, detail));
        }
        let tiers = TierTable::read_from(reader, tiers.into())?;
        let keys = Space::read_from(reader, features)?;
        let values = Space::read_from(reader, features)?;
        let shifted_tiers = (flags & FLAG_SHIFTED_TIERS != 0).then(|| read_shifted(reader)).transpose()?;
        let predictor =
            (flags & FLAG_PREDICTOR != 0).then(|| Predictor::read_from(reader, features)).transpose()?;
        let first =
            (flags & FLAG_FIRST_ROW != 0).then(|| FirstRow::read_from(reader, features)).transpose()?;
        let has_layers = flags & FLAG_LAYER_WEIGHTS != 0;
        let layer_weights = has_layers.then(|| read_layer_weights(reader, layers)).transpose()?;
        match reader.remaining() {
            0 => Ok(Self {
                sinks,
                window_tier,
                tiers,
                shifted_tiers,
                keys,
                values,
                predictor,
                first,
                layer_weights,
            }),
            extra => Err(Error::corrupt(WHAT, format!("{extra} bytes follow it"))),
        }
    }

    /// The mirror of [`Self::read_from`].
    pub(crate) fn write_to(&self, out: &mut Vec<u8>) {
        out.put_all(&[self.sinks, WINDOW], u16::to_le_bytes);
        out.put([self.window_tier, self.tiers.0.len() as u8]);
        let flag = |is_there: bool, flag: u16| if is_there { flag } else { 0 };
        let flags = flag(self.shifted_tiers.is_some(), FLAG_SHIFTED_TIERS)
            | flag(self.predictor.is_some(), FLAG_PREDICTOR)
            | flag(self.first.is_some(), FLAG_FIRST_ROW)
            | flag(self.layer_weights.is_some(), FLAG_LAYER_WEIGHTS);
        out.put(flags.to_le_bytes());
        self.tiers.write_to(out);
        self.keys.write_to(out);
        self.values.write_to(out);
        if let Some(table) = &self.shifted_tiers {
            out.put([table.0.len() as u8, 0, 0, 0]);
            table.write_to(out);
        }
        if let Some(predictor) = &self.predictor {
            predictor.write_to(out);
        }
        if let Some(first) = &self.first {
            first.write_to(out);
        }
        if let Some(weights) = &self.layer_weights {
            out.put_all(weights, f32::to_le_bytes);
        }
    }
}

fn read_layer_weights(reader: &mut Reader<'_>, layers: usize) -> Result<Vec<f32>> {
    let weights = reader.finite(layers)?;
    match weights.iter().find(|&&weight| weight < 0.0) {
        Some(weight) => Err(Error::corrupt(WHAT, format!("a layer's weight is {weight}"))),
        None => Ok(weights),
    }
}

fn read_shifted(reader: &mut Reader<'_>) -> Result<TierTable> {
    let entries = reader.u8()?;
    reader.zeros(3)?;
    TierTable::read_from(reader, entries.into())
}
