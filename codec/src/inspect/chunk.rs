//! A chunk's fields and parts.

use crate::{
    coding::Limits,
    error::{Error, Result, hex},
    format::{
        bytes::Reader,
        chunk::{ChunkHeader, CodecId},
        digest::{DIGEST_BYTES, unseal},
        segments::{self, SEGMENT_BYTES_RANGE, Segment},
    },
    inspect::{Item, Part, Value, paper},
    kvtc,
    layout::MAX_FEATURES,
    plan::Plan,
    planes,
    stages::{deflate::inflate, escape::ESCAPE_BYTES, order::Order},
    tokens::{Roles, Shifts, Side, groups, shift_table_len, unpack_shifts},
};

const WHAT: &str = "chunk";

/// A header whose counts are known to be sane, and what follows from it.
pub(super) struct Head {
    pub(super) header: ChunkHeader,
    pub(super) roles: Roles,
}

impl Head {
    pub(super) fn of(header: ChunkHeader) -> Self {
        Self { roles: Roles::of(header.place(), header.sinks, header.window), header }
    }

    fn read(reader: &mut Reader<'_>) -> Result<Self> {
        let header = ChunkHeader::read_from(reader)?;
        let limit = Limits::default().max_tokens as u64;
        if u64::from(header.tokens) > limit {
            return Err(Error::LimitExceeded { what: "tokens of a chunk", limit, got: header.tokens.into() });
        }
        let head = Self::of(header);
        if head.features() == 0 || head.features() > MAX_FEATURES as u64 || head.header.head_dim % 2 == 1 {
            let ChunkHeader { layers, kv_heads, head_dim, .. } = head.header;
            let detail = format!("{layers} layers x {kv_heads} kv heads x {head_dim} dimensions");
            return Err(Error::corrupt("chunk header", detail));
        }
        if head.is_deflated() && !SEGMENT_BYTES_RANGE.contains(&head.header.segment_bytes) {
            let detail = format!("segments of {} bytes", head.header.segment_bytes);
            return Err(Error::corrupt("chunk header", detail));
        }
        Ok(head)
    }

    pub(super) fn planes(&self) -> u64 {
        u64::from(self.header.layers) * u64::from(self.header.kv_heads)
    }

    pub(super) fn features(&self) -> u64 {
        self.planes() * u64::from(self.header.head_dim)
    }

    fn is_deflated(&self) -> bool {
        self.header.codec != CodecId::Raw
    }

    /// The plan, if it is the one that the chunk was coded with.
    pub(super) fn own_plan<'a>(&self, plan: Option<&'a Plan>) -> Option<&'a Plan> {
        let layout_fits = |plan: &&Plan| {
            let layout = plan.layout();
            [layout.layers, layout.kv_heads, layout.head_dim]
                == [self.header.layers, self.header.kv_heads, self.header.head_dim].map(usize::from)
        };
        plan.filter(|plan| plan.id() == self.header.plan).filter(layout_fits)
    }

    fn shifts_len(&self) -> usize {
        if self.header.has_shifts { shift_table_len(self.roles.body.len()) } else { 0 }
    }

    fn segments(&self) -> u64 {
        if self.is_deflated() {
            self.header.payload_bytes.div_ceil(self.header.segment_bytes.into())
        } else {
            0
        }
    }
}

/// Length of the chunk that `bytes` begin with.
pub(super) fn len(bytes: &[u8]) -> Result<usize> {
    let mut reader = Reader::new(WHAT, bytes);
    let head = Head::read(&mut reader)?;
    reader.take(head.shifts_len())?;
    let coded = if head.is_deflated() {
        let table = usize::try_from(head.segments().saturating_mul(4)).unwrap_or(usize::MAX);
        let ends = reader.take(table)?;
        ends.last_chunk().map_or(0, |end| u32::from_le_bytes(*end).into())
    } else {
        head.header.payload_bytes
    };
    reader.take(usize::try_from(coded).unwrap_or(usize::MAX))?;
    reader.take(DIGEST_BYTES)?;
    Ok(bytes.len() - reader.remaining())
}

/// A chunk that fills `bytes`.
pub(super) fn item(bytes: &[u8], plan: Option<&Plan>) -> Result<Item> {
    let content = unseal(WHAT, bytes)?;
    let mut reader = Reader::new(WHAT, content);
    let head = Head::read(&mut reader)?;
    let shifts = reader.take(head.shifts_len())?;
    let payload = payload_parts(&head, shifts, plan, &reader)?;
    let expected: u64 = payload.iter().map(|part| part.inflated).sum();
    if expected != head.header.payload_bytes {
        let detail = format!("payload of {} bytes, its counts give {expected}", head.header.payload_bytes);
        return Err(Error::corrupt("chunk header", detail));
    }
    let mut parts = vec![Part::plain("header", ChunkHeader::SIZE as u64)];
    if head.header.has_shifts {
        parts.push(Part::plain("shift table", shifts.len() as u64).counted(head.roles.body.len() as u64));
    }
    if head.is_deflated() {
        let segment_bytes = head.header.segment_bytes as usize;
        let segments = segments::read(&mut reader, expected as usize, segment_bytes)?;
        parts.push(Part::plain("segment ends", 4 * segments.len() as u64).counted(segments.len() as u64));
        parts.extend(with_shares(payload, &segments, segment_bytes as u64));
    } else {
        parts.extend(payload);
    }
    parts.push(Part::plain("digest", DIGEST_BYTES as u64));
    Ok(Item { what: "chunk", fields: fields(&head), parts })
}

fn fields(head: &Head) -> Vec<(&'static str, Value)> {
    let ChunkHeader { codec, model, plan, tier, window_tier, steps, .. } = &head.header;
    let mut fields: Vec<(&'static str, Value)> = vec![
        ("codec", Value::Text(head.header.kind().name().into())),
        ("model", Value::Text(hex(model))),
        ("first_token", head.header.first_token.into()),
        ("tokens", head.header.tokens.into()),
        ("prompt_tokens", head.header.prompt_tokens.into()),
        ("layers", head.header.layers.into()),
        ("kv_heads", head.header.kv_heads.into()),
        ("head_dim", head.header.head_dim.into()),
        ("raw_bytes", Value::Number((u64::from(head.header.tokens) * head.features() * 4) as i64)),
        ("payload_bytes", Value::Number(head.header.payload_bytes as i64)),
    ];
    if *codec == CodecId::Kvtc {
        let [keys, values, window_keys, window_values] = steps.all();
        fields.extend([
            ("plan", Value::Text(plan.to_string())),
            ("tier", (*tier).into()),
            ("window_tier", (*window_tier).into()),
            ("key_step", keys.into()),
            ("value_step", values.into()),
            ("window_key_step", window_keys.into()),
            ("window_value_step", window_values.into()),
        ]);
    }
    if *codec == CodecId::KvtcPaper {
        fields.extend(paper::fields(&head.header));
    }
    if head.is_deflated() {
        fields.push(("segment_bytes", head.header.segment_bytes.into()));
    }
    fields
}

/// The payload's parts in order, `bytes` still those of the inflated payload.
fn payload_parts(head: &Head, shifts: &[u8], plan: Option<&Plan>, rest: &Reader<'_>) -> Result<Vec<Part>> {
    match head.header.codec {
        CodecId::Raw => Ok(raw_parts(head)),
        CodecId::Lossless => lossless_parts(head),
        CodecId::Fp8 => Ok(fp8_parts(head)),
        CodecId::KvtcPaper => paper::parts(head, plan, rest),
        CodecId::Kvtc => kvtc_parts(head, shifts, plan, rest),
    }
}

fn raw_parts(head: &Head) -> Vec<Part> {
    let values = u64::from(head.header.tokens) * head.features();
    ["keys", "values"].map(|side| Part::plain(side, 2 * values).counted(values)).into()
}

fn tables_part(head: &Head, name: &str) -> Part {
    let (planes, head_dim) = (head.planes() as usize, usize::from(head.header.head_dim));
    Part::plain(name, planes::tables_len(planes, head_dim) as u64).counted(head.planes())
}

fn lossless_parts(head: &Head) -> Result<Vec<Part>> {
    let (planes, values) = (head.planes(), u64::from(head.header.tokens) * u64::from(head.header.head_dim));
    let mantissas = |name: &str, wide: u32| -> Result<Part> {
        let narrow = planes.checked_sub(wide.into());
        let narrow = narrow
            .ok_or_else(|| Error::corrupt("chunk header", format!("{wide} wide planes of {planes}")))?;
        let bytes = narrow * (values * 7).div_ceil(8) + u64::from(wide) * values;
        Ok(Part::plain(name, bytes).counted(planes * values))
    };
    let symbols = |name: &str| Part::plain(name, planes * values).counted(planes * values);
    Ok(vec![
        symbols("key signs and exponents"),
        symbols("value signs and exponents"),
        mantissas("key mantissas", head.header.key_escapes)?,
        mantissas("value mantissas", head.header.value_escapes)?,
        tables_part(head, "key plane tables"),
        tables_part(head, "value plane tables"),
    ])
}

fn exact_parts(head: &Head) -> Vec<Part> {
    let tokens = head.roles.exact.len() as u64 - u64::from(head.header.starts_with_first);
    let part = |name| Part::plain(name, 2 * tokens * head.features()).counted(tokens);
    vec![part("exact keys"), part("exact values")]
}

fn fp8_parts(head: &Head) -> Vec<Part> {
    let coded = u64::from(head.header.tokens) - head.roles.exact.len() as u64;
    let codes = |name| Part::plain(name, coded * head.features()).counted(coded * head.features());
    let mut parts = exact_parts(head);
    parts.extend([codes("key codes"), codes("value codes")]);
    parts.extend([tables_part(head, "key plane tables"), tables_part(head, "value plane tables")]);
    parts
}

/// The first `len` bytes of a deflated payload, whose segments `rest` holds.
fn payload_start(head: &Head, mut rest: Reader<'_>, len: usize) -> Result<Vec<u8>> {
    let segment_bytes = head.header.segment_bytes as usize;
    let mut segments = segments::read(&mut rest, head.header.payload_bytes as usize, segment_bytes)?;
    segments.truncate(len.div_ceil(segment_bytes));
    let mut payload = vec![0; segments.iter().map(|segment| segment.inflated_len).sum()];
    inflate(&segments, segment_bytes, &mut payload)?;
    payload.truncate(len);
    Ok(payload)
}

/// The parts of a kvtc payload; `rest` holds the segments.
pub(super) fn kvtc_parts(
    head: &Head,
    shifts: &[u8],
    plan: Option<&Plan>,
    rest: &Reader<'_>,
) -> Result<Vec<Part>> {
    let Some(plan) = head.own_plan(plan) else {
        let name = "token ids, shifts, exact tokens and symbols (name the plan to see them apart)";
        return Ok(vec![Part::plain(name, head.header.payload_bytes)]);
    };
    let known = kvtc::Parts::of(&head.header, plan.kvtc(), plan.layout().features())?;
    let mut parts = vec![
        Part::plain("token ids", known.ids as u64),
        Part::plain("shifts", known.shifts as u64).counted(known.shifts as u64),
    ];
    parts.retain(|part| part.inflated > 0);
    parts.extend(exact_parts(head));
    known.check_payload(&head.header, plan.layout().features())?;
    let all_shifts = if head.header.has_token_shifts {
        let start = payload_start(head, rest.clone(), known.ids + known.shifts)?;
        Some(kvtc::shifts_of(&start[known.ids..])?)
    } else {
        None
    };
    let shifts = head.header.has_shifts.then(|| unpack_shifts(shifts, head.roles.body.len())).transpose()?;
    let shifts = match (&all_shifts, &shifts) {
        (Some(all), _) => Shifts::All(all),
        (None, Some(body)) => Shifts::Body(body),
        (None, None) => Shifts::None,
    };
    let groups = groups(&head.roles, shifts);
    for (side, name, escapes) in
        [(Side::Keys, "key", head.header.key_escapes), (Side::Values, "value", head.header.value_escapes)]
    {
        let space = plan.kvtc().space(side);
        let order = Order::of(space, side, &head.header.steps, &groups);
        for run in &order.runs {
            let class = space.classes.first_class + run.table as i32;
            let packing = space.classes.tables[run.table].packing;
            let bytes = packing.packed_len(run.symbols.len()) as u64;
            let part = Part::plain(format!("{name} symbols of class {class}"), bytes);
            parts.push(part.counted(run.symbols.len() as u64));
        }
        let bytes = u64::from(escapes) * ESCAPE_BYTES as u64;
        parts.push(Part::plain(format!("{name} escapes"), bytes).counted(escapes.into()));
    }
    Ok(parts)
}

/// Gives each part its share of the segments it lies in. Shares are differences of one rising function, so they add up exactly.
fn with_shares(mut parts: Vec<Part>, segments: &[Segment<'_>], segment_bytes: u64) -> Vec<Part> {
    let starts: Vec<u64> = segments
        .iter()
        .scan(0, |end, segment| {
            let start = *end;
            *end += segment.coded.len() as u64;
            Some(start)
        })
        .collect();
    let coded_before = |at: u64| {
        let i = (at / segment_bytes) as usize;
        match segments.get(i) {
            Some(segment) => {
                let inside = at % segment_bytes * segment.coded.len() as u64 / segment.inflated_len as u64;
                starts[i] + inside
            }
            None => segments.iter().map(|segment| segment.coded.len() as u64).sum(),
        }
    };
    let total = segments.iter().map(|segment| segment.inflated_len as u64).sum::<u64>();
    let mut start = 0;
    for part in &mut parts {
        let end = start + part.inflated;
        let until = if end == total { u64::MAX } else { end };
        part.bytes = coded_before(until) - coded_before(if start == total { u64::MAX } else { start });
        start = end;
    }
    parts
}
