//! What a file of this format holds, and where its bytes go: for people who wonder, and for benchmarks. Nothing is inflated here, and
//! no cache comes out: that is [`crate::Decoder`].

mod chunk;
mod paper;
mod plan;

use std::fmt;

use crate::{
    error::{Error, Result},
    format::{CHUNK_MAGIC, PLAN_MAGIC},
    plan::Plan,
};

/// A plan, or a chunk.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Item {
    /// `"plan"` or `"chunk"`.
    pub what: &'static str,
    /// What its header says.
    pub fields: Vec<(&'static str, Value)>,
    /// Where its bytes go, in the order of the file; their `bytes` add up to the item.
    pub parts: Vec<Part>,
}

/// A header field.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    /// A count, position or exponent.
    Number(i64),
    /// A name or an id.
    Text(String),
}

/// A stretch of an item.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// What it is.
    pub name: String,
    /// Its bytes in the file. Where one segment holds several parts, each has the share that its inflated bytes have.
    pub bytes: u64,
    /// Its bytes once inflated, the same number where nothing is deflated.
    pub inflated: u64,
    /// How many symbols, escapes, tokens, components ... that is.
    pub count: Option<u64>,
}

impl Item {
    /// Bytes of all parts.
    pub fn bytes(&self) -> u64 {
        self.parts.iter().map(|part| part.bytes).sum()
    }

    /// A field by its name.
    pub fn field(&self, name: &str) -> Option<&Value> {
        self.fields.iter().find(|field| field.0 == name).map(|field| &field.1)
    }
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Number(number) => number.fmt(f),
            Self::Text(text) => text.fmt(f),
        }
    }
}

impl<T: Into<i64>> From<T> for Value {
    fn from(number: T) -> Self {
        Self::Number(number.into())
    }
}

impl Part {
    /// A part that is not deflated.
    fn plain(name: impl Into<String>, bytes: u64) -> Self {
        Self { name: name.into(), bytes, inflated: bytes, count: None }
    }

    fn counted(self, count: u64) -> Self {
        Self { count: Some(count), ..self }
    }
}

/// Looks into a file that holds a plan, or one or more chunks end to end. A kvtc chunk's symbols are listed by class, a kvtc-paper
/// chunk's codes by type, when `plan` is the one it was coded with, and as a whole otherwise.
///
/// # Errors
/// [`Error::Corrupt`], [`Error::Truncated`], [`Error::UnsupportedVersion`], [`Error::UnsupportedCodec`] or
/// [`Error::LimitExceeded`], never a panic, whatever the bytes.
pub fn inspect(bytes: &[u8], plan: Option<&Plan>) -> Result<Vec<Item>> {
    match bytes.first_chunk() {
        Some(&PLAN_MAGIC) => Ok(vec![plan::item(bytes)?]),
        Some(&CHUNK_MAGIC) => chunks(bytes, plan),
        _ => {
            let start = &bytes[..bytes.len().min(4)];
            let detail =
                format!("it starts with {start:02x?}, which is neither a plan's nor a chunk's beginning");
            Err(Error::corrupt("file", detail))
        }
    }
}

fn chunks(mut bytes: &[u8], plan: Option<&Plan>) -> Result<Vec<Item>> {
    let mut items = Vec::new();
    while !bytes.is_empty() {
        let len = chunk::len(bytes)?;
        // The length was found inside the bytes.
        let (chunk, rest) = bytes.split_at(len);
        items.push(chunk::item(chunk, plan)?);
        bytes = rest;
    }
    Ok(items)
}
