//! A chunk of kvtc-paper: sinks, window, body of keys, body of values.

use half::bf16;

use crate::{
    error::{Error, Result},
    exact,
    layout::KvLayout,
    paper::{
        BitGroup,
        body::{self, BodyContext},
        profile::PaperProfile,
        sinks,
    },
    plan::{KvtcProfile, Plan},
    side::{SideContext, SidePart},
    stages::{quantize::Steps, rope::RopeTable},
    tokens::{Group, Place, Roles, SINKS, Side, WINDOW, groups},
};

/// How the last tokens of a prompt are written.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Window<'a> {
    /// As they are.
    Raw,
    /// As `kvtc` does, at the window's steps.
    Coded(&'a KvtcProfile, Steps),
}

/// What both directions need to know about a chunk.
#[derive(Debug)]
pub(crate) struct PaperChunk<'a> {
    layout: &'a KvLayout,
    profile: &'a PaperProfile,
    /// Bit plans of keys and values.
    groups: [&'a [BitGroup]; 2],
    window: Window<'a>,
    /// The window's tokens, unless there are none.
    window_groups: Vec<Group>,
    roles: Roles,
    place: Place,
}

/// A payload and what its header must say about it.
#[derive(Debug, Default)]
pub(crate) struct Payload {
    pub(crate) bytes: Vec<u8>,
    /// Offsets in `bytes` where statistics change.
    pub(crate) breaks: Vec<usize>,
    /// Escapes of keys and of values in a coded window.
    pub(crate) escapes: [u32; 2],
}

/// Steps of a coded window in a chunk of this tier; the body has none.
pub(crate) fn window_steps(profile: &KvtcProfile, tier: u8) -> Steps {
    Steps { keys: 0, values: 0, ..profile.steps(tier) }
}

/// Tables of the codec.
pub(crate) fn profile(plan: &Plan) -> Result<&PaperProfile> {
    plan.paper().ok_or(Error::ProfileMissing { codec: "kvtc-paper" })
}

impl<'a> PaperChunk<'a> {
    /// # Errors
    /// [`Error::ProfileMissing`], or [`Error::InvalidArgument`] for a tier without a bit plan.
    pub(crate) fn new(
        layout: &'a KvLayout,
        plan: &'a Plan,
        place: Place,
        tier: u8,
        window: Window<'a>,
    ) -> Result<Self> {
        let profile = profile(plan)?;
        let plans = profile.keys.plan(tier).zip(profile.values.plan(tier));
        let (keys, values) =
            plans.ok_or_else(|| Error::InvalidArgument(format!("no bit plan for tier {tier}")))?;
        let roles = Roles::of(place, SINKS, WINDOW);
        let window_groups = groups(&Roles { body: 0..0, ..roles.clone() }, None);
        Ok(Self { layout, profile, groups: [keys, values], window, window_groups, roles, place })
    }

    fn planes(&self) -> usize {
        self.layout.layers * self.layout.kv_heads
    }

    fn sinks_len(&self) -> usize {
        sinks::len(self.planes(), self.layout.head_dim, self.roles.exact.len())
    }

    /// Bytes of one side's window.
    fn window_len(&self, side: Side, escapes: u32) -> Result<usize> {
        match self.window {
            Window::Raw => Ok(self.roles.window.len() * self.layout.features() * size_of::<bf16>()),
            Window::Coded(profile, steps) => {
                SidePart::of(profile, side, &steps, &self.window_groups, escapes).map(|part| part.len)
            }
        }
    }

    fn body_len(&self, side: Side) -> usize {
        body::len(self.groups[side as usize], self.roles.body.len())
    }

    /// Bytes of the payload, given the escapes that a header claims.
    pub(crate) fn payload_len(&self, escapes: [u32; 2]) -> Result<usize> {
        let window = self.window_len(Side::Keys, escapes[0])? + self.window_len(Side::Values, escapes[1])?;
        Ok(self.sinks_len() + window + self.body_len(Side::Keys) + self.body_len(Side::Values))
    }

    fn rope(&self) -> RopeTable {
        RopeTable::new(self.layout, self.place.first_token, self.place.tokens)
    }

    fn body<'b>(&'b self, side: Side, rope: Option<&'b RopeTable>) -> BodyContext<'b> {
        BodyContext {
            layout: self.layout,
            space: &self.profile.side(side).space,
            groups: self.groups[side as usize],
            rope,
            tokens: self.place.tokens,
        }
    }

    /// Keys and values of a block to a payload.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] for a value that is not finite, unless it lies in a raw window.
    pub(crate) fn encode(&self, sides: [&[bf16]; 2]) -> Result<Payload> {
        let rope = &self.rope();
        let mut payload = Payload::default();
        let (tokens, head_dim) = (self.place.tokens, self.layout.head_dim);
        sinks::write(sides, tokens, head_dim, self.roles.exact.clone(), &mut payload.bytes)?;
        payload.breaks.push(payload.bytes.len());
        let encode = |side: Side, rope: Option<&RopeTable>| {
            let cache = sides[side as usize];
            let mut body = Payload::default();
            self.body(side, rope).encode(
                cache,
                self.roles.body.clone(),
                &mut body.bytes,
                &mut body.breaks,
            )?;
            Ok::<_, Error>((self.encode_window(side, rope, cache)?, body))
        };
        let (keys, values) = rayon::join(|| encode(Side::Keys, Some(rope)), || encode(Side::Values, None));
        let ((key_window, keys), (value_window, values)) = (keys?, values?);
        payload.escapes = [key_window.escapes[0], value_window.escapes[0]];
        for part in [key_window, value_window, keys, values] {
            payload.append(part);
        }
        Ok(payload)
    }

    fn encode_window(&self, side: Side, rope: Option<&RopeTable>, cache: &[bf16]) -> Result<Payload> {
        let (tokens, head_dim) = (self.place.tokens, self.layout.head_dim);
        let Window::Coded(profile, steps) = self.window else {
            let mut out = Payload::default();
            let range = self.roles.window.clone();
            exact::write(cache, tokens, head_dim, range, &mut out.bytes, &mut out.breaks);
            return Ok(out);
        };
        let part = SidePart::of(profile, side, &steps, &self.window_groups, 0)?;
        let coded = self.window_context(&part, rope).encode(cache)?;
        Ok(Payload { bytes: coded.bytes, breaks: coded.breaks, escapes: [coded.escapes as u32, 0] })
    }

    fn window_context<'b>(&'b self, part: &'b SidePart<'_>, rope: Option<&'b RopeTable>) -> SideContext<'b> {
        SideContext {
            layout: self.layout,
            space: part.space,
            order: &part.order,
            groups: &self.window_groups,
            rope,
            tokens: self.place.tokens,
        }
    }

    /// A payload, of the length that [`Self::payload_len`] gives, to keys and values; the mirror of [`Self::encode`].
    pub(crate) fn decode(&self, payload: &[u8], escapes: [u32; 2]) -> Result<[Vec<bf16>; 2]> {
        let mut rest = payload;
        let mut take = |len: usize| {
            let (head, tail) = rest.split_at(len);
            rest = tail;
            head
        };
        let sinks = take(self.sinks_len());
        let windows = [
            take(self.window_len(Side::Keys, escapes[0])?),
            take(self.window_len(Side::Values, escapes[1])?),
        ];
        let bodies = [take(self.body_len(Side::Keys)), take(self.body_len(Side::Values))];
        let rope = &self.rope();
        let decode = |side: Side, rope: Option<&RopeTable>| {
            let i = side as usize;
            let mut cache = vec![bf16::ZERO; self.place.tokens * self.layout.features()];
            self.body(side, rope).decode(bodies[i], self.roles.body.clone(), &mut cache)?;
            self.decode_window(side, rope, windows[i], escapes[i], &mut cache)?;
            Ok::<_, Error>(cache)
        };
        let (keys, values) = rayon::join(|| decode(Side::Keys, Some(rope)), || decode(Side::Values, None));
        let (mut keys, mut values) = (keys?, values?);
        let (tokens, head_dim) = (self.place.tokens, self.layout.head_dim);
        sinks::restore(sinks, tokens, head_dim, self.roles.exact.clone(), [&mut keys, &mut values])?;
        Ok([keys, values])
    }

    fn decode_window(
        &self,
        side: Side,
        rope: Option<&RopeTable>,
        bytes: &[u8],
        escapes: u32,
        cache: &mut [bf16],
    ) -> Result<()> {
        let Window::Coded(profile, steps) = self.window else {
            let (tokens, head_dim) = (self.place.tokens, self.layout.head_dim);
            exact::restore(bytes, tokens, head_dim, self.roles.window.clone(), cache);
            return Ok(());
        };
        let part = SidePart::of(profile, side, &steps, &self.window_groups, escapes)?;
        self.window_context(&part, rope).decode(bytes, cache)
    }
}

impl Payload {
    /// Appends another payload's bytes; its escapes are the caller's.
    fn append(&mut self, part: Self) {
        let start = self.bytes.len();
        self.bytes.extend(part.bytes);
        self.breaks.extend(part.breaks.iter().map(|at| start + at));
        self.breaks.push(self.bytes.len());
    }
}
