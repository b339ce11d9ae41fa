//! What can go wrong between a model directory and a token.

use std::path::PathBuf;

/// Result of this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Everything that loading or running a model can fail with.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A file of the model directory is missing or unreadable.
    #[error(
        "cannot read {path}: {source}; a model directory holds config.json, tokenizer.json and *.safetensors"
    )]
    Io {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// `config.json` is not what a Llama has.
    #[error("{path}: {message}")]
    Config {
        /// The file.
        path: PathBuf,
        /// What is wrong and what is supported.
        message: String,
    },
    /// A weights file is cut short or holds something else.
    #[error("the weights in {path} are damaged or incomplete, download them again: {reason}")]
    Damaged {
        /// The model directory.
        path: PathBuf,
        /// What the reader said.
        reason: String,
    },
    /// The architecture needs a tensor that no file holds.
    #[error("{path}: tensor `{name}` is missing; the checkpoint is incomplete or of another architecture")]
    MissingTensor {
        /// The model directory.
        path: PathBuf,
        /// Name by Hugging Face's convention.
        name: String,
    },
    /// A tensor has another shape than `config.json` asks for.
    #[error("tensor `{name}` is {got:?}, but config.json asks for {expected:?}")]
    Shape {
        /// Name by Hugging Face's convention.
        name: String,
        /// From `config.json`.
        expected: Vec<usize>,
        /// From the file.
        got: Vec<usize>,
    },
    /// A session would grow beyond its reserved capacity.
    #[error("cache full: {wanted} tokens wanted, {capacity} reserved")]
    CacheFull {
        /// Tokens that the call would have led to.
        wanted: usize,
        /// Tokens reserved.
        capacity: usize,
    },
    /// A token range outside of what a cache holds.
    #[error("tokens {start}..{end} are outside of the cache's {len}")]
    Range {
        /// First token.
        start: usize,
        /// One past the last.
        end: usize,
        /// Bound.
        len: usize,
    },
    /// A token id that the vocabulary does not have.
    #[error("token id {id} is outside of the vocabulary of {vocab}")]
    Token {
        /// The id.
        id: u32,
        /// Size of the vocabulary.
        vocab: usize,
    },
    /// An argument no caller should pass.
    #[error("invalid argument: {0}")]
    InvalidArgument(String),
    /// A tensor is of a type that cannot be run.
    #[error(
        "tensor `{name}` is of type {got}; F32, F16 and BF16 are supported, save the checkpoint as one of them"
    )]
    ElementType {
        /// Name by Hugging Face's convention.
        name: String,
        /// From the file.
        got: String,
    },
    /// The device failed, or there is none.
    #[cfg(feature = "cuda")]
    #[error(transparent)]
    Gpu(#[from] gpu::Error),
    /// The tensor library failed.
    #[error(transparent)]
    Tensor(#[from] candle_core::Error),
}
