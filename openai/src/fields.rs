//! Typed access to the fields of a JSON object, one at a time, so that every error can name its field, what belongs
//! there and what was found. Null counts as absent, as clients send it for "the default".

use std::fmt::Display;
use std::ops::RangeInclusive;

use serde_json::{Map, Value};

use crate::error::InvalidRequest;

/// Characters of a client's value that an error message repeats.
const SHOWN_CHARS: usize = 40;

type Result<T> = std::result::Result<T, InvalidRequest>;

/// An object whose fields are being taken out.
#[derive(Debug)]
pub(crate) struct Fields {
    /// Path of the object inside the body, with a dot behind it; empty for the body.
    prefix: &'static str,
    map: Map<String, Value>,
}

impl Fields {
    /// Reads a body.
    pub(crate) fn parse(body: &[u8]) -> Result<Self> {
        let value =
            serde_json::from_slice(body).map_err(|e| InvalidRequest::Json { reason: e.to_string() })?;
        match value {
            Value::Object(map) => Ok(Self { prefix: "", map }),
            other => Err(InvalidRequest::NotAnObject { got: show(&other) }),
        }
    }

    /// The fields of an object inside the body; `prefix` is its path with a dot behind it.
    pub(crate) fn inside(map: Map<String, Value>, prefix: &'static str) -> Self {
        Self { prefix, map }
    }

    /// Takes a field out as it is; null counts as absent.
    pub(crate) fn take(&mut self, name: &str) -> Option<Value> {
        self.map.remove(name).filter(|value| !value.is_null())
    }

    pub(crate) fn string(&mut self, name: &str) -> Result<Option<String>> {
        self.typed(name, "a string", |value| match value {
            Value::String(string) => Ok(string),
            other => Err(other),
        })
    }

    pub(crate) fn required_string(&mut self, name: &str) -> Result<String> {
        self.string(name)?
            .ok_or_else(|| InvalidRequest::Missing { param: self.path(name), expected: "a string" })
    }

    pub(crate) fn bool(&mut self, name: &str) -> Result<Option<bool>> {
        self.typed(name, "a boolean", |value| value.as_bool().ok_or(value))
    }

    /// A whole number; both the signed and the unsigned 64-bit range are read.
    pub(crate) fn integer(&mut self, name: &str, range: RangeInclusive<i128>) -> Result<Option<i128>> {
        let value = self.typed(name, "an integer", |value| {
            value.as_i64().map(i128::from).or_else(|| value.as_u64().map(i128::from)).ok_or(value)
        })?;
        let shown = || format!("from {} to {}", range.start(), range.end());
        self.within(name, value, |value| range.contains(value), shown)
    }

    /// A finite number.
    pub(crate) fn number(&mut self, name: &str, range: Interval) -> Result<Option<f64>> {
        let value = self.typed(name, "a number", |value| value.as_f64().ok_or(value))?;
        self.within(name, value, |value| range.contains(*value), || range.to_string())
    }

    /// A string that is one of a few names.
    pub(crate) fn named<T: Copy>(
        &mut self,
        name: &str,
        all: &[T],
        name_of: impl Fn(T) -> &'static str,
    ) -> Result<Option<T>> {
        let Some(given) = self.string(name)? else { return Ok(None) };
        let found = all.iter().copied().find(|value| name_of(*value) == given);
        found.map(Some).ok_or_else(|| {
            let names: Vec<_> = all.iter().map(|value| format!("{:?}", name_of(*value))).collect();
            let (last, others) = names
                .split_last()
                .map_or((String::new(), String::new()), |(last, others)| (last.clone(), others.join(", ")));
            let range = format!("{others} or {last}");
            InvalidRequest::Range { param: self.path(name), range, got: show(&Value::String(given)) }
        })
    }

    /// An object inside the object; `prefix` is its path with a dot behind it.
    pub(crate) fn object(&mut self, name: &str, prefix: &'static str) -> Result<Option<Self>> {
        Ok(self.map(name)?.map(|map| Self { prefix, map }))
    }

    /// An object whose names are data.
    pub(crate) fn map(&mut self, name: &str) -> Result<Option<Map<String, Value>>> {
        self.typed(name, "an object", |value| match value {
            Value::Object(map) => Ok(map),
            other => Err(other),
        })
    }

    /// A list of anything.
    pub(crate) fn list(&mut self, name: &str, expected: &'static str) -> Result<Option<Vec<Value>>> {
        self.typed(name, expected, |value| match value {
            Value::Array(list) => Ok(list),
            other => Err(other),
        })
    }

    /// Whether a field is there; null counts as absent.
    pub(crate) fn has(&self, name: &str) -> bool {
        self.map.get(name).is_some_and(|value| !value.is_null())
    }

    /// The field's path inside the body.
    pub(crate) fn path(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }

    fn typed<T>(
        &mut self,
        name: &str,
        expected: &'static str,
        read: impl FnOnce(Value) -> std::result::Result<T, Value>,
    ) -> Result<Option<T>> {
        let Some(value) = self.take(name) else { return Ok(None) };
        let wrong =
            |value: Value| InvalidRequest::Type { param: self.path(name), expected, got: show(&value) };
        read(value).map(Some).map_err(wrong)
    }

    fn within<T: Display>(
        &self,
        name: &str,
        value: Option<T>,
        contains: impl FnOnce(&T) -> bool,
        range: impl FnOnce() -> String,
    ) -> Result<Option<T>> {
        match value {
            Some(value) if !contains(&value) => {
                Err(InvalidRequest::Range { param: self.path(name), range: range(), got: value.to_string() })
            }
            within => Ok(within),
        }
    }
}

/// A range of numbers whose lower end may be excluded.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Interval {
    /// From..=to.
    Closed(f64, f64),
    /// Above..=to.
    Above(f64, f64),
}

impl Interval {
    fn contains(self, value: f64) -> bool {
        match self {
            Self::Closed(from, to) => from <= value && value <= to,
            Self::Above(from, to) => from < value && value <= to,
        }
    }
}

impl Display for Interval {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Closed(from, to) => write!(f, "from {from} to {to}"),
            Self::Above(from, to) => write!(f, "above {from} and at most {to}"),
        }
    }
}

/// A value in words short enough for an error message.
pub(crate) fn show(value: &Value) -> String {
    match value {
        Value::Array(list) => format!("a list of {}", list.len()),
        Value::Object(_) => "an object".to_owned(),
        Value::String(string) if string.chars().nth(SHOWN_CHARS).is_some() => {
            format!("{:?} and more", string.chars().take(SHOWN_CHARS).collect::<String>())
        }
        Value::String(string) => format!("{string:?}"),
        scalar => scalar.to_string(),
    }
}
