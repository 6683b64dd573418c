//! What can go wrong with a secret. An error names the reference and, for a bad byte, its offset; no variant has a
//! place for a value or for text that may be one.

use std::io;
use std::time::Duration;

use super::http::HttpError;
use super::reference::{NOT_A_TENANTS, STORE_NAME, SecretRef};

/// Why a reference or a secret cannot be used.
///
/// The first group is about what is written in the policy: those errors repeat nothing of it, because what is not a
/// reference may be a key that somebody pasted; the policy's own report says where it stands.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SecretError {
    /// The text is no reference; most likely the key itself.
    #[error("a literal secret is refused: use `env:NAME` or `file:/path`")]
    Literal,
    /// The text starts like a reference and is not a good one.
    #[error("not a good secret reference: {0}")]
    Reference(&'static str),
    /// `{tenant}` stands in a reference where no request, and so no tenant, is known.
    #[error("{NOT_A_TENANTS}")]
    Placeholder,
    /// The name of the tenant cannot stand in the reference.
    #[error("the tenant of this request cannot have a secret `{reference}`: its name does not fit")]
    Tenant {
        /// The reference, with its placeholder.
        reference: SecretRef,
    },
    /// The part before the colon is no store of this policy.
    #[error(
        "the text before `:` is no store of this policy (there are {known}); a literal secret is refused: use `env:NAME` or `file:/path`"
    )]
    UnknownStore {
        /// The names there are, each in backticks.
        known: String,
    },
    /// A name in `secrets:` that no reference could use.
    #[error("{STORE_NAME}")]
    StoreName,

    /// A store's settings cannot be used.
    #[error("the store `{name}`: {what}")]
    StoreSetup {
        /// The store's name.
        name: String,
        /// What is wrong.
        what: String,
    },

    /// No read was tried yet.
    #[error("`{reference}` was not read yet")]
    NotRead {
        /// The secret.
        reference: SecretRef,
    },
    /// A tenant's secret is not asked for, because its store does not know too many names of late.
    #[error("`{reference}` was not asked for: too many tenants are unknown to its store")]
    HeldBack {
        /// The secret.
        reference: SecretRef,
    },
    /// The variable, file or entry does not exist.
    #[error("`{reference}` does not exist")]
    NotFound {
        /// The secret.
        reference: SecretRef,
    },
    /// It exists (or may), and could not be read.
    #[error("`{reference}` cannot be read: {kind}")]
    Unreadable {
        /// The secret.
        reference: SecretRef,
        /// The system's kind of failure; its free text is dropped.
        kind: io::ErrorKind,
    },
    /// A directory, FIFO, socket or device.
    #[error("`{reference}` is not a regular file")]
    NotAFile {
        /// The secret.
        reference: SecretRef,
    },
    /// The store did not answer in time.
    #[error("`{reference}` was not read within {} ms", after.as_millis())]
    TimedOut {
        /// The secret.
        reference: SecretRef,
        /// How long was waited.
        after: Duration,
    },
    /// More bytes than a secret may have.
    #[error("`{reference}` is larger than {limit} bytes")]
    TooLarge {
        /// The secret.
        reference: SecretRef,
        /// The bound, in bytes.
        limit: usize,
    },
    /// No bytes, or only white space.
    #[error("`{reference}` is empty or blank")]
    Empty {
        /// The secret.
        reference: SecretRef,
    },
    /// A byte that may not stand in a header value.
    #[error(
        "`{reference}` has a byte at offset {offset} that may not stand in a header (line end, other control character, or not ASCII)"
    )]
    Malformed {
        /// The secret.
        reference: SecretRef,
        /// Offset of the first such byte, from 0.
        offset: usize,
    },
    /// The value is not written as its use wants it.
    #[error("`{reference}` cannot be used: {form}")]
    NotInForm {
        /// The secret.
        reference: SecretRef,
        /// What it is not. Static text.
        form: &'static str,
    },
    /// The value has ended (its lease, its token), and no new one could be read.
    #[error("`{reference}` has ended, and was not read anew")]
    Expired {
        /// The secret.
        reference: SecretRef,
    },
    /// The store did not give it.
    #[error("`{reference}`: {fault}")]
    Store {
        /// The secret.
        reference: SecretRef,
        /// Why.
        fault: StoreFault,
    },
    /// The token was not issued.
    #[error("`{reference}`: {fault}")]
    Token {
        /// The token.
        reference: SecretRef,
        /// Why.
        fault: Box<TokenFault>,
    },
    /// A field was asked for, and the value is not JSON.
    #[error("`{reference}` asks for a field, and its value is not JSON (byte {offset})")]
    NotJson {
        /// The secret.
        reference: SecretRef,
        /// Where the reader stopped, in bytes from 0.
        offset: usize,
    },
    /// The JSON value has no such field.
    #[error("`{reference}`: there is no such field in the value")]
    FieldMissing {
        /// The secret.
        reference: SecretRef,
    },
    /// The field is there, and is an object, a list, a boolean, null, or a number that would not survive reading.
    #[error(
        "`{reference}`: the field is neither a string nor a whole number of at most 64 bits; write it as a string"
    )]
    FieldNotText {
        /// The secret.
        reference: SecretRef,
    },
}

impl SecretError {
    /// A short stable text for `/status`, metrics and logs.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Literal => "literal",
            Self::Reference(_) => "bad_reference",
            Self::Placeholder | Self::Tenant { .. } => "tenant",
            Self::UnknownStore { .. } => "unknown_store",
            Self::StoreName => "store_name",
            Self::StoreSetup { .. } => "store_setup",
            Self::Expired { .. } => "expired",
            Self::Store { fault, .. } => fault.code(),
            Self::Token { fault, .. } => fault.code(),
            Self::NotRead { .. } => "not_read",
            Self::HeldBack { .. } => "held_back",
            Self::NotFound { .. } => "not_found",
            Self::Unreadable { .. } => "unreadable",
            Self::NotAFile { .. } => "not_a_file",
            Self::TimedOut { .. } => "timed_out",
            Self::TooLarge { .. } => "too_large",
            Self::Empty { .. } => "empty",
            Self::Malformed { .. } | Self::NotInForm { .. } => "malformed",
            Self::NotJson { .. } => "not_json",
            Self::FieldMissing { .. } => "field_missing",
            Self::FieldNotText { .. } => "field_not_text",
        }
    }

    /// What a store says about `reference`.
    #[must_use]
    pub fn store(reference: &SecretRef, fault: impl Into<StoreFault>) -> Self {
        match fault.into() {
            StoreFault::NotFound => Self::NotFound { reference: reference.clone() },
            fault => Self::Store { reference: reference.clone(), fault },
        }
    }

    /// Whether nobody was asked, because who would be failed too often of late.
    #[must_use]
    pub fn is_held(&self) -> bool {
        match self {
            Self::Store { fault, .. } => fault.is_held(),
            Self::Token { fault, .. } => fault.is_held(),
            _ => false,
        }
    }

    /// Whether it is the store that fails, and not this one secret that is not there or not what was asked for.
    #[must_use]
    pub fn blames_store(&self) -> bool {
        match self {
            Self::Store { fault, .. } => !matches!(fault, StoreFault::Reference(_)),
            Self::TimedOut { .. } | Self::Unreadable { .. } => true,
            Self::Literal
            | Self::Reference(_)
            | Self::Placeholder
            | Self::Tenant { .. }
            | Self::UnknownStore { .. }
            | Self::StoreName
            | Self::StoreSetup { .. }
            | Self::NotRead { .. }
            | Self::HeldBack { .. }
            | Self::NotFound { .. }
            | Self::NotAFile { .. }
            | Self::TooLarge { .. }
            | Self::Empty { .. }
            | Self::Malformed { .. }
            | Self::NotInForm { .. }
            | Self::Expired { .. }
            | Self::Token { .. }
            | Self::NotJson { .. }
            | Self::FieldMissing { .. }
            | Self::FieldNotText { .. } => false,
        }
    }

    /// What a failed system call says about `reference`.
    #[must_use]
    pub fn from_io(reference: &SecretRef, error: &io::Error) -> Self {
        let reference = reference.clone();
        match error.kind() {
            io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => Self::NotFound { reference },
            kind => Self::Unreadable { reference, kind },
        }
    }
}

/// Why a store did not give a secret. Made of numbers and of texts that stand in this program: no word of an answer, of a
/// program's output or of a file can be in it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum StoreFault {
    /// There is no such secret.
    #[error("it does not exist")]
    NotFound,
    /// No usable answer came.
    #[error("the store {0}")]
    Http(#[from] HttpError),
    /// The store refused.
    #[error("the store answered HTTP {0}{hint}", hint = hint(*.0))]
    Status(u16),
    /// The store's login failed.
    #[error("the login at the store failed: {0}")]
    Login(Box<StoreFault>),
    /// What the store logs in with could not be read.
    #[error("the store's own credential cannot be read: {0}")]
    Own(Box<SecretError>),
    /// The answer is not what the store's API promises.
    #[error("the store's answer is not of the expected form: {0}")]
    Garbled(&'static str),
    /// The reference does not fit the store.
    #[error("the reference does not fit this kind of store: {0}")]
    Reference(&'static str),
    /// The keys of AWS could not be got from where they come from.
    #[error("AWS keys: {0}")]
    Keys(&'static str),
    /// A program could not be started.
    #[error("the program cannot be started: {0}")]
    NotStarted(io::ErrorKind),
    /// A program ended with a failure.
    #[error("the program ended with exit code {0}")]
    Exit(i32),
    /// A program was ended by a signal.
    #[error("the program was ended by signal {0}")]
    Signal(i32),
    /// A program's output could not be read.
    #[error("the program's output cannot be read: {0}")]
    Output(io::ErrorKind),
    /// A program took too long; it was killed.
    #[error("the program took longer than {} ms and was killed", .0.as_millis())]
    Overdue(Duration),
    /// The file of sealed values is not one.
    #[error("the file of sealed values: {0}")]
    SealedFile(&'static str),
    /// A sealed value does not open.
    #[error(
        "it does not open: the key is another one, or the entry was changed, or stands under another name"
    )]
    Unopened,
    /// The key of sealed values is not one.
    #[error("the key of the sealed values is not 32 bytes in base64 (`outgate seal --new-key` makes one)")]
    SealKey,
}

fn hint(status: u16) -> &'static str {
    match status {
        300..=399 => " (redirects are not followed)",
        401 => " (not logged in)",
        403 => " (not allowed)",
        _ => "",
    }
}

impl StoreFault {
    fn is_held(&self) -> bool {
        match self {
            Self::Http(error) => error.is_held(),
            Self::Login(fault) => fault.is_held(),
            _ => false,
        }
    }

    /// A short stable text for `/status`, metrics and logs.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::NotFound => "not_found",
            Self::Http(fault) => fault.code(),
            Self::Status(401 | 403) => "store_denied",
            Self::Status(_) => "store_status",
            Self::Login(_) => "store_login",
            Self::Own(_) => "store_credential",
            Self::Garbled(_) => "store_garbled",
            Self::Reference(_) => "bad_reference",
            Self::Keys(_) => "aws_keys",
            Self::NotStarted(_) => "exec_not_started",
            Self::Exit(_) => "exec_exit",
            Self::Signal(_) => "exec_signal",
            Self::Output(_) => "exec_output",
            Self::Overdue(_) => "exec_timeout",
            Self::SealedFile(_) => "sealed_file",
            Self::Unopened => "sealed_unopened",
            Self::SealKey => "sealed_key",
        }
    }
}

/// Why a token was not issued. Like [`StoreFault`], it has no place for a word of an answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TokenFault {
    /// No usable answer came.
    #[error("the token endpoint {0}")]
    Http(#[from] HttpError),
    /// The endpoint refused, with an error code of RFC 6749 section 5.2 if it is one.
    #[error("the token endpoint answered HTTP {status} ({code})")]
    Refused {
        /// The status.
        status: u16,
        /// The code, from a closed list; `other` for what is not in it.
        code: &'static str,
    },
    /// The answer is not what RFC 6749 section 5.1 promises.
    #[error("the token endpoint's answer is not of the expected form: {0}")]
    Garbled(&'static str),
    /// What the token is got with is not there.
    #[error("what it is got with is not available: {0}")]
    Input(Box<SecretError>),
    /// A key cannot be used.
    #[error("the key it is got with cannot be used: {0}")]
    Key(&'static str),
    /// The new refresh token could not be kept, so the access token is not used.
    #[error("the new refresh token could not be stored: {0}")]
    NotKept(&'static str),
    /// The endpoint said that the refresh token is over, and there is no newer one.
    #[error(
        "its refresh token was refused for good (invalid_grant): the consent must be given anew, and the secret replaced"
    )]
    Dead,
    /// The settings cannot be used.
    #[error("it cannot be asked for: {0}")]
    Setup(&'static str),
}

impl TokenFault {
    fn is_held(&self) -> bool {
        match self {
            Self::Http(error) => error.is_held(),
            Self::Input(error) => error.is_held(),
            _ => false,
        }
    }

    /// A short stable text for `/status`, metrics and logs.
    #[must_use]
    pub fn code(&self) -> &'static str {
        match self {
            Self::Http(error) => match error.last() {
                HttpError::Failed(_) => "token_unreachable",
                HttpError::TimedOut => "token_timeout",
                HttpError::Status(_) => "token_status",
                HttpError::TooLarge | HttpError::Request | HttpError::Garbled | HttpError::Held(_) => {
                    "token_garbled"
                }
            },
            Self::Garbled(_) => "token_garbled",
            Self::Refused { .. } => "token_refused",
            Self::Input(_) => "token_input",
            Self::Key(_) => "token_key",
            Self::NotKept(_) => "token_not_kept",
            Self::Dead => "token_grant_dead",
            Self::Setup(_) => "token_setup",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_name_the_reference_and_the_offset() {
        let reference: SecretRef = "file:/run/secrets/stripe#key".parse().unwrap();
        let malformed = SecretError::Malformed { reference: reference.clone(), offset: 6 };
        assert!(malformed.to_string().starts_with("`file:/run/secrets/stripe#key` has a byte at offset 6 "));
        assert_eq!(malformed.code(), "malformed");
        let denied =
            SecretError::from_io(&reference, &io::Error::new(io::ErrorKind::PermissionDenied, "CANARY"));
        assert_eq!(denied.to_string(), "`file:/run/secrets/stripe#key` cannot be read: permission denied");
        assert!(!format!("{denied:?}").contains("CANARY"));
        assert_eq!(
            SecretError::Placeholder.to_string(),
            "`{tenant}` has no meaning here: only a provider's credential can be a tenant's"
        );
    }
}
