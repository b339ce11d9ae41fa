//! One side's tables of a kvtc profile: mean, weights, basis, standard deviations, class tables.

use std::ops::Range;

use crate::{
    error::{Error, Result},
    format::bytes::{Reader, Write},
    plan::{classes::ClassTables, elements::Rows},
    stages::quantize::class_of,
};

/// The space in which one side (keys or values) is coded.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Space {
    /// `[P]`.
    pub(crate) mean: Vec<f32>,
    /// `[P]`, positive; none means all 1.
    pub(crate) weights: Option<Vec<f32>>,
    /// `[P]`, what undoes the weights.
    pub(crate) inverse_weights: Option<Vec<f32>>,
    /// Log2 of each component's standard deviation in grid units, not increasing.
    pub(crate) log_sigma: Vec<i16>,
    /// `[components, P]`.
    pub(crate) basis: Rows,
    /// How the symbols of each class are packed and reconstructed.
    pub(crate) classes: ClassTables,
}

const WHAT: &str = "plan space";
const FLAG_WEIGHTS: u8 = 1;

impl Space {
    /// Components of class table `table` at a step; the last table also takes the classes above.
    pub(crate) fn components_of(&self, table: usize, exponent: i32) -> Range<usize> {
        let class = self.classes.first_class + table as i32;
        let is_last = table + 1 == self.classes.tables.len();
        let start = if is_last { 0 } else { self.components_from(class + 1, exponent) };
        start..self.components_from(class, exponent)
    }

    /// Components that are coded at a step: a prefix.
    pub(crate) fn kept(&self, exponent: i32) -> usize {
        self.components_from(self.classes.first_class, exponent)
    }

    fn components_from(&self, class: i32, exponent: i32) -> usize {
        self.log_sigma.partition_point(|&sigma| class_of(sigma, exponent) >= class)
    }

    pub(crate) fn read_from(reader: &mut Reader<'_>, features: usize) -> Result<Self> {
        let components = usize::from(reader.u16()?);
        let (flags, element) = (reader.u8()?, reader.u8()?);
        if components > features || flags & !FLAG_WEIGHTS != 0 {
            let detail = format!("{components} components of {features}, flags {flags:#04x}");
            return Err(Error::corrupt(WHAT, detail));
        }
        let classes = ClassTables::read_from(reader)?;
        let mean = reader.finite(features)?;
        let weights = if flags & FLAG_WEIGHTS != 0 { Some(read_weights(reader, features)?) } else { None };
        let log_sigma = reader.list(components, i16::from_le_bytes)?;
        if !log_sigma.is_sorted_by(|a, b| a >= b) {
            return Err(Error::corrupt(WHAT, "standard deviations increase"));
        }
        let basis = Rows::read_from(reader, element, components, features)?;
        let inverse_weights = weights.as_deref().map(invert);
        Ok(Self { mean, weights, inverse_weights, log_sigma, basis, classes })
    }

    /// The mirror of [`Self::read_from`].
    pub(crate) fn write_to(&self, out: &mut Vec<u8>) {
        out.put((self.log_sigma.len() as u16).to_le_bytes());
        out.put([if self.weights.is_some() { FLAG_WEIGHTS } else { 0 }, self.basis.element()]);
        self.classes.write_to(out);
        out.put_all(&self.mean, f32::to_le_bytes);
        if let Some(weights) = &self.weights {
            out.put_all(weights, f32::to_le_bytes);
        }
        out.put_all(&self.log_sigma, i16::to_le_bytes);
        self.basis.write_to(self.mean.len(), out);
    }
}

fn read_weights(reader: &mut Reader<'_>, features: usize) -> Result<Vec<f32>> {
    let weights = reader.finite(features)?;
    match weights.iter().find(|&&weight| !(weight > 0.0 && (1.0 / weight).is_finite())) {
        Some(weight) => Err(Error::corrupt(WHAT, format!("a feature weight is {weight}"))),
        None => Ok(weights),
    }
}

pub(crate) fn invert(weights: &[f32]) -> Vec<f32> {
    weights.iter().map(|weight| 1.0 / weight).collect()
}
