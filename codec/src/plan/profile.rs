//! What the `kvtc` codec finds in a plan: token roles, tiers, and a space for each side.

use crate::{
    coding::TIERS,
    error::{Error, Result},
    format::bytes::{Reader, Write},
    plan::{space::Space, tiers::TierTable},
    stages::quantize::Steps,
    tokens::{SINKS, Side, WINDOW},
};

/// Tables of the `kvtc` codec.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct KvtcProfile {
    /// Tier whose steps the window is coded with.
    pub(crate) window_tier: u8,
    pub(crate) tiers: TierTable,
    pub(crate) keys: Space,
    pub(crate) values: Space,
}

const WHAT: &str = "kvtc profile";

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

    /// Steps of a chunk of body tier `tier`.
    pub(crate) fn steps(&self, tier: u8) -> Steps {
        let body = self.tiers.steps(tier);
        let window = self.tiers.steps(self.window_tier(tier));
        Steps { keys: body.keys, values: body.values, window_keys: window.keys, window_values: window.values }
    }

    pub(crate) fn read_from(reader: &mut Reader<'_>, features: usize) -> Result<Self> {
        let (sinks, window) = (reader.u16()?, reader.u16()?);
        let (window_tier, tiers) = (reader.u8()?, reader.u8()?);
        reader.zeros(2)?;
        if (sinks, window) != (SINKS, WINDOW) || !TIERS.contains(&window_tier) {
            let detail = format!("{sinks} sinks, {window} window tokens at tier {window_tier}");
            return Err(Error::corrupt(WHAT, detail));
        }
        let tiers = TierTable::read_from(reader, tiers.into())?;
        let keys = Space::read_from(reader, features)?;
        let values = Space::read_from(reader, features)?;
        match reader.remaining() {
            0 => Ok(Self { window_tier, tiers, keys, values }),
            extra => Err(Error::corrupt(WHAT, format!("{extra} bytes follow it"))),
        }
    }

    /// The mirror of [`Self::read_from`].
    pub(crate) fn write_to(&self, out: &mut Vec<u8>) {
        out.put_all(&[SINKS, WINDOW], u16::to_le_bytes);
        out.put([self.window_tier, self.tiers.0.len() as u8, 0, 0]);
        self.tiers.write_to(out);
        self.keys.write_to(out);
        self.values.write_to(out);
    }
}
