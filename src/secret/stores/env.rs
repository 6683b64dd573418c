//! `env:NAME`: environment variables, read once. The only place of the crate that reads the environment for a secret.
//!
//! `env:APP_JSON#stripe.key` takes a field of a variable that holds JSON, as container platforms inject them. An unset
//! variable does not exist; an empty one is empty. A variable cannot change while the process lives.

use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;

use zeroize::Zeroizing;

use super::field;
use crate::secret::error::SecretError;
use crate::secret::reference::SecretRef;
use crate::secret::{ReadFuture, SecretBytes, SecretStore, Source};

/// The process's environment.
pub struct EnvStore;

impl SecretStore for EnvStore {
    fn read<'a>(&'a self, reference: &'a SecretRef) -> ReadFuture<'a> {
        Box::pin(std::future::ready(read(reference).map(Into::into)))
    }

    fn source(&self, _: &SecretRef) -> Source {
        Source::Fixed
    }
}

/// A variable, to be handed on to a program.
#[allow(clippy::disallowed_methods, reason = "the one store whose secrets are variables")]
pub(super) fn variable(name: &str) -> Option<OsString> {
    std::env::var_os(name)
}

fn read(reference: &SecretRef) -> Result<SecretBytes, SecretError> {
    let value =
        variable(reference.path()).ok_or_else(|| SecretError::NotFound { reference: reference.clone() })?;
    field::select(Zeroizing::new(value.into_vec()), reference)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_variable_is_read_and_a_missing_one_does_not_exist() {
        // Set by cargo for every test; setting one would need unsafe code in this edition.
        let set: SecretRef = "env:CARGO_PKG_NAME".parse().unwrap();
        assert_eq!(EnvStore.read(&set).await.unwrap().bytes.as_slice(), b"outgate");
        let missing: SecretRef = "env:OUTGATE_NO_SUCH_VARIABLE".parse().unwrap();
        assert_eq!(EnvStore.read(&missing).await.map(|_| ()).unwrap_err().code(), "not_found");
        let field: SecretRef = "env:CARGO_PKG_NAME#key".parse().unwrap();
        assert_eq!(EnvStore.read(&field).await.map(|_| ()).unwrap_err().code(), "not_json");
        assert_eq!(EnvStore.source(&set), Source::Fixed);
    }
}
