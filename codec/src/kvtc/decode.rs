//! A payload, whose bytes nobody vouches for, to a block.

use half::bf16;

use crate::{
    error::{Error, Result},
    exact,
    format::chunk::ChunkHeader,
    kvtc::known::{Known, first_row, id_range, read_ids, restore_first, sent_exactly},
    layout::{KvBlock, KvLayout},
    plan::{KvtcProfile, predictor::FirstRow},
    predict::{Prediction, TokenFeatures},
    side::{SideContext, SidePart},
    stages::{escape::ESCAPE_BYTES, rope::RopeTable},
    tokens::{Group, Roles, SHIFTS, Shifts, Side, groups},
};

/// What a payload's first parts are, known from the header.
#[derive(Debug)]
pub(crate) struct Parts<'a> {
    pub(crate) roles: Roles,
    /// Bytes of token ids.
    pub(crate) ids: usize,
    /// Bytes of shifts, one per coded token.
    pub(crate) shifts: usize,
    /// Bytes of exact tokens, keys and values each.
    pub(crate) exact: usize,
    first: Option<&'a FirstRow>,
}

impl<'a> Parts<'a> {
    /// Derives the lengths.
    pub(crate) fn of(header: &ChunkHeader, profile: &'a KvtcProfile, features: usize) -> Result<Self> {
        let roles = Roles::of(header.place(), header.sinks, header.window);
        let first = first_row(profile, &header.place(), header.starts_with_first)?;
        let ids = profile.predictor.as_ref().map_or(0, |p| id_range(p, &header.place()).len() * p.id_bytes);
        let shifts = if header.has_token_shifts { roles.coded().len() } else { 0 };
        let exact = sent_exactly(&roles, first.is_some()).len() * features * size_of::<bf16>();
        Ok(Self { roles, ids, shifts, exact, first })
    }

    /// The payload's length, if it can be one. Exactly it follows from the shifts, which may lie inside.
    ///
    /// # Errors
    /// [`Error::Corrupt`] for more bytes or escapes than the chunk's tokens can have.
    pub(crate) fn check_payload(&self, header: &ChunkHeader, features: usize) -> Result<usize> {
        let symbols = (self.roles.coded().len() * features) as u64;
        let escapes = [header.key_escapes, header.value_escapes].map(u64::from);
        let least = (self.ids + self.shifts + 2 * self.exact) as u64;
        let lists = escapes.iter().sum::<u64>() * ESCAPE_BYTES as u64;
        // Two bytes a symbol at most.
        let most = least + lists + 2 * 2 * symbols;
        if escapes.iter().any(|&escapes| escapes > symbols) || !(least..=most).contains(&header.payload_bytes)
        {
            let detail = format!(
                "payload of {} bytes with {} escapes of keys and {} of values for {symbols} symbols a side",
                header.payload_bytes, escapes[0], escapes[1]
            );
            return Err(Error::corrupt("chunk header", detail));
        }
        Ok(header.payload_bytes as usize)
    }
}

/// The shifts that a payload holds.
///
/// # Errors
/// [`Error::Corrupt`] for one out of range.
pub(crate) fn shifts_of(bytes: &[u8]) -> Result<Vec<i8>> {
    let shifts: Vec<i8> = bytes.iter().map(|&byte| byte as i8).collect();
    match shifts.iter().find(|shift| !SHIFTS.contains(shift)) {
        Some(shift) => Err(Error::corrupt(
            "shifts",
            format!("{shift} is outside {} to {}", SHIFTS.start(), SHIFTS.end()),
        )),
        None => Ok(shifts),
    }
}

/// A payload cut into its parts, whose symbols are still packed.
#[derive(Debug)]
pub(crate) struct Opened<'a> {
    pub(crate) groups: Vec<Group>,
    ids: &'a [u8],
    exact: [&'a [u8]; 2],
    /// Keys and values: what the bytes are, and the bytes.
    pub(crate) sides: [(SidePart<'a>, &'a [u8]); 2],
}

impl<'a> Opened<'a> {
    /// Cuts `payload`, whose parts before the symbols must be there; `body_shifts` come from the table outside of it.
    ///
    /// # Errors
    /// [`Error::Corrupt`] for shifts out of range and symbols of another length than theirs.
    pub(crate) fn of(
        header: &ChunkHeader,
        (profile, parts): (&'a KvtcProfile, &Parts<'_>),
        body_shifts: Option<&[i8]>,
        payload: &'a [u8],
    ) -> Result<Self> {
        let (ids, rest) = payload.split_at(parts.ids);
        let (shifts, rest) = rest.split_at(parts.shifts);
        let (exact_keys, rest) = rest.split_at(parts.exact);
        let (exact_values, symbols) = rest.split_at(parts.exact);
        let all_shifts = header.has_token_shifts.then(|| shifts_of(shifts)).transpose()?;
        let shifts = match (&all_shifts, body_shifts) {
            (Some(all), _) => Shifts::All(all),
            (None, Some(body)) => Shifts::Body(body),
            (None, None) => Shifts::None,
        };
        let groups = groups(&parts.roles, shifts);
        let keys = SidePart::of(profile, Side::Keys, &header.steps, &groups, header.key_escapes)?;
        let values = SidePart::of(profile, Side::Values, &header.steps, &groups, header.value_escapes)?;
        let expected = keys.len + values.len;
        if expected != symbols.len() {
            let detail = format!("{} bytes of symbols, its counts give {expected}", symbols.len());
            return Err(Error::corrupt("chunk header", detail));
        }
        let (key_bytes, value_bytes) = symbols.split_at(keys.len);
        let sides = [(keys, key_bytes), (values, value_bytes)];
        Ok(Self { groups, ids, exact: [exact_keys, exact_values], sides })
    }
}

/// Decodes a payload. Its parts before the symbols must be there; `body_shifts` come from the table outside of it.
pub(crate) fn decode(
    header: &ChunkHeader,
    (profile, parts): (&KvtcProfile, &Parts<'_>),
    layout: &KvLayout,
    features: Option<&dyn TokenFeatures>,
    body_shifts: Option<&[i8]>,
    payload: &[u8],
) -> Result<KvBlock> {
    let opened = Opened::of(header, (profile, parts), body_shifts, payload)?;
    let known = profile.predictor.as_ref().map(|predictor| {
        let ids = read_ids(opened.ids, predictor.id_bytes);
        Known::of(predictor, &header.place(), &ids, features)
    });
    let known = known.transpose()?;
    let tokens = header.tokens as usize;
    let rope = RopeTable::new(layout, header.first_token as usize, tokens);
    let decode = |side: Side, rope: Option<&RopeTable>| {
        let (part, bytes) = &opened.sides[side as usize];
        let mut cache = exact_tokens(layout, tokens, side, parts, opened.exact[side as usize]);
        let prediction = known.as_ref().map(|known| Prediction::of(known.predictor, side, &known.tokens));
        let (space, order, groups) = (part.space, &part.order, opened.groups.as_slice());
        SideContext { layout, space, order, groups, rope, tokens, prediction: prediction.as_ref() }
            .decode(bytes, &mut cache)
            .map(|()| cache)
    };
    let (keys, values) = rayon::join(|| decode(Side::Keys, Some(&rope)), || decode(Side::Values, None));
    Ok(KvBlock { first_token: header.first_token as usize, tokens, keys: keys?, values: values? })
}

/// A cache with its exact tokens, zeros elsewhere.
fn exact_tokens(layout: &KvLayout, tokens: usize, side: Side, parts: &Parts<'_>, bytes: &[u8]) -> Vec<bf16> {
    let mut cache = vec![bf16::ZERO; tokens * layout.features()];
    if let Some(first) = parts.first {
        let row = match side {
            Side::Keys => &first.keys,
            Side::Values => &first.values,
        };
        restore_first(row, tokens, layout.head_dim, &mut cache);
    }
    let sent = sent_exactly(&parts.roles, parts.first.is_some());
    exact::restore(bytes, tokens, layout.head_dim, sent, &mut cache);
    cache
}
