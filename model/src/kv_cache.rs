//! One session's open KV cache: anyone may read and write token ranges.

use std::ops::Range;

use half::bf16;
use half::vec::HalfBitsVecExt;

use crate::config::Config;
use crate::error::{Error, Result};

/// Element type of a cache: bf16 at rest everywhere, f32 only where a test compares with an f32 reference.
pub trait KvElement: Copy + Default + Send + Sync + std::fmt::Debug + 'static {
    /// Rounds to nearest.
    fn from_f32(x: f32) -> Self;
    /// Exact.
    fn to_f32(self) -> f32;
    /// So many zeros, in pages that the system hands out when they are first used.
    fn zeros(count: usize) -> Vec<Self>;
}

impl KvElement for bf16 {
    #[inline(always)]
    fn from_f32(x: f32) -> Self {
        // Round to nearest even by hand: branch-free, so that loops over it vectorise. Caches hold no NaN.
        let bits = x.to_bits();
        Self::from_bits(((bits + 0x7fff + ((bits >> 16) & 1)) >> 16) as u16)
    }

    #[inline(always)]
    fn to_f32(self) -> f32 {
        f32::from_bits(u32::from(self.to_bits()) << 16)
    }

    fn zeros(count: usize) -> Vec<Self> {
        // A vector of a type of half's own would be written element by element.
        vec![0u16; count].reinterpret_into()
    }
}

impl KvElement for f32 {
    #[inline(always)]
    fn from_f32(x: f32) -> Self {
        x
    }

    #[inline(always)]
    fn to_f32(self) -> f32 {
        self
    }

    fn zeros(count: usize) -> Vec<Self> {
        vec![0.0; count]
    }
}

/// Keys (after RoPE) and values of one session, each `[layers, kv_heads, capacity, head_dim]`, row-major.
#[derive(Debug, Clone)]
pub struct KvCache<E: KvElement = bf16> {
    heads: usize,
    head_dim: usize,
    capacity: usize,
    len: usize,
    keys: Vec<E>,
    values: Vec<E>,
}

impl<E: KvElement> KvCache<E> {
    /// An empty cache with room for `capacity` tokens.
    #[must_use]
    pub fn new(config: &Config, capacity: usize) -> Self {
        let heads = config.layers * config.kv_heads;
        let elements = heads * capacity * config.head_dim;
        let (keys, values) = (E::zeros(elements), E::zeros(elements));
        Self { heads, head_dim: config.head_dim, capacity, len: 0, keys, values }
    }

    /// A cache with room for `capacity` tokens that begins with a copy of another's first `shared` tokens.
    ///
    /// # Errors
    /// [`Error::Range`] for tokens that the other does not hold, or beyond the capacity.
    pub fn after(other: &Self, shared: usize, capacity: usize) -> Result<Self> {
        let len = other.len.min(capacity);
        if shared > len {
            return Err(Error::Range { start: 0, end: shared, len });
        }
        let elements = other.heads * capacity * other.head_dim;
        let (keys, values) = (E::zeros(elements), E::zeros(elements));
        let mut cache = Self { capacity, len: shared, keys, values, ..*other };
        for head in 0..cache.heads {
            let (from, to) = (other.span(head, &(0..shared)), cache.span(head, &(0..shared)));
            cache.keys[to.clone()].copy_from_slice(&other.keys[from.clone()]);
            cache.values[to].copy_from_slice(&other.values[from]);
        }
        Ok(cache)
    }

    /// Tokens held.
    #[must_use]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether no token is held.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Tokens there is room for.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.capacity
    }

    /// Declares that the first `len` tokens are held, after they were written out of order.
    ///
    /// # Errors
    /// [`Error::CacheFull`] beyond the capacity.
    pub fn set_len(&mut self, len: usize) -> Result<()> {
        if len > self.capacity {
            return Err(Error::CacheFull { wanted: len, capacity: self.capacity });
        }
        self.len = len;
        Ok(())
    }

    /// Copies `tokens` out: keys and values, each `[layers, kv_heads, tokens, head_dim]`.
    ///
    /// # Errors
    /// [`Error::Range`] for tokens that are not held.
    pub fn read_range(&self, tokens: Range<usize>) -> Result<(Vec<E>, Vec<E>)> {
        if tokens.start > tokens.end || tokens.end > self.len {
            return Err(Error::Range { start: tokens.start, end: tokens.end, len: self.len });
        }
        let copy = |from: &[E]| {
            let mut out = Vec::with_capacity(self.heads * tokens.len() * self.head_dim);
            for head in 0..self.heads {
                out.extend_from_slice(&from[self.span(head, &tokens)]);
            }
            out
        };
        Ok((copy(&self.keys), copy(&self.values)))
    }

    /// Copies `tokens` in, from slices shaped like [`Self::read_range`]'s. The length stays as it is: see [`Self::set_len`].
    ///
    /// # Errors
    /// [`Error::Range`] beyond the capacity, [`Error::InvalidArgument`] for slices of another size.
    pub fn write_range(&mut self, tokens: Range<usize>, keys: &[E], values: &[E]) -> Result<()> {
        if tokens.start > tokens.end || tokens.end > self.capacity {
            return Err(Error::Range { start: tokens.start, end: tokens.end, len: self.capacity });
        }
        let row = tokens.len() * self.head_dim;
        if keys.len() != self.heads * row || values.len() != self.heads * row {
            return Err(Error::InvalidArgument(format!(
                "{} keys and {} values for {} tokens, {} each expected",
                keys.len(),
                values.len(),
                tokens.len(),
                self.heads * row
            )));
        }
        for head in 0..self.heads {
            let span = self.span(head, &tokens);
            let source = head * row..(head + 1) * row;
            self.keys[span.clone()].copy_from_slice(&keys[source.clone()]);
            self.values[span].copy_from_slice(&values[source]);
        }
        Ok(())
    }

    /// Keys of one head (counted over all layers), `[tokens, head_dim]`.
    pub(crate) fn keys(&self, head: usize, tokens: Range<usize>) -> &[E] {
        &self.keys[self.span(head, &tokens)]
    }

    /// Values of one head (counted over all layers), `[tokens, head_dim]`.
    pub(crate) fn values(&self, head: usize, tokens: Range<usize>) -> &[E] {
        &self.values[self.span(head, &tokens)]
    }

    /// One token's key and value of one head, to be written.
    pub(crate) fn entry_mut(&mut self, head: usize, token: usize) -> (&mut [E], &mut [E]) {
        let span = self.span(head, &(token..token + 1));
        (&mut self.keys[span.clone()], &mut self.values[span])
    }

    fn span(&self, head: usize, tokens: &Range<usize>) -> Range<usize> {
        let base = head * self.capacity;
        (base + tokens.start) * self.head_dim..(base + tokens.end) * self.head_dim
    }
}
