//! Bounds-checked little-endian reader and writer; the only place that turns integers into bytes and back.

use crate::error::{Error, Result};

/// A cursor over foreign bytes that never reads past their end.
#[derive(Debug, Clone)]
pub(crate) struct Reader<'a> {
    what: &'static str,
    bytes: &'a [u8],
}

impl<'a> Reader<'a> {
    /// Reads a `what` from `bytes`.
    pub(crate) fn new(what: &'static str, bytes: &'a [u8]) -> Self {
        Self { what, bytes }
    }

    pub(crate) fn remaining(&self) -> usize {
        self.bytes.len()
    }

    pub(crate) fn take(&mut self, len: usize) -> Result<&'a [u8]> {
        let Some((head, tail)) = self.bytes.split_at_checked(len) else {
            return Err(Error::Truncated {
                what: self.what,
                needed: len as u64,
                available: self.bytes.len() as u64,
            });
        };
        self.bytes = tail;
        Ok(head)
    }

    pub(crate) fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let bytes = self.take(N)?;
        Ok(bytes.try_into().expect("take gives exactly the length asked for; this is a bug"))
    }

    pub(crate) fn u8(&mut self) -> Result<u8> {
        Ok(self.array::<1>()?[0])
    }

    pub(crate) fn i8(&mut self) -> Result<i8> {
        self.array().map(i8::from_le_bytes)
    }

    pub(crate) fn u16(&mut self) -> Result<u16> {
        self.array().map(u16::from_le_bytes)
    }

    pub(crate) fn i16(&mut self) -> Result<i16> {
        self.array().map(i16::from_le_bytes)
    }

    pub(crate) fn u32(&mut self) -> Result<u32> {
        self.array().map(u32::from_le_bytes)
    }

    pub(crate) fn u64(&mut self) -> Result<u64> {
        self.array().map(u64::from_le_bytes)
    }

    /// `count` elements of `N` bytes each. The bytes are known to be there before anything is allocated.
    pub(crate) fn list<const N: usize, T>(&mut self, count: usize, read: fn([u8; N]) -> T) -> Result<Vec<T>> {
        let len = count.checked_mul(N).ok_or(Error::LimitExceeded {
            what: self.what,
            limit: usize::MAX as u64,
            got: count as u64,
        })?;
        let (elements, _) = self.take(len)?.as_chunks::<N>();
        Ok(elements.iter().map(|&element| read(element)).collect())
    }

    /// As [`Self::list`], for floats that must be finite.
    pub(crate) fn finite(&mut self, count: usize) -> Result<Vec<f32>> {
        let values = self.list(count, f32::from_le_bytes)?;
        match values.iter().find(|value| !value.is_finite()) {
            Some(value) => Err(Error::corrupt(self.what, format!("a number is {value}"))),
            None => Ok(values),
        }
    }

    /// Padding, which must be zero so that it can get a meaning later.
    pub(crate) fn zeros(&mut self, len: usize) -> Result<()> {
        match self.take(len)?.iter().find(|&&byte| byte != 0) {
            Some(byte) => Err(Error::corrupt(self.what, format!("reserved byte is {byte}"))),
            None => Ok(()),
        }
    }
}

/// Appends little-endian fields to a buffer.
pub(crate) trait Write {
    /// Appends anything that has little-endian bytes.
    fn put<const N: usize>(&mut self, bytes: [u8; N]);

    /// Appends a list of such things.
    fn put_all<const N: usize, T: Copy>(&mut self, values: &[T], write: fn(T) -> [u8; N]);
}

impl Write for Vec<u8> {
    fn put<const N: usize>(&mut self, bytes: [u8; N]) {
        self.extend_from_slice(&bytes);
    }

    fn put_all<const N: usize, T: Copy>(&mut self, values: &[T], write: fn(T) -> [u8; N]) {
        self.reserve(values.len() * N);
        for &value in values {
            self.extend_from_slice(&write(value));
        }
    }
}
