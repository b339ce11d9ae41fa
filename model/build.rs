//! Compiles the CUDA kernels where the feature asks for them.

fn main() {
    #[cfg(feature = "cuda")]
    nvcc::compile_kernels(&["../gpu/include".into()]);
}
