//! Why a request failed, kept apart by what can be done about it.

use std::time::Duration;

use crate::Error;

/// A failed request.
#[derive(Debug)]
pub(crate) struct Failure {
    pub(crate) kind: FailureKind,
    /// A sentence for people: what was asked, what came back. Never holds a token or a signed address.
    pub(crate) message: String,
    /// The pause that the server requests.
    pub(crate) retry_after: Option<Duration>,
}

#[derive(Debug)]
pub(crate) enum FailureKind {
    /// No connection: no network, unknown host, refused, or a certificate that can't be trusted.
    Unreachable,
    /// The connection broke, or the server is overloaded for now: worth another try.
    Transient,
    /// 401 or 403: no token, a wrong or expired one, or one without the right.
    Denied,
    /// 404: the repository, revision or file does not exist, or is hidden.
    Missing,
    /// 409: it exists already, or somebody else changes it right now.
    Conflict,
    /// Another refusal, or an answer that makes no sense.
    Refused,
    /// What arrived is not what was announced.
    Damaged,
    /// Nothing to do with the network: a disk error, an interrupt.
    Local(Box<Error>),
}

impl Failure {
    pub(crate) fn new(kind: FailureKind, message: impl Into<String>) -> Self {
        Self {
            kind,
            message: message.into(),
            retry_after: None,
        }
    }

    /// Returns whether the same request may succeed later without anybody doing anything.
    pub(crate) fn is_transient(&self) -> bool {
        matches!(self.kind, FailureKind::Transient)
    }

    /// Returns whether the Hub as a whole is out of reach, so that a cached copy is the best there is.
    pub(crate) fn is_outage(&self) -> bool {
        matches!(self.kind, FailureKind::Unreachable | FailureKind::Transient)
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Self {
            message: error.to_string(),
            kind: FailureKind::Local(Box::new(error)),
            retry_after: None,
        }
    }
}

impl From<Failure> for Error {
    fn from(failure: Failure) -> Self {
        let advice = match failure.kind {
            FailureKind::Local(error) => {
                if matches!(*error, Error::Interrupted(_)) {
                    // Told to whoever called: the request is answered.
                    crate::base::interrupt::take();
                }
                return *error;
            }
            FailureKind::Unreachable => {
                "; check the network, or HF_ENDPOINT if you use a mirror, or give a local path"
            }
            FailureKind::Transient => "; try again later: the received part is kept",
            FailureKind::Denied => {
                "; log in with hub::login(token) or notebook_login(), with a token that has the required permission \
                 (https://huggingface.co/settings/tokens)"
            }
            FailureKind::Damaged => {
                "; it was removed: try again; if the problem persists, suspect the server or a proxy"
            }
            FailureKind::Missing | FailureKind::Conflict | FailureKind::Refused => "",
        };
        Self::Hub(format!("{}{advice}", failure.message))
    }
}
