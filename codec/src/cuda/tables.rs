//! A plan's spaces as matrix products want them: f16, weights folded in, scaled by powers of two so that nothing leaves f16's range.
//!
//! Encoder: `y / scale = [rows | features] [E | -E M]^T` with `E = U diag(w)` and M the predictor's map, so a prediction costs no product of
//! its own. Decoder: `row / inverse = [features | y x scale] [M | U^T diag(1 / w)]^T`.

use std::sync::Arc;

use gpu::{CudaSlice, CudaStream, Device, Element, Gemm, Operand, Product, PushKernelArg as _};
use half::f16;
use rayon::prelude::*;

use super::{
    buffers::pointer,
    kernels::{Functions, blocks, launch},
};
use crate::{
    plan::{predictor::Predictor, space::Space},
    tokens::Side,
};

/// Components come in blocks of so many: what products and kernels work on.
pub(super) const BLOCK: usize = 64;
/// Rows of f16 matrices start on 16-byte boundaries.
const ALIGN: usize = 8;
/// Largest element of a row of the encoder's matrix, and of the decoder's: up to twice this.
const LARGEST_ENCODING: f64 = 8_192.0;
const LARGEST_DECODING: f64 = 128.0;
/// Deviations that f16 still holds: rows and coefficients beyond that saturate.
const HEADROOM: f64 = 256.0;

/// Sizes of a plan's matrices.
#[derive(Debug, Clone, Copy)]
pub(super) struct Widths {
    /// P.
    pub(super) features: usize,
    /// P, rounded up.
    pub(super) padded_features: usize,
    /// Features that predictions are made from.
    pub(super) inputs: usize,
    /// The same rounded up; 0 without a predictor.
    pub(super) padded_inputs: usize,
}

impl Widths {
    pub(super) fn of(features: usize, predictor: Option<&Predictor>) -> Self {
        let inputs = predictor.map_or(0, Predictor::inputs);
        let [padded_features, padded_inputs] = [features, inputs].map(|n| n.next_multiple_of(ALIGN));
        Self { features, padded_features, inputs, padded_inputs }
    }
}

/// Components of a space, rounded up to whole blocks.
pub(super) fn padded_components(space: &Space) -> usize {
    space.log_sigma.len().next_multiple_of(BLOCK).max(BLOCK)
}

/// What encoder and decoder need of one side.
#[derive(Debug)]
pub(super) struct SideTables {
    /// f16: `[components, padded P + padded inputs]` of an encoder, `[padded P, padded inputs + components]` of a decoder.
    pub(super) matrix: CudaSlice<f16>,
    /// `[components]`: what a coefficient out of the encoder's product, or into the decoder's, is multiplied with.
    pub(super) scale: CudaSlice<f32>,
    /// What rows into the encoder's product, or out of the decoder's, are multiplied with.
    pub(super) row_scale: f32,
    /// `[P]`.
    pub(super) mean: CudaSlice<f32>,
    /// `[components]`.
    pub(super) log_sigma: CudaSlice<i16>,
    /// Components, rounded up.
    pub(super) components: usize,
}

/// Where tables are made.
pub(super) struct Maker<'a> {
    pub(super) device: &'a Device,
    pub(super) stream: &'a Arc<CudaStream>,
    pub(super) functions: &'a Functions,
    pub(super) widths: Widths,
}

impl Maker<'_> {
    /// The encoder's tables of one side.
    pub(super) fn encoding(
        &self,
        space: &Space,
        side: Side,
        predictor: Option<&Predictor>,
    ) -> gpu::Result<SideTables> {
        let Widths { features, padded_features, padded_inputs, .. } = self.widths;
        let (stride, components) = (padded_features + padded_inputs, padded_components(space));
        let row_scale = power_below(HEADROOM / largest_deviation(space));
        let mut matrix = vec![f16::ZERO; components * stride];
        let mut scale = vec![0f32; components];
        let rows = matrix.par_chunks_exact_mut(stride).zip(&mut scale);
        rows.zip(space.basis.values.par_chunks_exact(features)).for_each(|((out, scale), basis)| {
            let weighted =
                |k: usize| f64::from(basis[k]) * space.weights.as_ref().map_or(1.0, |w| f64::from(w[k]));
            let largest = (0..features).fold(0f64, |largest, k| largest.max(weighted(k).abs()));
            let factor = power_below(2.0 * LARGEST_ENCODING / largest);
            for (k, out) in out[..features].iter_mut().enumerate() {
                *out = f16::from_f64(weighted(k) * factor);
            }
            *scale = (1.0 / (factor * row_scale)) as f32;
        });
        let tables = self.upload(space, &matrix, &scale, row_scale as f32)?;
        if let Some(predictor) = predictor {
            self.append_map(&tables, space.log_sigma.len(), &predictor.weights(side).matrix)?;
        }
        self.stream.synchronize()?;
        Ok(tables)
    }

    /// Writes `-E M` behind E, f16 inputs and f32 sums as everywhere.
    fn append_map(&self, tables: &SideTables, components: usize, map: &[f32]) -> gpu::Result<()> {
        let Widths { features, padded_features, inputs, padded_inputs } = self.widths;
        if components == 0 {
            return Ok(());
        }
        let factor = power_below(HEADROOM / largest(map));
        let mut halves = vec![f16::ZERO; features * padded_inputs];
        halves.par_chunks_exact_mut(padded_inputs).zip(map.par_chunks_exact(inputs)).for_each(
            |(out, row)| {
                out.iter_mut().zip(row).for_each(|(out, &x)| *out = f16::from_f64(f64::from(x) * factor));
            },
        );
        let map = self.device.upload(self.stream, "a predictor's map", &halves)?;
        let mapped = self.device.buffer::<f32>(self.stream, "a projected map", components * padded_inputs)?;
        let stride = padded_features + padded_inputs;
        let operand = |pointer, element, stride| Operand { pointer, element, stride };
        let product = Product {
            m: components,
            n: padded_inputs,
            k: features,
            a: operand(pointer(&tables.matrix), Element::F16, stride),
            b: operand(pointer(&map), Element::F16, padded_inputs),
            b_is_transposed: false,
            out: operand(pointer(&mapped), Element::F32, padded_inputs),
            accumulate: false,
        };
        let mut gemm = Gemm::new(self.device, self.stream)?;
        let factor = (f64::from(tables.row_scale) / factor) as f32;
        let (inputs, padded) = (inputs as u32, padded_inputs as u32);
        let (matrix, scale, padded_features) =
            (pointer(&tables.matrix), pointer(&tables.scale), padded_features as u32);
        // SAFETY: shapes are those that the three buffers were made with; they live until the synchronisation below.
        unsafe {
            gemm.multiply(&product)?;
            let (function, mapped) = (&self.functions.finish_row, pointer(&mapped));
            let grid = blocks(components, 1);
            launch!(
                self.stream,
                function,
                grid,
                mapped,
                inputs,
                padded,
                padded,
                factor,
                matrix,
                padded_features,
                scale
            )?;
        }
        Ok(self.stream.synchronize()?)
    }

    /// The decoder's tables of one side.
    pub(super) fn decoding(
        &self,
        space: &Space,
        side: Side,
        predictor: Option<&Predictor>,
    ) -> gpu::Result<SideTables> {
        let Widths { features, padded_features, inputs, padded_inputs } = self.widths;
        let components = padded_components(space);
        let map = predictor.map(|predictor| predictor.weights(side).matrix.as_slice());
        let factors = decoding_factors(space);
        let strongest =
            space.log_sigma.iter().zip(&factors).fold(0f64, |largest, (&s, f)| largest.max(sigma(s) / f));
        let of_map = map.map_or(f64::INFINITY, |map| 32_768.0 / largest(map));
        let gain = power_below((HEADROOM / strongest).min(of_map));
        let stride = padded_inputs + components;
        let mut matrix = vec![f16::ZERO; padded_features * stride];
        matrix.par_chunks_exact_mut(stride).take(features).enumerate().for_each(|(k, out)| {
            if let Some(map) = map {
                let row = &map[k * inputs..(k + 1) * inputs];
                out.iter_mut().zip(row).for_each(|(out, &x)| *out = f16::from_f64(f64::from(x) * gain));
            }
            let inverse = space.inverse_weights.as_ref().map_or(1.0, |w| f64::from(w[k]));
            for (j, (out, factor)) in out[padded_inputs..].iter_mut().zip(&factors).enumerate() {
                *out = f16::from_f64(f64::from(space.basis.values[j * features + k]) * inverse * factor);
            }
        });
        let mut scale = vec![0f32; components];
        scale.iter_mut().zip(&factors).for_each(|(scale, factor)| *scale = (gain / factor) as f32);
        let tables = self.upload(space, &matrix, &scale, (1.0 / gain) as f32)?;
        self.stream.synchronize()?;
        Ok(tables)
    }

    fn upload(
        &self,
        space: &Space,
        matrix: &[f16],
        scale: &[f32],
        row_scale: f32,
    ) -> gpu::Result<SideTables> {
        Ok(SideTables {
            matrix: self.device.upload(self.stream, "a plan's matrix", matrix)?,
            scale: self.device.upload(self.stream, "a plan's scales", scale)?,
            row_scale,
            mean: self.device.upload(self.stream, "a plan's mean", &space.mean)?,
            log_sigma: self.device.upload(self.stream, "a plan's deviations", &space.log_sigma)?,
            components: padded_components(space),
        })
    }
}

/// What brings the largest element of each reconstructed component to f16's middle.
fn decoding_factors(space: &Space) -> Vec<f64> {
    let features = space.mean.len();
    let factor = |basis: &[f32]| {
        let element =
            |k: usize| f64::from(basis[k]) * space.inverse_weights.as_ref().map_or(1.0, |w| f64::from(w[k]));
        let largest = (0..features).fold(0f64, |largest, k| largest.max(element(k).abs()));
        power_below(2.0 * LARGEST_DECODING / largest)
    };
    space.basis.values.par_chunks_exact(features).map(factor).collect()
}

/// Largest standard deviation of a feature, of what components say of it.
fn largest_deviation(space: &Space) -> f64 {
    let features = space.mean.len();
    let mut variances = vec![0f64; features];
    for (basis, &s) in space.basis.values.chunks_exact(features).zip(&space.log_sigma) {
        let variance = sigma(s).powi(2);
        variances.iter_mut().zip(basis).for_each(|(sum, &u)| *sum += variance * f64::from(u).powi(2));
    }
    let inverse = |k: usize| space.inverse_weights.as_ref().map_or(1.0, |w| f64::from(w[k]));
    let deviations = variances.iter().enumerate().map(|(k, variance)| variance.sqrt() * inverse(k));
    deviations.fold(0f64, f64::max)
}

fn largest(values: &[f32]) -> f64 {
    values.iter().fold(0f64, |largest, &x| largest.max(f64::from(x).abs()))
}

/// Standard deviation of a component.
fn sigma(log_sigma: i16) -> f64 {
    (f64::from(log_sigma) / 48.0).exp2()
}

/// The power of two at or below `x`, within what f32 and f16 tables bear; 1 for what is no number.
fn power_below(x: f64) -> f64 {
    if x.is_finite() && x > 0.0 { x.log2().floor().clamp(-24.0, 24.0).exp2() } else { 1.0 }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn powers_are_at_or_below_and_bounded() {
        assert_eq!([1.0, 3.9, 0.3, 4.0].map(power_below), [1.0, 2.0, 0.25, 4.0]);
        assert_eq!([0.0, f64::NAN, f64::INFINITY].map(power_below), [1.0; 3]);
        assert_eq!(power_below(1e300), 24f64.exp2());
    }
}
