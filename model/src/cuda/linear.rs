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
    let product = product(stream, weights, x, out, accumulate);
    // SAFETY: the buffers have these shapes, and their memory goes back in the order of this stream.
    Ok(unsafe { gemm.multiply(&product) }?)
}

/// Finds the quickest way for [`linear`] calls of this shape; what `out` holds is lost.
pub(crate) fn tune<T: Output>(
    gemm: &mut Gemm,
    stream: &CudaStream,
    weights: &Matrix,
    x: &CudaView<'_, bf16>,
    out: &mut CudaViewMut<'_, T>,
    accumulate: bool,
) -> Result<()> {
    let product = product(stream, weights, x, out, accumulate);
    // SAFETY: the buffers have these shapes, and their memory goes back in the order of this stream.
    Ok(unsafe { gemm.tune(&product) }?)
}

/// Rows that products of `rows` rows are made with: so that the many lengths of prompts come to few shapes, each of which cuBLASLt has to
/// be asked about. A tile of its kernels has no fewer rows anyway.
pub(crate) fn padded(rows: usize) -> usize {
    if rows <= 64 { rows } else { rows.next_multiple_of(128) }
}

fn product<T: Output>(
    stream: &CudaStream,
    weights: &Matrix,
    x: &CudaView<'_, bf16>,
    out: &mut CudaViewMut<'_, T>,
    accumulate: bool,
) -> Product {
    let rows = x.len() / weights.inputs;
    assert_eq!(out.len(), rows * weights.outputs, "a row out for every row in; this is a bug");
    let operand = |pointer, element, stride| Operand { pointer, element, stride };
    Product {
        m: rows,
        n: weights.outputs,
        k: weights.inputs,
        a: operand(x.device_ptr(stream).0, Element::Bf16, weights.inputs),
        b: operand(weights.data.device_ptr(stream).0, Element::Bf16, weights.inputs),
        b_is_transposed: true,
        out: operand(out.device_ptr_mut(stream).0, T::ELEMENT, weights.outputs),
        accumulate,
    }
}
