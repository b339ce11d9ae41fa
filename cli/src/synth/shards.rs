//! Random weights to safetensors files, a few megabytes in memory at a time.
//!
//! A file is `[u64]` length of the header, the header (JSON: type, shape and place of every tensor), the tensors' bytes; see
//! <https://github.com/huggingface/safetensors#format>.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;

use anyhow::{Context, ensure};
use half::bf16;
use indicatif::ProgressBar;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rayon::prelude::*;
use serde_json::{Map, Value, json};

use super::shape::{Content, Tensor};

/// Standard deviation of weights: what Llama itself begins its training with.
pub(super) const DEVIATION: f64 = 0.02;
/// Elements drawn from one stream of numbers, and by one thread.
const PIECE: usize = 1 << 18;
/// Pieces in memory.
const PIECES: usize = 16;
const BYTES: usize = size_of::<bf16>();
/// Begin of the tensors, in bytes: a multiple of this.
const ALIGNMENT: usize = 8;

/// The tensors of one file.
#[derive(Debug, PartialEq)]
pub(super) struct Shard {
    file: String,
    /// With each tensor's number in the checkpoint, which its weights are drawn by: they do not depend on the shards.
    tensors: Vec<(usize, Tensor)>,
}

/// Divides tensors among files of about the same size, in order.
///
/// # Errors
/// For fewer tensors than files.
pub(super) fn split(tensors: Vec<Tensor>, files: usize) -> anyhow::Result<Vec<Shard>> {
    ensure!(files <= tensors.len(), "{} tensors cannot fill {files} shards", tensors.len());
    let name = |i: usize| match files {
        1 => "model.safetensors".to_owned(),
        _ => format!("model-{:05}-of-{files:05}.safetensors", i + 1),
    };
    let mut left: usize = tensors.iter().map(Tensor::elements).sum();
    let mut tensors = tensors.into_iter().enumerate().peekable();
    let mut shards = Vec::new();
    for i in 0..files {
        let (goal, mut size, mut taken) = (left / (files - i), 0, Vec::new());
        // A tensor goes where more than half of it fits; every later file gets at least one.
        while let Some((_, tensor)) = tensors.peek() {
            let elements = tensor.elements();
            let fits = size + elements / 2 <= goal || i + 1 == files;
            if !taken.is_empty() && (!fits || tensors.len() < files - i) {
                break;
            }
            size += elements;
            taken.extend(tensors.next());
        }
        left -= size;
        shards.push(Shard { file: name(i), tensors: taken });
    }
    Ok(shards)
}

/// `model.safetensors.index.json`: which file has which tensor.
pub(super) fn index(shards: &[Shard]) -> Value {
    let entries = |shard: &Shard| {
        let names = shard.tensors.iter().map(|(_, tensor)| (tensor.name.clone(), json!(shard.file)));
        names.collect::<Vec<_>>()
    };
    let map: Map<String, Value> = shards.iter().flat_map(entries).collect();
    json!({ "metadata": { "total_size": shards.iter().map(Shard::bytes).sum::<u64>() }, "weight_map": map })
}

impl Shard {
    /// Bytes of its tensors.
    pub(super) fn bytes(&self) -> u64 {
        self.tensors.iter().map(|(_, tensor)| (tensor.elements() * BYTES) as u64).sum()
    }

    /// Writes the file into `dir`; `bar` moves with every piece.
    ///
    /// # Errors
    /// When it cannot be written.
    pub(super) fn write(&self, dir: &Path, seed: u64, bar: &ProgressBar) -> anyhow::Result<()> {
        let path = dir.join(&self.file);
        self.write_file(&path, seed, bar).with_context(|| format!("cannot write {}", path.display()))
    }

    fn write_file(&self, path: &Path, seed: u64, bar: &ProgressBar) -> io::Result<()> {
        let mut file = BufWriter::new(File::create_new(path)?);
        let header = self.header();
        file.write_all(&(header.len() as u64).to_le_bytes())?;
        file.write_all(header.as_bytes())?;
        for (number, tensor) in &self.tensors {
            let pieces = tensor.elements().div_ceil(PIECE);
            for start in (0..pieces).step_by(PIECES) {
                let numbers: Vec<usize> = (start..pieces.min(start + PIECES)).collect();
                let piece = |&piece: &usize| weights(tensor, piece, ChaCha8Rng::seed_from_u64(seed), *number);
                for bytes in numbers.par_iter().map(piece).collect::<Vec<_>>() {
                    file.write_all(&bytes)?;
                    bar.inc(bytes.len() as u64);
                }
            }
        }
        file.flush()
    }

    fn header(&self) -> String {
        let mut entries = Map::from_iter([("__metadata__".to_owned(), json!({ "format": "pt" }))]);
        let mut end = 0;
        for (_, tensor) in &self.tensors {
            let start = end;
            end += tensor.elements() * BYTES;
            let entry = json!({ "dtype": "BF16", "shape": tensor.shape, "data_offsets": [start, end] });
            entries.insert(tensor.name.clone(), entry);
        }
        let mut header = Value::Object(entries).to_string();
        header.extend(std::iter::repeat_n(' ', header.len().next_multiple_of(ALIGNMENT) - header.len()));
        header
    }
}

/// Bytes of one piece of a tensor, each piece from a stream of its own.
fn weights(tensor: &Tensor, piece: usize, mut rng: ChaCha8Rng, number: usize) -> Vec<u8> {
    let count = PIECE.min(tensor.elements() - piece * PIECE);
    let deviation = match &tensor.content {
        Content::Ones => return bf16::ONE.to_le_bytes().repeat(count),
        Content::Given(all) => {
            let given = &all[piece * PIECE..piece * PIECE + count];
            return given.iter().flat_map(|x| x.to_le_bytes()).collect();
        }
        Content::Normal(factor) => factor * DEVIATION as f32,
    };
    rng.set_stream((number as u64) << 32 | piece as u64);
    let mut bytes = Vec::with_capacity(count * BYTES + BYTES);
    // Box and Muller: two uniform numbers are two normal ones.
    while bytes.len() < count * BYTES {
        let (a, b): (f32, f32) = (1.0 - rng.random::<f32>(), rng.random());
        let radius = (-2.0 * a.ln()).sqrt() * deviation;
        let (sin, cos) = (b * std::f32::consts::TAU).sin_cos();
        for weight in [radius * cos, radius * sin] {
            bytes.extend(bf16::from_f32(weight).to_le_bytes());
        }
    }
    bytes.truncate(count * BYTES);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::synth::Shape;

    #[test]
    fn shards_have_every_tensor_once_and_are_of_like_size() {
        let all = Shape::Llama32_1b.tensors();
        for files in [1, 2, 3, 5, 146] {
            let shards = split(all.clone(), files).unwrap();
            assert_eq!(shards.len(), files);
            let tensors: Vec<Tensor> = shards
                .iter()
                .flat_map(|shard| shard.tensors.iter().map(|(_, tensor)| tensor.clone()))
                .collect();
            assert_eq!(tensors, all);
            assert!(shards.iter().all(|shard| !shard.tensors.is_empty()));
            let mean = shards.iter().map(Shard::bytes).sum::<u64>() / files as u64;
            assert!(files > 5 || shards.iter().all(|shard| shard.bytes() < mean * 13 / 10), "{files} files");
        }
        assert_eq!(split(all.clone(), 2).unwrap()[1].file, "model-00002-of-00002.safetensors");
        assert!(split(all, 147).is_err());
    }

    #[test]
    fn weights_are_normal_and_norms_are_1() {
        let tensor = Tensor { name: "x".into(), shape: vec![PIECE], content: Content::Normal(1.0) };
        let numbers = |tensor: &Tensor, piece| -> Vec<f64> {
            let bytes = weights(tensor, piece, ChaCha8Rng::seed_from_u64(3), 5);
            bytes.chunks_exact(2).map(|two| bf16::from_le_bytes([two[0], two[1]]).to_f64()).collect()
        };
        let of = numbers(&tensor, 0);
        let moment = |power| of.iter().map(|x| (x / DEVIATION).powi(power)).sum::<f64>() / of.len() as f64;
        assert!(moment(1).abs() < 0.01 && (moment(2) - 1.0).abs() < 0.02 && (moment(4) - 3.0).abs() < 0.1);
        let two = Tensor { shape: vec![2, PIECE], ..tensor.clone() };
        assert_eq!(numbers(&two, 0), of);
        assert_ne!(numbers(&two, 1), of);
        let norm = Tensor { shape: vec![7], content: Content::Ones, ..tensor };
        assert_eq!(numbers(&norm, 0), [1.0; 7]);
    }
}
