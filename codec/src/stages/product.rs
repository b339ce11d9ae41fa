//! Matrix product: a safe door to the `gemm` crate, the one place of this crate with unsafe code.

use std::ops::Range;

/// A read-only matrix inside a slice.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Matrix<'a> {
    data: &'a [f32],
    rows: usize,
    columns: usize,
    row_stride: usize,
    column_stride: usize,
}

impl<'a> Matrix<'a> {
    /// `data` as `[rows, columns]`, row-major.
    pub(crate) fn row_major(data: &'a [f32], rows: usize, columns: usize) -> Self {
        assert!(
            data.len() >= rows * columns,
            "matrix of {rows} x {columns} needs more elements; this is a bug"
        );
        Self { data, rows, columns, row_stride: columns, column_stride: 1 }
    }

    /// Some columns of a row-major matrix.
    pub(crate) fn columns(self, columns: Range<usize>) -> Self {
        assert!(
            columns.start <= columns.end && columns.end <= self.columns,
            "columns outside of a matrix; this is a bug"
        );
        assert_eq!(self.column_stride, 1, "columns of a transposed matrix; this is a bug");
        let data = if self.rows == 0 { self.data } else { &self.data[columns.start..] };
        Self { data, columns: columns.len(), ..self }
    }

    /// The same elements, rows and columns swapped.
    pub(crate) fn transposed(self) -> Self {
        Self {
            rows: self.columns,
            columns: self.rows,
            row_stride: self.column_stride,
            column_stride: self.row_stride,
            ..self
        }
    }
}

/// What a product does with what was there before.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Onto {
    /// Replaces it.
    Nothing,
    /// Adds to it.
    Sum,
}

/// `out = a b` or `out += a b`, row-major `[a.rows, b.columns]`, on the calling thread. An element's sum runs over the inner dimension
/// in an order that depends on the shapes only, so equal shapes give equal bits.
#[allow(unsafe_code)]
pub(crate) fn multiply(a: Matrix<'_>, b: Matrix<'_>, out: &mut [f32], onto: Onto) {
    assert_eq!(a.columns, b.rows, "inner dimensions differ; this is a bug");
    assert_eq!(out.len(), a.rows * b.columns, "product has another size; this is a bug");
    if out.is_empty() {
        return;
    }
    // SAFETY: `Matrix` covers its slice: (rows - 1) * row_stride + (columns - 1) * column_stride < data.len() by
    // construction, `out` has exactly rows x columns elements and is borrowed exclusively.
    unsafe {
        gemm::gemm(
            a.rows,
            b.columns,
            a.columns,
            out.as_mut_ptr(),
            1,
            b.columns as isize,
            onto == Onto::Sum,
            a.data.as_ptr(),
            a.column_stride as isize,
            a.row_stride as isize,
            b.data.as_ptr(),
            b.column_stride as isize,
            b.row_stride as isize,
            1.0,
            1.0,
            false,
            false,
            false,
            gemm::Parallelism::None,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_a_matrix_of_their_own() {
        let a: Vec<f32> = (0..12).map(|i| i as f32).collect();
        let part = Matrix::row_major(&a, 3, 4).columns(1..3);
        let ones = [1.0; 3];
        let mut out = [0.0; 2];
        multiply(part.transposed(), Matrix::row_major(&ones, 3, 1), &mut out, Onto::Nothing);
        assert_eq!(out, [1.0 + 5.0 + 9.0, 2.0 + 6.0 + 10.0]);
        multiply(part.transposed(), Matrix::row_major(&ones, 3, 1), &mut out, Onto::Sum);
        assert_eq!(out, [30.0, 36.0]);
    }

    #[test]
    fn products_agree_with_the_definition_in_all_orientations() {
        let a: Vec<f32> = (0..6).map(|i| i as f32).collect();
        let b: Vec<f32> = (0..12).map(|i| (i * i % 7) as f32).collect();
        let at = |m: Matrix<'_>, i: usize, j: usize| m.data[i * m.row_stride + j * m.column_stride];
        for a in [Matrix::row_major(&a, 2, 3), Matrix::row_major(&a, 3, 2).transposed()] {
            for b in [Matrix::row_major(&b, 3, 4), Matrix::row_major(&b, 4, 3).transposed()] {
                let mut out = [f32::NAN; 8];
                multiply(a, b, &mut out, Onto::Nothing);
                for (index, got) in out.into_iter().enumerate() {
                    let (i, j) = (index / 4, index % 4);
                    assert_eq!(got, (0..3).map(|k| at(a, i, k) * at(b, k, j)).sum::<f32>());
                }
            }
        }
    }
}
