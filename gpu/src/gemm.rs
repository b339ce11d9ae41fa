//! Matrix products on tensor cores through cuBLASLt: row-major, f16 or bf16 in, f32 sums.

use std::collections::HashMap;
use std::ffi::c_void;
use std::sync::Arc;

use cudarc::cublaslt::{result, sys};
use cudarc::driver::{CudaSlice, CudaStream, DevicePtr, sys as driver, sys::CUdeviceptr};

use crate::device::Device;
use crate::error::{Error, Result};

/// What NVIDIA recommends for Hopper; it lets products be split along their inner dimension.
const WORKSPACE: usize = 32 << 20;
/// Algorithms that are tried where a shape is tuned, and times that each runs.
const CANDIDATES: usize = 12;
const TRIALS: usize = 4;
/// `CUBLAS_OP_N` and `CUBLAS_OP_T`, which the bindings of cuBLASLt lack.
const AS_IT_IS: i32 = 0;
const TRANSPOSED: i32 = 1;

/// Type of a matrix's elements.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Element {
    /// IEEE half.
    F16,
    /// bfloat16.
    Bf16,
    /// Single; as output only.
    F32,
}

impl Element {
    fn cuda(self) -> sys::cudaDataType {
        match self {
            Self::F16 => sys::cudaDataType_t::CUDA_R_16F,
            Self::Bf16 => sys::cudaDataType_t::CUDA_R_16BF,
            Self::F32 => sys::cudaDataType_t::CUDA_R_32F,
        }
    }
}

/// One matrix in device memory, row-major.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Operand {
    /// First element.
    pub pointer: CUdeviceptr,
    /// Its elements.
    pub element: Element,
    /// Elements from one row to the next.
    pub stride: usize,
}

/// `out[m, n] = a[m, k] * b`, or `out += a * b`.
#[derive(Debug, Clone, Copy)]
pub struct Product {
    /// Rows of `a` and `out`.
    pub m: usize,
    /// Columns of `out`.
    pub n: usize,
    /// Inner dimension.
    pub k: usize,
    /// `[m, k]`.
    pub a: Operand,
    /// `[n, k]` (as linear layers are stored), or `[k, n]`.
    pub b: Operand,
    /// Whether `b` is `[n, k]`.
    pub b_is_transposed: bool,
    /// `[m, n]`.
    pub out: Operand,
    /// Whether to add to what `out` holds.
    pub accumulate: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Key {
    dimensions: [usize; 3],
    strides: [usize; 3],
    elements: [Element; 3],
    flags: [bool; 2],
}

struct Prepared {
    description: sys::cublasLtMatmulDesc_t,
    layouts: [sys::cublasLtMatrixLayout_t; 3],
    algorithm: sys::cublasLtMatmulAlgo_t,
    /// What else was offered, until the best is known.
    others: Vec<sys::cublasLtMatmulAlgo_t>,
}

/// Products on one stream. Descriptions and algorithms of a shape are found once and kept.
pub struct Gemm {
    handle: sys::cublasLtHandle_t,
    stream: Arc<CudaStream>,
    workspace: CudaSlice<u8>,
    prepared: HashMap<Key, Prepared>,
}

impl std::fmt::Debug for Gemm {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Gemm").field("shapes", &self.prepared.len()).finish_non_exhaustive()
    }
}

// SAFETY: handle and descriptions are not tied to a thread, and every use takes `&mut self`.
unsafe impl Send for Gemm {}

impl Gemm {
    /// Products on `stream`.
    ///
    /// # Errors
    /// When cuBLASLt cannot be set up or there is no memory for its workspace.
    pub fn new(device: &Device, stream: &Arc<CudaStream>) -> Result<Self> {
        let workspace = device.buffer(stream, "the workspace of matrix products", WORKSPACE)?;
        let handle = result::create_handle().map_err(blas)?;
        Ok(Self { handle, stream: Arc::clone(stream), workspace, prepared: HashMap::new() })
    }

    /// Queues a product.
    ///
    /// # Safety
    /// The operands must lie in device memory that is valid for these shapes and strides until the stream is through.
    ///
    /// # Errors
    /// [`Error::Blas`] for shapes that cuBLASLt cannot multiply: rows must start on 16-byte boundaries.
    pub unsafe fn multiply(&mut self, product: &Product) -> Result<()> {
        if product.m == 0 || product.n == 0 {
            return Ok(());
        }
        let key = key(product);
        if !self.prepared.contains_key(&key) {
            let prepared = self.prepare(product, 1)?;
            self.prepared.insert(key, prepared);
        }
        // SAFETY: the caller vouches for the operands.
        unsafe { self.run(product, &self.prepared[&key]) }
    }

    /// Tries what cuBLASLt offers for a product and keeps what is quickest for all later ones of its shape. What `out` holds is lost; this
    /// waits for the device.
    ///
    /// # Safety
    /// As [`Self::multiply`].
    ///
    /// # Errors
    /// As [`Self::multiply`].
    pub unsafe fn tune(&mut self, product: &Product) -> Result<()> {
        let key = key(product);
        if let Some(known) = self.prepared.remove(&key) {
            destroy(&known);
        }
        let mut prepared = self.prepare(product, CANDIDATES)?;
        let mut best = f32::INFINITY;
        for algorithm in std::mem::take(&mut prepared.others) {
            let tried = Prepared { algorithm, others: Vec::new(), ..prepared };
            // SAFETY: the caller vouches for the operands.
            let Ok(ms) = (unsafe { self.time(product, &tried) }) else { continue };
            if ms < best {
                (best, prepared.algorithm) = (ms, algorithm);
            }
        }
        self.prepared.insert(key, prepared);
        Ok(())
    }

    /// Milliseconds of one product, the least of a few; the first warms up.
    unsafe fn time(&self, product: &Product, prepared: &Prepared) -> Result<f32> {
        let event = || self.stream.record_event(Some(driver::CUevent_flags::CU_EVENT_DEFAULT));
        let mut least = f32::INFINITY;
        for trial in 0..TRIALS {
            let start = event()?;
            // SAFETY: the caller vouches for the operands.
            unsafe { self.run(product, prepared) }?;
            let ms = start.elapsed_ms(&event()?)?;
            if trial > 0 {
                least = least.min(ms);
            }
        }
        Ok(least)
    }

    unsafe fn run(&self, product: &Product, prepared: &Prepared) -> Result<()> {
        let (alpha, beta) = (1f32, if product.accumulate { 1f32 } else { 0f32 });
        let pointer = |operand: &Operand| operand.pointer as *const c_void;
        let [b_layout, a_layout, out_layout] = prepared.layouts;
        // A row-major product is the column-major one of the transposes: out^T = b^T a^T.
        // SAFETY: the caller vouches for the operands; descriptions live in the map, the workspace as long as the stream's work.
        unsafe {
            result::matmul(
                self.handle,
                prepared.description,
                (&raw const alpha).cast(),
                (&raw const beta).cast(),
                pointer(&product.b),
                b_layout,
                pointer(&product.a),
                a_layout,
                pointer(&product.out),
                out_layout,
                product.out.pointer as *mut c_void,
                out_layout,
                &raw const prepared.algorithm,
                self.workspace.device_ptr(&self.stream).0 as *mut c_void,
                WORKSPACE,
                self.stream.cu_stream().cast(),
            )
        }
        .map_err(blas)
    }

    fn prepare(&self, p: &Product, candidates: usize) -> Result<Prepared> {
        let description = result::create_matmul_desc(
            sys::cublasComputeType_t::CUBLAS_COMPUTE_32F,
            sys::cudaDataType_t::CUDA_R_32F,
        )
        .map_err(blas)?;
        let operation = if p.b_is_transposed { TRANSPOSED } else { AS_IT_IS };
        let (b_rows, b_columns) = if p.b_is_transposed { (p.k, p.n) } else { (p.n, p.k) };
        let layout = |operand: &Operand, rows: usize, columns: usize| {
            result::create_matrix_layout(
                operand.element.cuda(),
                rows as u64,
                columns as u64,
                operand.stride as i64,
            )
        };
        // SAFETY: all handles were just made and are freed by `Drop` of the whole.
        unsafe {
            result::set_matmul_desc_attribute(
                description,
                sys::cublasLtMatmulDescAttributes_t::CUBLASLT_MATMUL_DESC_TRANSA,
                (&raw const operation).cast(),
                size_of_val(&operation),
            )
            .map_err(blas)?;
            let layouts = [
                layout(&p.b, b_rows, b_columns).map_err(blas)?,
                layout(&p.a, p.k, p.m).map_err(blas)?,
                layout(&p.out, p.n, p.m).map_err(blas)?,
            ];
            let preference = result::create_matmul_pref().map_err(blas)?;
            let workspace = WORKSPACE;
            result::set_matmul_pref_attribute(
                preference,
                sys::cublasLtMatmulPreferenceAttributes_t::CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
                (&raw const workspace).cast(),
                size_of::<usize>(),
            )
            .map_err(blas)?;
            let found = self.algorithms(description, layouts, preference, candidates);
            result::destroy_matmul_pref(preference).map_err(blas)?;
            let others = found?;
            Ok(Prepared { description, layouts, algorithm: others[0], others })
        }
    }

    /// What cuBLASLt would take, what it thinks best first; at least one and at most `count`.
    unsafe fn algorithms(
        &self,
        description: sys::cublasLtMatmulDesc_t,
        [b, a, out]: [sys::cublasLtMatrixLayout_t; 3],
        preference: sys::cublasLtMatmulPreference_t,
        count: usize,
    ) -> Result<Vec<sys::cublasLtMatmulAlgo_t>> {
        let mut found: Vec<sys::cublasLtMatmulHeuristicResult_t> = Vec::with_capacity(count);
        let mut written = 0;
        // SAFETY: there is room for `count` results, and as many are there as the call says.
        unsafe {
            sys::cublasLtMatmulAlgoGetHeuristic(
                self.handle,
                description,
                b,
                a,
                out,
                out,
                preference,
                count as i32,
                found.as_mut_ptr(),
                &raw mut written,
            )
            .result()
            .map_err(blas)?;
            found.set_len(written as usize);
        }
        found.retain(|one| one.state == sys::cublasStatus_t::CUBLAS_STATUS_SUCCESS);
        match found.is_empty() {
            true => Err(Error::Blas("no algorithm for a product of this shape".into())),
            false => Ok(found.into_iter().map(|one| one.algo).collect()),
        }
    }
}

impl Drop for Gemm {
    fn drop(&mut self) {
        // SAFETY: all of them were made by this value and nothing else holds them. A failure to free cannot be answered.
        unsafe {
            for prepared in self.prepared.values() {
                destroy(prepared);
            }
            _ = result::destroy_handle(self.handle);
        }
    }
}

fn key(product: &Product) -> Key {
    Key {
        dimensions: [product.m, product.n, product.k],
        strides: [product.a.stride, product.b.stride, product.out.stride],
        elements: [product.a.element, product.b.element, product.out.element],
        flags: [product.b_is_transposed, product.accumulate],
    }
}

/// Frees a shape's descriptions, which nothing may use any more. A failure to free cannot be answered.
fn destroy(prepared: &Prepared) {
    // SAFETY: they were made for this value alone; work in flight holds none of them.
    unsafe {
        _ = result::destroy_matmul_desc(prepared.description);
        for layout in prepared.layouts {
            _ = result::destroy_matrix_layout(layout);
        }
    }
}

fn blas(error: result::CublasError) -> Error {
    Error::Blas(error.to_string())
}
