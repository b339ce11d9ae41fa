//! Text to token ids, as the model was trained to see them. Byte-level BPE only, which is what the Llama 3 family
//! uses: there every token is a string of bytes, and decoding one never depends on its neighbours.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use tokenizers::DecoderWrapper;

use crate::detokenizer::{Detokenizer, TokenBytes};
use crate::pieces;
use crate::words::Words;

/// A model's tokenizer. Clones share it.
#[derive(Debug, Clone)]
pub struct Tokenizer {
    inner: Arc<tokenizers::Tokenizer>,
    bytes: Arc<TokenBytes>,
    /// Put before every text; none if the model was trained without one.
    begin_of_text: Option<u32>,
    /// Ids that the model has an embedding for are below this.
    vocab_size: u32,
    /// Words that were seen, where texts may be cut into words.
    words: Option<Arc<Words>>,
}

/// A tokenizer that cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum LoadError {
    /// A file of the model directory cannot be read.
    #[error(
        "cannot read {path}: {source}; a model directory needs tokenizer.json, tokenizer_config.json and config.json"
    )]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A file of the model directory does not hold what it should.
    #[error("cannot use {path}: {reason}")]
    Content {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
}

/// A text that cannot be given to the model.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum EncodeError {
    /// The tokenizer gave up.
    #[error("the text cannot be tokenized: {reason}")]
    Tokenizer {
        /// What it said.
        reason: String,
    },
    /// The text holds a token that the model has no embedding for.
    #[error("the prompt holds the token {id} ({token:?}), but the model knows ids below {vocab_size} only")]
    OutOfVocabulary {
        /// The token.
        token: String,
        /// Its id.
        id: u32,
        /// Embeddings of the model.
        vocab_size: u32,
    },
}

/// The part of `tokenizer_config.json` that matters here.
#[derive(Deserialize)]
struct TokenizerConfig {
    bos_token: Option<NamedToken>,
    #[serde(default = "yes")]
    add_bos_token: bool,
}

fn yes() -> bool {
    true
}

/// Hugging Face writes special tokens as a string or as an object.
#[derive(Deserialize)]
#[serde(untagged)]
pub(crate) enum NamedToken {
    Name(String),
    Object { content: String },
}

impl NamedToken {
    pub(crate) fn into_name(self) -> String {
        match self {
            Self::Name(name) | Self::Object { content: name } => name,
        }
    }
}

/// The part of `config.json` that matters here.
#[derive(Deserialize)]
struct ModelConfig {
    vocab_size: u32,
}

impl Tokenizer {
    /// Reads `tokenizer.json`, `tokenizer_config.json` (begin-of-text) and `config.json` (size of the vocabulary).
    ///
    /// # Errors
    /// The file that is missing or of no use, and why.
    pub fn load(dir: &Path) -> Result<Self, LoadError> {
        let path = dir.join("tokenizer.json");
        let unusable = |reason: String| LoadError::Content { path: path.clone(), reason };
        let bytes = read(&path)?;
        let inner = tokenizers::Tokenizer::from_bytes(&bytes).map_err(|e| unusable(e.to_string()))?;
        let may_cut = serde_json::from_slice(&bytes).is_ok_and(|json| pieces::may_cut(&json));
        if !matches!(inner.get_decoder(), Some(DecoderWrapper::ByteLevel(_))) {
            return Err(unusable("its decoder is not ByteLevel; use a Llama 3 tokenizer".into()));
        }
        let config: TokenizerConfig = read_json(&dir.join("tokenizer_config.json"))?;
        let begin_of_text = match config.bos_token.filter(|_| config.add_bos_token) {
            None => None,
            Some(token) => {
                let name = token.into_name();
                Some(inner.token_to_id(&name).ok_or_else(|| {
                    unusable(format!("it lacks the bos_token {name:?} of tokenizer_config.json"))
                })?)
            }
        };
        let ModelConfig { vocab_size } = read_json(&dir.join("config.json"))?;
        let bytes = Arc::new(TokenBytes::of(&inner));
        let words = may_cut.then(Arc::default);
        Ok(Self { inner: Arc::new(inner), bytes, begin_of_text, vocab_size, words })
    }

    /// The text as token ids, with begin-of-text before it unless the text itself starts with it. Time grows with
    /// the text: a tenth of a millisecond per 10 KiB of words that came before, milliseconds of others, so long texts belong on a thread
    /// that may block.
    ///
    /// # Errors
    /// See [`EncodeError`].
    pub fn encode(&self, text: &str) -> Result<Vec<u32>, EncodeError> {
        self.encode_after(self.begin_of_text, text)
    }

    /// The text as token ids and nothing before it.
    ///
    /// # Errors
    /// See [`EncodeError`].
    pub fn encode_plain(&self, text: &str) -> Result<Vec<u32>, EncodeError> {
        self.encode_after(None, text)
    }

    fn encode_after(&self, begin: Option<u32>, text: &str) -> Result<Vec<u32>, EncodeError> {
        let encoded = match &self.words {
            Some(words) => words.encode(&self.inner, text),
            None => self.inner.encode_fast(text, false).map(|encoding| encoding.get_ids().to_vec()),
        };
        let mut ids = encoded.map_err(|e| EncodeError::Tokenizer { reason: e.to_string() })?;
        if let Some(begin) = begin.filter(|begin| ids.first() != Some(begin)) {
            ids.insert(0, begin);
        }
        self.check(&ids)?;
        Ok(ids)
    }

    /// Whether the model knows all of these ids.
    ///
    /// # Errors
    /// [`EncodeError::OutOfVocabulary`].
    pub fn check(&self, ids: &[u32]) -> Result<(), EncodeError> {
        match ids.iter().find(|&&id| id >= self.vocab_size) {
            None => Ok(()),
            Some(&id) => Err(EncodeError::OutOfVocabulary {
                token: self.inner.id_to_token(id).unwrap_or_default(),
                id,
                vocab_size: self.vocab_size,
            }),
        }
    }

    /// The bytes that a token stands for: a special token's name, none for an id without a token.
    pub fn token_bytes(&self, id: u32) -> Vec<u8> {
        match self.bytes.get(id) {
            [] => self.inner.id_to_token(id).unwrap_or_default().into_bytes(),
            bytes => bytes.to_vec(),
        }
    }

    /// Token ids as text, special tokens by their names; bytes that are no UTF-8 become U+FFFD.
    pub fn decode_all(&self, ids: &[u32]) -> String {
        let bytes: Vec<u8> = ids.iter().flat_map(|&id| self.token_bytes(id)).collect();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// Fewest tokens that a text of so many bytes can have, so that hopeless prompts need not be tokenized.
    pub fn min_tokens(&self, text_bytes: usize) -> usize {
        text_bytes.div_ceil(self.bytes.longest().max(1))
    }

    /// Token ids as text, without special tokens; bytes that are no UTF-8 become U+FFFD.
    pub fn decode(&self, ids: &[u32]) -> String {
        let mut detokenizer = self.detokenizer();
        let mut text: String = ids.iter().map(|&id| detokenizer.push(id)).collect();
        text.push_str(&detokenizer.finish());
        text
    }

    /// Turns ids into text one at a time.
    pub fn detokenizer(&self) -> Detokenizer {
        Detokenizer::new(Arc::clone(&self.bytes))
    }

    /// The id put before every text.
    pub fn begin_of_text(&self) -> Option<u32> {
        self.begin_of_text
    }
}

fn read(path: &Path) -> Result<Vec<u8>, LoadError> {
    fs::read(path).map_err(|source| LoadError::Read { path: path.into(), source })
}

pub(crate) fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T, LoadError> {
    serde_json::from_slice(&read(path)?)
        .map_err(|e| LoadError::Content { path: path.into(), reason: e.to_string() })
}
