//! The stages of `kvtc` after projection: quantize, order, pack, deflate, and back.

use half::bf16;

use crate::{
    error::{Error, Result},
    format::segments::{SEGMENT_BYTES, Segment},
    kvtc::{Job, Payload, known_of},
    layout::{KvBlock, KvLayout},
    plan::{Plan, space::Space},
    predict::{Prediction, TokenFeatures},
    side::SideContext,
    stages::{
        deflate::{deflate, inflate},
        order::Order,
        rope::RopeTable,
    },
    tokens::{Group, Place, Side, WINDOW},
};

/// Coefficients of keys and of values, in the tiles in which the codec has them.
#[derive(Debug, Clone, PartialEq)]
pub struct Coefficients([Vec<Vec<f32>>; 2]);

/// What the stages after projection make of coefficients.
#[derive(Debug)]
pub struct Coded {
    segments: Vec<Vec<u8>>,
    /// Inflated bytes of keys and of values.
    lens: [usize; 2],
}

impl Coded {
    /// Bytes of all segments: what a chunk has of these tokens besides its framing.
    pub fn bytes(&self) -> usize {
        self.segments.iter().map(Vec::len).sum()
    }
}

/// A block's rows after projection, all of them body tokens with one step.
#[derive(Debug)]
pub struct Projected<'a> {
    layout: &'a KvLayout,
    groups: [Group; 1],
    spaces: [&'a Space; 2],
    orders: [Order; 2],
    tokens: usize,
    coefficients: Coefficients,
}

impl<'a> Projected<'a> {
    /// Projects a block that has neither sinks nor window. `ids` are those of its prompt from the start, at least up to its end; a plan
    /// without a predictor does not look at them.
    ///
    /// # Errors
    /// [`Error::InvalidArgument`] when the block does not fit the plan or holds a value that is not finite, or ids are missing.
    pub fn new(
        plan: &'a Plan,
        tier: u8,
        block: &KvBlock,
        (features, ids): (&dyn TokenFeatures, &[u32]),
    ) -> Result<Self> {
        let (layout, profile, tokens) = (plan.layout(), plan.kvtc(), block.tokens);
        block.validate(layout)?;
        let end = block.first_token + tokens;
        if profile.predictor.is_some() && ids.len() < end {
            let detail = format!("{} token ids for a block that ends at token {end}", ids.len());
            return Err(Error::InvalidArgument(detail));
        }
        let groups = [Group { tokens: (0..tokens).collect(), shift: 0, is_window: false }];
        let (steps, spaces) =
            (profile.steps(tier), [Side::Keys, Side::Values].map(|side| profile.space(side)));
        let orders = [(Side::Keys, spaces[0]), (Side::Values, spaces[1])]
            .map(|(side, space)| Order::of(space, side, &steps, &groups));
        let prompt_tokens = end + usize::from(WINDOW);
        let place = Place { first_token: block.first_token, tokens, prompt_tokens };
        let job = Job { layout, plan, tier, place, block, shifts: None, known: Some((features, ids)) };
        let known = known_of(&job, &mut Payload::default())?;
        let prediction =
            |side| known.as_ref().map(|known| Prediction::of(known.predictor, side, &known.tokens));
        let predictions = [prediction(Side::Keys), prediction(Side::Values)];
        let rope = RopeTable::new(layout, block.first_token, tokens);
        let mut projected =
            Self { layout, groups, spaces, orders, tokens, coefficients: Coefficients([vec![], vec![]]) };
        let project = |side: usize, cache: &[bf16], rope| {
            let prediction = predictions[side].as_ref();
            SideContext { rope, prediction, ..projected.context(side) }.project(cache)
        };
        let (keys, values) = (project(0, &block.keys, Some(&rope))?, project(1, &block.values, None)?);
        projected.coefficients = Coefficients([keys, values]);
        Ok(projected)
    }

    /// Coefficients to bytes.
    pub fn code(&self) -> Coded {
        let Coefficients([keys, values]) = &self.coefficients;
        let (keys, values) = rayon::join(|| self.context(0).code(keys), || self.context(1).code(values));
        let mut payload = Payload::default();
        payload.push_side(&keys);
        payload.push_side(&values);
        let segments = deflate(&payload.bytes, &payload.breaks, SEGMENT_BYTES as usize);
        Coded { segments, lens: [keys.bytes.len(), values.bytes.len()] }
    }

    /// Bytes to coefficients; the mirror of [`Self::code`].
    ///
    /// # Errors
    /// [`Error::Corrupt`] for bytes that other coefficients were coded to.
    pub fn decode(&self, coded: &Coded) -> Result<Coefficients> {
        let segment_bytes = SEGMENT_BYTES as usize;
        let mut payload = vec![0; coded.lens.iter().sum()];
        let lens = payload.chunks(segment_bytes).map(<[u8]>::len);
        let segments = coded.segments.iter().zip(lens);
        let segments: Vec<_> =
            segments.map(|(coded, inflated_len)| Segment { coded, inflated_len }).collect();
        inflate(&segments, segment_bytes, &mut payload)?;
        let (keys, values) = payload.split_at(coded.lens[0]);
        let sides =
            rayon::join(|| self.context(0).coefficients(keys), || self.context(1).coefficients(values));
        Ok(Coefficients([sides.0?, sides.1?]))
    }

    /// Squared error of decoded coefficients over the squares of those that were coded.
    pub fn error(&self, decoded: &Coefficients) -> f64 {
        let numbers = |coefficients: &'_ Coefficients| -> Vec<f32> {
            coefficients.0.iter().flatten().flatten().copied().collect()
        };
        let (exact, decoded) = (numbers(&self.coefficients), numbers(decoded));
        let square = |x: f32| f64::from(x) * f64::from(x);
        let error: f64 = exact.iter().zip(&decoded).map(|(a, b)| square(a - b)).sum();
        error / exact.iter().copied().map(square).sum::<f64>()
    }

    /// One side without what projection alone needs.
    fn context(&self, side: usize) -> SideContext<'_> {
        let (layout, space, order, groups) =
            (self.layout, self.spaces[side], &self.orders[side], &self.groups);
        SideContext { layout, space, order, groups, rope: None, tokens: self.tokens, prediction: None }
    }
}
