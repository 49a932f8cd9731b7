//! What went wrong with a request to the API server, in few classes and in one line.
//!
//! Invariant: [`Class`] has fixed names, fit for metric labels; no text of an error becomes a label.

use std::{error::Error as StdError, fmt::Write as _};

use kube::Error;

/// What an error of a request means for the one who made it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Class {
    /// The object changed since it was read (409).
    Conflict,
    /// An object of that name exists (409).
    AlreadyExists,
    /// No such object (404).
    NotFound,
    /// The requested version is too old (410).
    Gone,
    /// The namespace is being deleted: nothing new can be created in it (403 with that cause).
    NamespaceTerminating,
    /// Not allowed (403).
    Forbidden,
    /// Not known to the API server (401).
    Unauthorized,
    /// The object was refused as invalid (400, 422).
    Invalid,
    /// Asked to slow down (429).
    Throttled,
    /// The API server failed (5xx).
    Server,
    /// No answer in time.
    Timeout,
    /// The API server could not be reached, or the connection broke.
    Unreachable,
    /// The answer could not be understood, or anything else.
    Other,
}

impl Class {
    /// The class of an error.
    pub fn of(error: &Error) -> Self {
        match error {
            Error::Api(status) => {
                let terminating = status.details.as_ref().is_some_and(|details| {
                    details.causes.iter().any(|cause| cause.reason == "NamespaceTerminating")
                });
                match status.code {
                    409 if status.reason == "AlreadyExists" => Self::AlreadyExists,
                    409 => Self::Conflict,
                    404 => Self::NotFound,
                    410 => Self::Gone,
                    403 if terminating => Self::NamespaceTerminating,
                    403 => Self::Forbidden,
                    401 => Self::Unauthorized,
                    400 | 422 => Self::Invalid,
                    429 => Self::Throttled,
                    504 => Self::Timeout,
                    500.. => Self::Server,
                    _ => Self::Other,
                }
            }
            Error::HyperError(_) | Error::Service(_) | Error::ReadEvents(_) => Self::Unreachable,
            _ => Self::Other,
        }
    }

    /// A fixed word for metric labels.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Conflict => "conflict",
            Self::AlreadyExists => "already_exists",
            Self::NotFound => "not_found",
            Self::Gone => "gone",
            Self::NamespaceTerminating => "namespace_terminating",
            Self::Forbidden => "forbidden",
            Self::Unauthorized => "unauthorized",
            Self::Invalid => "invalid",
            Self::Throttled => "throttled",
            Self::Server => "server",
            Self::Timeout => "timeout",
            Self::Unreachable => "unreachable",
            Self::Other => "other",
        }
    }
}

/// The error and its causes in one line; the API server's own sentence where there is one.
pub fn sentence(error: &Error) -> String {
    match error {
        Error::Api(status) if !status.message.is_empty() => status.message.replace('\n', " "),
        Error::Api(status) => format!("HTTP status {}", status.code),
        Error::Service(source) => chain(source.as_ref()),
        Error::HyperError(source) => chain(source),
        error => chain(error),
    }
}

/// An error and its causes, outermost first, without repeating what a cause already said.
pub fn chain(error: &(dyn StdError + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            // Writing to a String cannot fail.
            let _ = write!(text, ": {cause_text}");
        }
        source = cause.source();
    }
    text.replace('\n', " ")
}

#[cfg(test)]
mod tests {
    use kube::core::Status;

    use super::*;

    fn api(code: u16, reason: &str, message: &str) -> Error {
        Error::Api(Status::failure(message, reason).with_code(code).boxed())
    }

    #[test]
    fn conflict_and_existing_object_are_told_apart() {
        assert_eq!(Class::of(&api(409, "Conflict", "")), Class::Conflict);
        assert_eq!(Class::of(&api(409, "AlreadyExists", "")), Class::AlreadyExists);
    }

    #[test]
    fn terminating_namespace_is_told_from_missing_rights() {
        let details = serde_json::json!({"kind": "Status", "code": 403, "reason": "Forbidden", "message": "no",
            "details": {"causes": [{"reason": "NamespaceTerminating", "message": "m"}]}});
        let status: Status = serde_json::from_value(details).unwrap();
        assert_eq!(Class::of(&Error::Api(status.boxed())), Class::NamespaceTerminating);
        assert_eq!(Class::of(&api(403, "Forbidden", "no")), Class::Forbidden);
    }

    #[test]
    fn sentence_of_an_api_error_is_the_server_s_own() {
        assert_eq!(sentence(&api(403, "Forbidden", "pods is forbidden")), "pods is forbidden");
    }
}
