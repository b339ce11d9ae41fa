//! The chunk header: read, checked and written in the order of the format page.

use crate::{
    coding::CodecKind,
    error::{Error, Result},
    format::{
        CHUNK_MAGIC, FORMAT_VERSION, MAX_GRID,
        bytes::{Reader, Write},
    },
    layout::KvLayout,
    plan::PlanId,
    stages::quantize::Steps,
    tokens::Place,
};

/// Codec numbers of the format that this build implements.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CodecId {
    Raw = 0,
    Lossless = 1,
    Fp8 = 2,
    KvtcPaper = 3,
    Kvtc = 4,
}

/// Everything before the shift table. Field meanings stand in `docs/kv-format.md`, section 2.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct ChunkHeader {
    pub(crate) codec: CodecId,
    /// Shifts of body tokens follow as nibbles.
    pub(crate) has_shifts: bool,
    pub(crate) is_window_coded: bool,
    /// The payload holds a shift for every token that is not exact.
    pub(crate) has_token_shifts: bool,
    /// The prompt's first token has the row that the plan holds, so that the payload need not.
    pub(crate) starts_with_first: bool,
    pub(crate) model: [u8; 16],
    pub(crate) plan: PlanId,
    pub(crate) first_token: u32,
    pub(crate) tokens: u32,
    pub(crate) prompt_tokens: u32,
    pub(crate) layers: u16,
    pub(crate) kv_heads: u16,
    pub(crate) head_dim: u16,
    pub(crate) sinks: u16,
    pub(crate) window: u16,
    pub(crate) tier: u8,
    pub(crate) window_tier: u8,
    pub(crate) steps: Steps,
    pub(crate) key_escapes: u32,
    pub(crate) value_escapes: u32,
    pub(crate) segment_bytes: u32,
    pub(crate) payload_bytes: u64,
}

const WHAT: &str = "chunk header";
const FLAG_SHIFTS: u8 = 1;
const FLAG_CODED_WINDOW: u8 = 2;
const FLAG_TOKEN_SHIFTS: u8 = 4;
const FLAG_FIRST_ROW: u8 = 8;

impl ChunkHeader {
    /// Encoded size, in bytes.
    pub(crate) const SIZE: usize = 96;

    /// Reads a header and checks what can be checked without knowing the model.
    pub(crate) fn read_from(reader: &mut Reader<'_>) -> Result<Self> {
        let magic = reader.array()?;
        if magic != CHUNK_MAGIC {
            return Err(Error::corrupt(WHAT, format!("it starts with {magic:02x?}, not {CHUNK_MAGIC:02x?}")));
        }
        match reader.u16()? {
            FORMAT_VERSION => {}
            got => {
                return Err(Error::UnsupportedVersion { what: "chunk", got, supported: FORMAT_VERSION });
            }
        }
        let codec = match reader.u8()? {
            0 => CodecId::Raw,
            1 => CodecId::Lossless,
            2 => CodecId::Fp8,
            3 => CodecId::KvtcPaper,
            4 => CodecId::Kvtc,
            id => return Err(Error::UnsupportedCodec { id }),
        };
        let flags = reader.u8()?;
        let header = Self {
            codec,
            has_shifts: flags & FLAG_SHIFTS != 0,
            is_window_coded: flags & FLAG_CODED_WINDOW != 0,
            has_token_shifts: flags & FLAG_TOKEN_SHIFTS != 0,
            starts_with_first: flags & FLAG_FIRST_ROW != 0,
            model: reader.array()?,
            plan: PlanId(reader.array()?),
            first_token: reader.u32()?,
            tokens: reader.u32()?,
            prompt_tokens: reader.u32()?,
            layers: reader.u16()?,
            kv_heads: reader.u16()?,
            head_dim: reader.u16()?,
            sinks: reader.u16()?,
            window: reader.u16()?,
            tier: reader.u8()?,
            window_tier: reader.u8()?,
            steps: Steps::read_from(reader)?,
            key_escapes: reader.u32()?,
            value_escapes: reader.u32()?,
            segment_bytes: reader.u32()?,
            payload_bytes: reader.u64()?,
        };
        reader.zeros(4)?;
        header.validate(flags)?;
        Ok(header)
    }

    fn validate(&self, flags: u8) -> Result<()> {
        let kvtc_flags = FLAG_SHIFTS | FLAG_TOKEN_SHIFTS | FLAG_FIRST_ROW;
        let allowed_flags = match self.codec {
            CodecId::Raw | CodecId::Lossless | CodecId::Fp8 => 0,
            CodecId::KvtcPaper => FLAG_CODED_WINDOW,
            CodecId::Kvtc => kvtc_flags,
        };
        if flags & !allowed_flags != 0 || (self.has_shifts && self.has_token_shifts) {
            return Err(Error::corrupt(WHAT, format!("flags are {flags:#04x}")));
        }
        let end = u64::from(self.first_token) + u64::from(self.tokens);
        if self.tokens == 0 || end > u64::from(self.prompt_tokens) {
            let detail = format!(
                "{} tokens from {} in a prompt of {}",
                self.tokens, self.first_token, self.prompt_tokens
            );
            return Err(Error::corrupt(WHAT, detail));
        }
        if let Some(step) = self.steps.all().into_iter().find(|step| step.unsigned_abs() > MAX_GRID as u16) {
            return Err(Error::corrupt(WHAT, format!("step exponent {step} is outside +-{MAX_GRID}")));
        }
        Ok(())
    }

    /// How the chunk is coded, as a caller asks for it.
    pub(crate) fn kind(&self) -> CodecKind {
        match self.codec {
            CodecId::Raw => CodecKind::Raw,
            CodecId::Lossless => CodecKind::Lossless,
            CodecId::Fp8 => CodecKind::Fp8,
            CodecId::KvtcPaper if self.is_window_coded => CodecKind::KvtcPaperCodedWindow,
            CodecId::KvtcPaper => CodecKind::KvtcPaper,
            CodecId::Kvtc => CodecKind::Kvtc,
        }
    }

    /// Where the chunk lies in its prompt.
    pub(crate) fn place(&self) -> Place {
        Place {
            first_token: self.first_token as usize,
            tokens: self.tokens as usize,
            prompt_tokens: self.prompt_tokens as usize,
        }
    }

    /// Refuses a cache of another shape.
    pub(crate) fn check_layout(&self, layout: &KvLayout) -> Result<()> {
        let [layers, kv_heads, head_dim] = [self.layers, self.kv_heads, self.head_dim].map(usize::from);
        layout.check_dimensions("chunk", layers, kv_heads, head_dim)
    }

    /// Appends the header; the mirror of [`Self::read_from`].
    pub(crate) fn write_to(&self, out: &mut Vec<u8>) {
        out.put(CHUNK_MAGIC);
        out.put(FORMAT_VERSION.to_le_bytes());
        let flag = |is_set: bool, flag: u8| if is_set { flag } else { 0 };
        let flags = flag(self.has_shifts, FLAG_SHIFTS)
            | flag(self.is_window_coded, FLAG_CODED_WINDOW)
            | flag(self.has_token_shifts, FLAG_TOKEN_SHIFTS)
            | flag(self.starts_with_first, FLAG_FIRST_ROW);
        out.put([self.codec as u8, flags]);
        out.put(self.model);
        out.put(self.plan.0);
        out.put_all(&[self.first_token, self.tokens, self.prompt_tokens], u32::to_le_bytes);
        out.put_all(&[self.layers, self.kv_heads, self.head_dim, self.sinks, self.window], u16::to_le_bytes);
        out.put([self.tier, self.window_tier]);
        out.put_all(&self.steps.all(), i16::to_le_bytes);
        out.put_all(&[self.key_escapes, self.value_escapes, self.segment_bytes], u32::to_le_bytes);
        out.put(self.payload_bytes.to_le_bytes());
        out.put([0; 4]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header() -> ChunkHeader {
        ChunkHeader {
            codec: CodecId::Kvtc,
            has_shifts: false,
            is_window_coded: false,
            has_token_shifts: true,
            starts_with_first: true,
            model: [1; 16],
            plan: PlanId([2; 16]),
            first_token: 3,
            tokens: 4,
            prompt_tokens: 7,
            layers: 8,
            kv_heads: 9,
            head_dim: 10,
            sinks: 11,
            window: 12,
            tier: 13,
            window_tier: 14,
            steps: Steps { keys: -15, values: 16, window_keys: -17, window_values: 18 },
            key_escapes: 19,
            value_escapes: 20,
            segment_bytes: 21,
            payload_bytes: 22,
        }
    }

    #[test]
    fn a_header_survives_and_has_the_written_size() {
        let mut bytes = Vec::new();
        header().write_to(&mut bytes);
        assert_eq!(bytes.len(), ChunkHeader::SIZE);
        let mut reader = Reader::new("chunk", &bytes);
        assert_eq!(ChunkHeader::read_from(&mut reader).unwrap(), header());
        assert_eq!(reader.remaining(), 0);
    }

    #[test]
    fn headers_that_contradict_themselves_are_refused() {
        let broken = [
            ChunkHeader { tokens: 0, ..header() },
            ChunkHeader { tokens: 5, ..header() },
            ChunkHeader { tokens: u32::MAX, first_token: u32::MAX, ..header() },
            ChunkHeader { steps: Steps { keys: MAX_GRID + 1, ..Steps::default() }, ..header() },
            ChunkHeader { codec: CodecId::Raw, ..header() },
            ChunkHeader { codec: CodecId::KvtcPaper, ..header() },
            ChunkHeader { is_window_coded: true, ..header() },
            ChunkHeader { has_shifts: true, ..header() },
        ];
        for header in broken {
            let mut bytes = Vec::new();
            header.write_to(&mut bytes);
            let refused = ChunkHeader::read_from(&mut Reader::new("chunk", &bytes));
            assert!(matches!(refused, Err(Error::Corrupt { .. })), "{header:?}");
        }
    }
}
