//! Compiles a crate's `kernels/*.cu` into one fat binary each, for build scripts.
//!
//! A fat binary holds PTX for compute capability 8.0, which the driver compiles for any card from Ampere on, and machine code for the
//! cards named in `KVFERRY_CUDA_ARCHS` (default `90a`: H100, H200). nvcc is taken from `NVCC`, `CUDA_HOME`, or the path; no GPU is
//! needed to build.

#![allow(clippy::print_stdout)] // how a build script talks to cargo

use std::path::{Path, PathBuf};
use std::process::Command;

/// Cards that machine code is built for, unless the environment names others.
const ARCHS: &str = "90a";

/// Compiles every `kernels/*.cu` of the crate whose build script calls it to `$OUT_DIR/NAME.fatbin`. `include` are folders of headers,
/// the crate's own `kernels` is one of them anyway.
///
/// # Panics
/// When nvcc is missing or refuses a kernel: a build script has no other way to stop a build.
pub fn compile_kernels(include: &[PathBuf]) {
    let root = PathBuf::from(variable("CARGO_MANIFEST_DIR"));
    let out = PathBuf::from(variable("OUT_DIR"));
    let kernels = root.join("kernels");
    for watched in include.iter().chain([&kernels]) {
        println!("cargo::rerun-if-changed={}", watched.display());
    }
    for name in ["NVCC", "CUDA_HOME", "KVFERRY_CUDA_ARCHS"] {
        println!("cargo::rerun-if-env-changed={name}");
    }
    let entries = std::fs::read_dir(&kernels)
        .unwrap_or_else(|error| panic!("cannot list {}: {error}", kernels.display()));
    let mut sources: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
    sources.retain(|path| path.extension().is_some_and(|extension| extension == "cu"));
    sources.sort();
    std::thread::scope(|scope| {
        for source in &sources {
            let (kernels, out) = (&kernels, &out);
            scope.spawn(move || compile(source, kernels, include, out));
        }
    });
}

fn compile(source: &Path, kernels: &Path, include: &[PathBuf], out: &Path) {
    let name = source.file_stem().unwrap_or_default().to_string_lossy();
    let mut command = Command::new(nvcc());
    command.arg("-fatbin").arg("-O3").arg("-std=c++17").arg("-lineinfo").arg("--compress-mode=size");
    command.arg("-gencode=arch=compute_80,code=compute_80");
    let archs = std::env::var("KVFERRY_CUDA_ARCHS").unwrap_or_else(|_| ARCHS.into());
    for arch in archs.split(',').filter(|arch| !arch.is_empty()) {
        command.arg(format!("-gencode=arch=compute_{arch},code=sm_{arch}"));
    }
    command.arg("-I").arg(kernels);
    for folder in include {
        command.arg("-I").arg(folder);
    }
    command.arg("-o").arg(out.join(format!("{name}.fatbin"))).arg(source);
    let output = command.output().unwrap_or_else(|error| {
        panic!(
            "cannot run {}: {error}; the feature `cuda` needs CUDA's compiler (nvcc 13.0): set NVCC or CUDA_HOME, or assemble one \
             with deploy/cuda/toolkit.sh",
            command.get_program().display()
        )
    });
    if !output.status.success() {
        panic!("nvcc refused {}:\n{}", source.display(), String::from_utf8_lossy(&output.stderr));
    }
}

fn nvcc() -> PathBuf {
    let under_home = || Some(PathBuf::from(std::env::var_os("CUDA_HOME")?).join("bin/nvcc"));
    std::env::var_os("NVCC").map(PathBuf::from).or_else(under_home).unwrap_or_else(|| "nvcc".into())
}

fn variable(name: &str) -> String {
    std::env::var(name).unwrap_or_else(|_| panic!("{name} is not set: this is for build scripts"))
}
