//! The one place that calls the `gemm` crate on slices: attention multiplies views into caches and scratch that are
//! no tensors. Every call checks its slices' lengths, which is all that `gemm` asks of a caller.
#![allow(unsafe_code)]

use gemm::Parallelism;

/// How the right-hand matrix lies in memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Rhs {
    /// `[k, n]` row-major.
    Plain,
    /// `[n, k]` row-major, used transposed.
    Transposed,
}

/// `out = a @ b`, or `out += a @ b` with `accumulate`; `a` is `[m, k]`, `out` `[m, n]` with rows `out_stride` apart.
///
/// Single-threaded: callers parallelise over heads and query tiles.
#[allow(clippy::too_many_arguments, reason = "three matrices and their shapes")]
pub(crate) fn matmul(
    (m, k, n): (usize, usize, usize),
    a: &[f32],
    b: &[f32],
    rhs: Rhs,
    out: &mut [f32],
    out_stride: usize,
    accumulate: bool,
) {
    assert!(a.len() >= m * k && b.len() >= k * n, "operands are shorter than their shapes");
    assert!(m == 0 || out.len() >= (m - 1) * out_stride + n && out_stride >= n, "output is too short");
    let (b_column, b_row) = match rhs {
        Rhs::Plain => (1, n as isize),
        Rhs::Transposed => (k as isize, 1),
    };
    let beta = 1.0;
    // SAFETY: the asserts above prove that every element addressed by the shapes and strides lies inside its slice;
    // `out` is borrowed mutably, so it overlaps neither operand.
    unsafe {
        gemm::gemm(
            m,
            n,
            k,
            out.as_mut_ptr(),
            1,
            out_stride as isize,
            accumulate,
            a.as_ptr(),
            1,
            k as isize,
            b.as_ptr(),
            b_column,
            b_row,
            1.0,
            beta,
            false,
            false,
            false,
            Parallelism::None,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_layouts_and_accumulation_agree_with_the_definition() {
        let (m, k, n) = (3, 4, 2);
        let a: Vec<f32> = (0..12).map(|i| i as f32 - 5.0).collect();
        let b: Vec<f32> = (0..8).map(|i| (i * i) as f32).collect();
        let transposed: Vec<f32> = (0..n * k).map(|i| b[(i % k) * n + i / k]).collect();
        let expected: Vec<f32> =
            (0..m * n).map(|i| (0..k).map(|j| a[i / n * k + j] * b[j * n + i % n]).sum()).collect();
        let mut out = vec![0.0; m * n];
        matmul((m, k, n), &a, &b, Rhs::Plain, &mut out, n, false);
        assert_eq!(out, expected);
        matmul((m, k, n), &a, &transposed, Rhs::Transposed, &mut out, n, true);
        assert_eq!(out, expected.iter().map(|x| 2.0 * x).collect::<Vec<_>>());
    }
}
