//! Fields that the API has and this server does not honour. They are refused unless they ask for nothing: dropping them
//! silently would give answers that were not asked for.

use std::fmt;

use serde_json::Value;

use crate::error::InvalidRequest;
use crate::fields::{Fields, show};

/// A value with which a field asks for nothing.
pub(super) enum Neutral {
    Null,
    Bool(bool),
    Text(&'static str),
    EmptyList,
    EmptyObject,
    /// An object `{"type": "text"}`.
    TextType,
    /// A list of the one string `text`.
    TextList,
}

impl Neutral {
    fn is(&self, value: &Value) -> bool {
        match self {
            Self::Null => value.is_null(),
            Self::Bool(neutral) => value.as_bool() == Some(*neutral),
            Self::Text(neutral) => value == neutral,
            Self::EmptyList => value.as_array().is_some_and(Vec::is_empty),
            Self::EmptyObject => value.as_object().is_some_and(serde_json::Map::is_empty),
            Self::TextType => value["type"] == "text",
            Self::TextList => value.as_array().is_some_and(|list| list.iter().all(|item| item == "text")),
        }
    }
}

impl fmt::Display for Neutral {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Null => f.write_str("null"),
            Self::Bool(neutral) => neutral.fmt(f),
            Self::Text(neutral) => write!(f, "{neutral:?}"),
            Self::EmptyList => f.write_str("[]"),
            Self::EmptyObject => f.write_str("{}"),
            Self::TextType => f.write_str(r#"{"type": "text"}"#),
            Self::TextList => f.write_str(r#"["text"]"#),
        }
    }
}

/// Refuses the fields among these that ask for something.
pub(super) fn refuse(fields: &mut Fields, neutral: &[(&str, Neutral)]) -> Result<(), InvalidRequest> {
    for (name, neutral) in neutral {
        if let Some(value) = fields.take(name).filter(|value| !neutral.is(value)) {
            return Err(InvalidRequest::Unsupported {
                param: (*name).into(),
                got: show(&value),
                instead: format!("leave it out or send {neutral}"),
            });
        }
    }
    Ok(())
}
