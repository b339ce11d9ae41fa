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
    paper::profile::PaperProfile,
    plan::{KvtcProfile, Plan, PlanId},
};

/// Largest plan file that is read: two full bases of 16,384 features in f16 are 2 GiB; nobody ships those, 512 MiB hold the
/// trimmed bases of an 8,192-feature model twice.
pub const MAX_PLAN_BYTES: u64 = 512 << 20;

const WHAT: &str = "plan";
const MAX_PROFILES: u16 = 8;

impl Plan {
    pub(crate) fn new(model: [u8; 16], layout: KvLayout, kvtc: KvtcProfile) -> Self {
        Self { id: PlanId::NONE, model, layout, kvtc, paper: None }.with_own_id()
    }

    /// This plan with other tables of kvtc-paper, under another id.
    pub(crate) fn with_paper(&self, paper: PaperProfile) -> Self {
        Self { paper: Some(paper), ..self.clone() }.with_own_id()
    }

    fn with_own_id(self) -> Self {
        Self { id: stored_id(&self.to_bytes()), ..self }
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
        let (kvtc, paper) = read_profiles(&mut reader, profiles, &layout)?;
        Ok(Self { id: stored_id(bytes), model, layout, kvtc, paper })
    }

    /// The plan file; the mirror of [`Self::from_bytes`].
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut out = Vec::new();
        out.put(PLAN_MAGIC);
        out.put_all(&[FORMAT_VERSION, 0], u16::to_le_bytes);
        out.put(self.model);
        let KvLayout { layers, kv_heads, head_dim, inv_freq } = &self.layout;
        let profiles = 1 + usize::from(self.paper.is_some());
        out.put_all(&[*layers, *kv_heads, *head_dim, profiles], |n| (n as u16).to_le_bytes());
        out.put_all(inv_freq, f32::to_le_bytes);
        write_profile(CodecId::Kvtc, |profile| self.kvtc.write_to(profile), &mut out);
        if let Some(paper) = &self.paper {
            write_profile(CodecId::KvtcPaper, |profile| paper.write_to(profile), &mut out);
        }
        seal(&mut out);
        out
    }
}

fn write_profile(codec: CodecId, write: impl FnOnce(&mut Vec<u8>), out: &mut Vec<u8>) {
    let mut profile = Vec::new();
    write(&mut profile);
    out.put([codec as u8, 0, 0, 0]);
    out.put((profile.len() as u32).to_le_bytes());
    out.append(&mut profile);
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

fn read_profiles(
    reader: &mut Reader<'_>,
    count: u16,
    layout: &KvLayout,
) -> Result<(KvtcProfile, Option<PaperProfile>)> {
    if count == 0 || count > MAX_PROFILES {
        return Err(Error::corrupt(WHAT, format!("{count} profiles")));
    }
    let (mut kvtc, mut paper) = (None, None);
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
        } else if codec == CodecId::KvtcPaper as u8 {
            let profile =
                PaperProfile::read_from(&mut Reader::new("kvtc-paper profile", bytes), layout.features())?;
            if paper.replace(profile).is_some() {
                return Err(Error::corrupt(WHAT, "two kvtc-paper profiles"));
            }
        }
    }
    match (kvtc, reader.remaining()) {
        (Some(kvtc), 0) => Ok((kvtc, paper)),
        (Some(_), extra) => Err(Error::corrupt(WHAT, format!("{extra} bytes follow the last profile"))),
        (None, _) => Err(Error::corrupt(WHAT, "no kvtc profile")),
    }
}

fn stored_id(sealed: &[u8]) -> PlanId {
    let mut id = [0; DIGEST_BYTES];
    id.copy_from_slice(&sealed[sealed.len() - DIGEST_BYTES..]);
    PlanId(id)
}
