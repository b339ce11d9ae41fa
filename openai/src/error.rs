//! What can be wrong with a request, and the error object that clients of the API read. Which HTTP status goes with
//! an error is the server's business.

use serde::{Deserialize, Serialize};

/// Body of every error answer, and of the error event inside a stream.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ErrorBody {
    /// The only field.
    pub error: ApiError,
}

/// The error object.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ApiError {
    /// For people: what was wrong and what to do.
    pub message: String,
    /// Family, such as `invalid_request_error`.
    #[serde(rename = "type")]
    pub kind: String,
    /// The request's field at fault.
    pub param: Option<String>,
    /// For programs, such as `model_not_found`.
    pub code: Option<String>,
}

/// A request body that cannot be served as it is.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum InvalidRequest {
    /// Not JSON.
    #[error("the body is not valid JSON: {reason}")]
    Json {
        /// What the parser said, with line and column.
        reason: String,
    },
    /// JSON, but not an object.
    #[error("the body must be a JSON object, got {got}")]
    NotAnObject {
        /// What it is.
        got: String,
    },
    /// A required field is absent or null.
    #[error("{param} is required: give {expected}")]
    Missing {
        /// The field.
        param: String,
        /// What belongs there.
        expected: &'static str,
    },
    /// A field holds another type.
    #[error("{param} must be {expected}, got {got}")]
    Type {
        /// The field.
        param: String,
        /// What belongs there.
        expected: &'static str,
        /// What is there.
        got: String,
    },
    /// A field holds a value outside its range.
    #[error("{param} must be {range}, got {got}")]
    Range {
        /// The field.
        param: String,
        /// What is allowed.
        range: String,
        /// What is there.
        got: String,
    },
    /// The field is part of the API, but this value is not offered.
    #[error("{param} = {got} is not supported yet; {instead}")]
    Unsupported {
        /// The field.
        param: String,
        /// What is there.
        got: String,
        /// What to do.
        instead: String,
    },
    /// A field that makes sense only with another.
    #[error("{param} is only allowed when {needs}")]
    Dependent {
        /// The field.
        param: String,
        /// What it needs.
        needs: &'static str,
    },
}

impl InvalidRequest {
    /// The field at fault, if one is.
    pub fn param(&self) -> Option<&str> {
        match self {
            Self::Json { .. } | Self::NotAnObject { .. } => None,
            Self::Missing { param, .. }
            | Self::Type { param, .. }
            | Self::Range { param, .. }
            | Self::Unsupported { param, .. }
            | Self::Dependent { param, .. } => Some(param),
        }
    }

    /// Name of the fault for programs, as in the error object's `code`.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Json { .. } => "invalid_json",
            Self::NotAnObject { .. } | Self::Type { .. } => "invalid_type",
            Self::Missing { .. } => "missing_field",
            Self::Range { .. } => "invalid_value",
            Self::Unsupported { .. } => "unsupported_value",
            Self::Dependent { .. } => "invalid_combination",
        }
    }
}
