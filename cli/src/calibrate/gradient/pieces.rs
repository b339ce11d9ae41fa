//! The nonlinear pieces of a Llama, and autograd through one of them at a time.
//!
//! Nothing but plain candle-core operations in here. candle-nn's fused `rms_norm`, `softmax_last_dim` and `rope` would be
//! faster, but they have no backward pass and do not say so: their results are constants to autograd, the gradient
//! through them is lost and what is left looks like a gradient.

use anyhow::Context;
use candle_core::backprop::GradStore;
use candle_core::{D, Device, Tensor, Var};

/// Gradients of a loss with respect to the variables that an output was computed from.
pub(super) struct Pulled(GradStore);

impl Pulled {
    /// Of the loss whose gradient with respect to `output` is `gradient`.
    pub(super) fn back(output: &Tensor, gradient: &Tensor) -> anyhow::Result<Self> {
        Ok(Self((output * gradient)?.sum_all()?.backward()?))
    }

    /// With respect to one variable. Detached: candle's gradients remember what they were computed from, and the next
    /// piece's backward pass would go through this one again and keep all of it alive.
    pub(super) fn wrt(&mut self, variable: &Var) -> anyhow::Result<Tensor> {
        let gradient = self.0.remove(variable);
        Ok(gradient.context("an operation of the forward pass has no gradient, this is a bug")?.detach())
    }
}

/// `x / sqrt(mean(x^2) + eps) * weight` over the last dimension; `x` `[rows, hidden]`.
pub(super) fn rms_norm(x: &Tensor, weight: &Tensor, eps: f64) -> candle_core::Result<Tensor> {
    let deviation = (x.sqr()?.mean_keepdim(D::Minus1)? + eps)?.sqrt()?;
    x.broadcast_div(&deviation)?.broadcast_mul(weight)
}

/// Gradient through [`rms_norm`] with respect to `x`.
pub(super) fn rms_norm_gradient(
    x: &Tensor,
    weight: &Tensor,
    eps: f64,
    gradient: &Tensor,
) -> anyhow::Result<Tensor> {
    let x = Var::from_tensor(x)?;
    Pulled::back(&rms_norm(&x, weight, eps)?, gradient)?.wrt(&x)
}

/// `silu(gate) * up`.
pub(super) fn swiglu(gate: &Tensor, up: &Tensor) -> candle_core::Result<Tensor> {
    gate.silu()? * up
}

/// Gradients through [`swiglu`] with respect to `gate` and `up`.
pub(super) fn swiglu_gradient(
    gate: &Tensor,
    up: &Tensor,
    gradient: &Tensor,
) -> anyhow::Result<(Tensor, Tensor)> {
    let (gate, up) = (Var::from_tensor(gate)?, Var::from_tensor(up)?);
    let mut pulled = Pulled::back(&swiglu(&gate, &up)?, gradient)?;
    Ok((pulled.wrt(&gate)?, pulled.wrt(&up)?))
}

/// Rotary embedding of positions `0..tokens`, Hugging Face's rotate-half layout.
pub(super) struct Turn {
    cos: Tensor, // [tokens, 1, head_dim / 2]
    sin: Tensor, // [tokens, 1, head_dim / 2]
}

impl Turn {
    pub(super) fn new(inv_freq: &[f32], tokens: usize, like: &Tensor) -> candle_core::Result<Self> {
        let angles = (0..tokens).flat_map(|p| inv_freq.iter().map(move |f| p as f64 * f64::from(*f)));
        let table = |values: Vec<f64>| {
            let table = Tensor::from_vec(values, (tokens, 1, inv_freq.len()), &Device::Cpu)?;
            table.to_dtype(like.dtype())?.to_device(like.device())
        };
        let (cos, sin) = angles.map(|a| (a.cos(), a.sin())).unzip();
        Ok(Self { cos: table(cos)?, sin: table(sin)? })
    }

    /// Turns every head of `x` `[tokens, heads * head_dim]`.
    pub(super) fn forth(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        self.by(x, &self.sin)
    }

    /// Undoes [`Self::forth`]; its gradient too, for the transpose of a rotation is its inverse.
    pub(super) fn back(&self, x: &Tensor) -> candle_core::Result<Tensor> {
        self.by(x, &self.sin.neg()?)
    }

    fn by(&self, x: &Tensor, sin: &Tensor) -> candle_core::Result<Tensor> {
        let (tokens, _, half) = sin.dims3()?;
        let heads = x.reshape((tokens, (), 2 * half))?;
        let (a, b) = (heads.narrow(2, 0, half)?, heads.narrow(2, half, half)?);
        let turned_a = (a.broadcast_mul(&self.cos)? - b.broadcast_mul(sin)?)?;
        let turned_b = (b.broadcast_mul(&self.cos)? + a.broadcast_mul(sin)?)?;
        Tensor::cat(&[turned_a, turned_b], 2)?.reshape(x.dims())
    }
}
