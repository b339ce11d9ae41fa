//! Matrix product: a safe door to the `gemm` crate, the one place of this crate with unsafe code.

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

/// `out = a b`, row-major `[a.rows, b.columns]`, on the calling thread. An element's sum runs over the inner dimension
/// in an order that depends on the shapes only, so equal shapes give equal bits.
#[allow(unsafe_code)]
pub(crate) fn multiply(a: Matrix<'_>, b: Matrix<'_>, out: &mut [f32]) {
    assert_eq!(a.columns, b.rows, "inner dimensions differ; this is a bug");
    assert_eq!(out.len(), a.rows * b.columns, "product has another size; this is a bug");
    if out.is_empty() {
        return;
    }
    // SAFETY: `Matrix` covers its slice: (rows - 1) * row_stride + (columns - 1) * column_stride < data.len() by
    // construction, `out` has exactly rows x columns elements and is borrowed exclusively, and `read_dst` is false.
    unsafe {
        gemm::gemm(
            a.rows,
            b.columns,
            a.columns,
            out.as_mut_ptr(),
            1,
            b.columns as isize,
            false,
            a.data.as_ptr(),
            a.column_stride as isize,
            a.row_stride as isize,
            b.data.as_ptr(),
            b.column_stride as isize,
            b.row_stride as isize,
            0.0,
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
    fn products_agree_with_the_definition_in_all_orientations() {
        let a: Vec<f32> = (0..6).map(|i| i as f32).collect();
        let b: Vec<f32> = (0..12).map(|i| (i * i % 7) as f32).collect();
        let at = |m: Matrix<'_>, i: usize, j: usize| m.data[i * m.row_stride + j * m.column_stride];
        for a in [Matrix::row_major(&a, 2, 3), Matrix::row_major(&a, 3, 2).transposed()] {
            for b in [Matrix::row_major(&b, 3, 4), Matrix::row_major(&b, 4, 3).transposed()] {
                let mut out = [f32::NAN; 8];
                multiply(a, b, &mut out);
                for (index, got) in out.into_iter().enumerate() {
                    let (i, j) = (index / 4, index % 4);
                    assert_eq!(got, (0..3).map(|k| at(a, i, k) * at(b, k, j)).sum::<f32>());
                }
            }
        }
    }
}
