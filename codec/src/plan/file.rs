//! The plan file: read with bounds, written with a digest that is also the plan's id.

use std::io::Read;

use crate::{
    error::{Error, Result},
    format::{
        FORMAT_VERSION, PLAN_MAGIC,
        bytes::{Reader, Write},
        chunk::CodecId,
        digest::{DIGEST_BYTES, seal, unseal},
    },
    layout::KvLayout,
    plan::{KvtcProfile, Plan, PlanId},
};

/// Largest plan file that is read: two full bases of 16,384 features in f16 are 2 GiB; nobody ships those, 512 MiB hold the
/// trimmed bases of an 8,192-feature model twice.
pub const MAX_PLAN_BYTES: u64 = 512 << 20;

const WHAT: &str = "plan";
const MAX_PROFILES: u16 = 8;

impl Plan {
    pub(crate) fn new(model: [u8; 16], layout: KvLayout, kvtc: KvtcProfile) -> Self {
        let mut plan = Self { id: PlanId::NONE, model, layout, kvtc };
        let bytes = plan.to_bytes();
        plan.id = stored_id(&bytes);
        plan
    }

    /// Reads a plan file to its end.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::LimitExceeded`] over [`MAX_PLAN_BYTES`], and everything of [`Self::from_bytes`].
    pub fn read(source: &mut impl Read) -> Result<Self> {
        let mut bytes = Vec::new();
        source.take(MAX_PLAN_BYTES + 1).read_to_end(&mut bytes)?;
        Self::from_bytes(&bytes)
    }

    /// Parses a plan file.
    ///
    /// # Errors
    /// [`Error::Truncated`], [`Error::Corrupt`], [`Error::UnsupportedVersion`], [`Error::LimitExceeded`],
    /// or [`Error::InvalidArgument`] for a layout that makes no sense.
    pub fn from_bytes(bytes: &[u8]) -> Result<Self> {
        if bytes.len() as u64 > MAX_PLAN_BYTES {
            return Err(Error::LimitExceeded {
                what: "bytes of a plan",
                limit: MAX_PLAN_BYTES,
                got: bytes.len() as u64,
            });
        }
        let mut reader = Reader::new(WHAT, bytes);
        check_version(&mut reader)?;
        let mut reader = Reader::new(WHAT, &unseal(WHAT, bytes)?[8..]);
        let model = reader.array()?;
        let [layers, kv_heads, head_dim] = [reader.u16()?, reader.u16()?, reader.u16()?].map(usize::from);
        let profiles = reader.u16()?;
        let inv_freq = reader.finite(head_dim / 2)?;
        let layout = KvLayout { layers, kv_heads, head_dim, inv_freq };
        layout.validate()?;
        let kvtc = read_profiles(&mut reader, profiles, &layout)?;
        Ok(Self { id: stored_id(bytes), model, layout, kvtc })
    }

    /// The plan file; the mirror of [`Self::from_bytes`].
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = Vec::new();
        out.put(PLAN_MAGIC);
        out.put_all(&[FORMAT_VERSION, 0], u16::to_le_bytes);
        out.put(self.model);
        let KvLayout { layers, kv_heads, head_dim, inv_freq } = &self.layout;
        out.put_all(&[*layers, *kv_heads, *head_dim, 1], |n| (n as u16).to_le_bytes());
        out.put_all(inv_freq, f32::to_le_bytes);
        let mut profile = Vec::new();
        self.kvtc.write_to(&mut profile);
        out.put([CodecId::Kvtc as u8, 0, 0, 0]);
        out.put((profile.len() as u32).to_le_bytes());
        out.append(&mut profile);
        seal(&mut out);
        out
    }
}

fn check_version(reader: &mut Reader<'_>) -> Result<()> {
    let magic = reader.array()?;
    if magic != PLAN_MAGIC {
        return Err(Error::corrupt(WHAT, format!("it starts with {magic:02x?}, not {PLAN_MAGIC:02x?}")));
    }
    match reader.u16()? {
        FORMAT_VERSION => reader.zeros(2),
        got => Err(Error::UnsupportedVersion { what: WHAT, got, supported: FORMAT_VERSION }),
    }
}

fn read_profiles(reader: &mut Reader<'_>, count: u16, layout: &KvLayout) -> Result<KvtcProfile> {
    if count == 0 || count > MAX_PROFILES {
        return Err(Error::corrupt(WHAT, format!("{count} profiles")));
    }
    let mut kvtc = None;
    for _ in 0..count {
        let codec = reader.u8()?;
        reader.zeros(3)?;
        let len = reader.u32()? as usize;
        let bytes = reader.take(len)?;
        if codec == CodecId::Kvtc as u8 {
            let profile = KvtcProfile::read_from(
                &mut Reader::new("kvtc profile", bytes),
                layout.layers,
                layout.features(),
            )?;
            if kvtc.replace(profile).is_some() {
                return Err(Error::corrupt(WHAT, "two kvtc profiles"));
            }
        }
    }
    match (kvtc, reader.remaining()) {
        (Some(kvtc), 0) => Ok(kvtc),
        (Some(_), extra) => Err(Error::corrupt(WHAT, format!("{extra} bytes follow the last profile"))),
        (None, _) => Err(Error::corrupt(WHAT, "no kvtc profile")),
    }
}

fn stored_id(sealed: &[u8]) -> PlanId {
    let mut id = [0; DIGEST_BYTES];
    id.copy_from_slice(&sealed[sealed.len() - DIGEST_BYTES..]);
    PlanId(id)
}
