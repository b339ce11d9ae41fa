//! Safetensors files of a model directory to f32, one file or sharded, and the fingerprint over them.
#![allow(unsafe_code)]

use std::path::{Path, PathBuf};

use candle_core::safetensors::MmapedSafetensors;
use candle_core::{DType, Device};
use safetensors::tensor::TensorView;
use serde::Deserialize;

use crate::error::{Error, Result};

/// The mapped checkpoint of one model directory.
pub struct Weights {
    dir: PathBuf,
    files: MmapedSafetensors,
}

impl std::fmt::Debug for Weights {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Weights").field("dir", &self.dir).finish_non_exhaustive()
    }
}

#[derive(Deserialize)]
struct Index {
    weight_map: std::collections::BTreeMap<String, String>,
}

impl Weights {
    /// Maps `model.safetensors`, or every shard that `model.safetensors.index.json` names.
    ///
    /// # Errors
    /// When a file is missing or is no safetensors file.
    pub fn open(model_dir: &Path) -> Result<Self> {
        let paths = Self::paths(model_dir)?;
        // SAFETY: the files are mapped read-only. Changing them while a process serves them is outside of what any
        // loader of mapped weights can guard against; the documentation of `--model` says so.
        let files = unsafe { MmapedSafetensors::multi(&paths) };
        let files = files.map_err(|error| {
            // candle adds a backtrace where there is one.
            let reason = error.to_string().lines().next().unwrap_or_default().to_owned();
            Error::Damaged { path: model_dir.to_owned(), reason }
        })?;
        Ok(Self { dir: model_dir.to_owned(), files })
    }

    fn paths(model_dir: &Path) -> Result<Vec<PathBuf>> {
        let index = model_dir.join("model.safetensors.index.json");
        let shards = if index.exists() {
            let io = |source| Error::Io { path: index.clone(), source };
            let text = std::fs::read_to_string(&index).map_err(io)?;
            let parsed: Index = serde_json::from_str(&text)
                .map_err(|e| Error::Config { path: index.clone(), message: e.to_string() })?;
            let names: std::collections::BTreeSet<_> = parsed.weight_map.into_values().collect();
            names.into_iter().map(|name| model_dir.join(name)).collect()
        } else {
            vec![model_dir.join("model.safetensors")]
        };
        for path in &shards {
            std::fs::metadata(path).map_err(|source| Error::Io { path: path.clone(), source })?;
        }
        Ok(shards)
    }

    /// One tensor as it lies in its file, little-endian and row-major, its shape checked.
    ///
    /// # Errors
    /// [`Error::MissingTensor`] or [`Error::Shape`].
    pub fn view(&self, name: &str, shape: &[usize]) -> Result<TensorView<'_>> {
        let missing = |_| Error::MissingTensor { path: self.dir.clone(), name: name.into() };
        let view = self.files.get(name).map_err(missing)?;
        if view.shape() != shape {
            return Err(Error::Shape { name: name.into(), expected: shape.into(), got: view.shape().into() });
        }
        Ok(view)
    }

    /// One tensor's elements as f32, row-major, its shape checked.
    ///
    /// # Errors
    /// [`Error::MissingTensor`], [`Error::Shape`], or a dtype that cannot be widened.
    pub fn get(&self, name: &str, shape: &[usize]) -> Result<Vec<f32>> {
        self.view(name, shape)?;
        let tensor = self.files.load(name, &Device::Cpu)?.to_dtype(DType::F32)?;
        Ok(tensor.flatten_all()?.to_vec1()?)
    }

    /// Digest of every tensor's name, type, shape and bytes, and of `config.json`: two directories with the same
    /// fingerprint hold the same model. First 16 bytes of BLAKE3.
    ///
    /// # Errors
    /// When `config.json` cannot be read.
    pub fn fingerprint(&self) -> Result<[u8; 16]> {
        let path = self.dir.join("config.json");
        let config = std::fs::read(&path).map_err(|source| Error::Io { path, source })?;
        let mut hasher = blake3::Hasher::new();
        hasher.update(&(config.len() as u64).to_le_bytes()).update(&config);
        let mut tensors = self.files.tensors();
        tensors.sort_by(|a, b| a.0.cmp(&b.0));
        for (name, view) in tensors {
            hasher.update(format!("{name} {:?} {:?}\n", view.dtype(), view.shape()).as_bytes());
            hasher.update_rayon(view.data());
        }
        let mut fingerprint = [0; 16];
        fingerprint.copy_from_slice(&hasher.finalize().as_bytes()[..16]);
        Ok(fingerprint)
    }
}
