//! Linear layers: `y = x W^T` on tensor cores.

use gpu::{CudaStream, CudaView, CudaViewMut, DevicePtr, DevicePtrMut, Element, Gemm, Operand, Product};
use half::bf16;

use super::weights::Matrix;
use crate::error::Result;

/// What a linear layer can write.
pub(crate) trait Output {
    const ELEMENT: Element;
}

impl Output for bf16 {
    const ELEMENT: Element = Element::Bf16;
}

impl Output for f32 {
    const ELEMENT: Element = Element::F32;
}

/// `out` `[rows, outputs]` = `x W^T` of `x` `[rows, inputs]`, or adds to it; `stream` is the products' stream.
pub(crate) fn linear<T: Output>(
    gemm: &mut Gemm,
    stream: &CudaStream,
    weights: &Matrix,
    x: &CudaView<'_, bf16>,
    out: &mut CudaViewMut<'_, T>,
    accumulate: bool,
) -> Result<()> {
    let rows = x.len() / weights.inputs;
    assert_eq!(out.len(), rows * weights.outputs, "a row out for every row in; this is a bug");
    let (x, _x_guard) = x.device_ptr(stream);
    let (w, _w_guard) = weights.data.device_ptr(stream);
    let (y, _y_guard) = out.device_ptr_mut(stream);
    let product = Product {
        m: rows,
        n: weights.outputs,
        k: weights.inputs,
        a: Operand { pointer: x, element: Element::Bf16, stride: weights.inputs },
        b: Operand { pointer: w, element: Element::Bf16, stride: weights.inputs },
        b_is_transposed: true,
        out: Operand { pointer: y, element: T::ELEMENT, stride: weights.outputs },
        accumulate,
    };
    // SAFETY: the buffers have these shapes, and their memory goes back in the order of this stream.
    Ok(unsafe { gemm.multiply(&product) }?)
}
