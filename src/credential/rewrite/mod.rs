//! Credentials that are work for each request: a field of a body, a dummy that is replaced, a signature.
//!
//! What stands in a header or a parameter as it is, is a [`Part`](super::kinds::Part), written once per version of its secrets.
//! What depends on the request is a [`Rewrite`], called once for each attempt, after the parts were injected and last
//! before the provider: a body that is sent again is the app's own again, and is rewritten anew. A credential without one
//! pays nothing for it.

mod held;
mod lent;

use std::sync::Arc;

use futures_util::future::BoxFuture;

pub use held::{collect, replace};
pub use lent::Loan;

use super::kinds::Used;
use super::location::Location;
use crate::message::failure::Failure;
use crate::message::request::EgressRequest;
use crate::secret::{SecretBytes, SecretVersion};

/// Work of a credential for each request.
pub trait Rewrite: Send + Sync {
    /// The secrets it needs. [`Secrets`] gives them in this order.
    fn secrets(&self) -> Vec<Used>;

    /// The places that belong to it: what the app sent there is removed before anything else.
    fn locations(&self) -> Vec<Location>;

    /// Places that it does not write, and where a server could still take what the app sent for the credential: they are cleared
    /// in the same way.
    fn twins(&self) -> Vec<Location> {
        Vec::new()
    }

    /// Further places that it writes, in words, for `explain`.
    fn places(&self) -> Vec<String> {
        Vec::new()
    }

    /// What of its secrets is looked for in answers, where that is not each of them as a whole.
    fn needles(&self, _secrets: &Secrets) -> Vec<SecretBytes> {
        Vec::new()
    }

    /// How much of this request's body will be held, where it will be: then that is done before its secrets are taken, because
    /// a slow body may outlive them.
    fn holds(&self, _request: &EgressRequest) -> Option<u64> {
        None
    }

    /// Writes the credential into a request. The future may be dropped at any await.
    ///
    /// # Errors
    /// [`Fault::Unfit`](crate::message::failure::Fault::Unfit) where the request cannot carry it,
    /// [`Fault::Forbidden`](crate::message::failure::Fault::Forbidden) where it may not be sent at all, what [`collect`] says.
    fn rewrite<'a>(
        &'a self,
        request: EgressRequest,
        secrets: &'a Secrets,
    ) -> BoxFuture<'a, Result<EgressRequest, Failure>>;
}

/// The values of the secrets of a [`Rewrite`], of one version each.
pub struct Secrets {
    values: Vec<Arc<SecretVersion>>,
}

impl Secrets {
    /// Takes them in the order of [`Rewrite::secrets`].
    #[must_use]
    pub fn new(values: Vec<Arc<SecretVersion>>) -> Self {
        Self { values }
    }

    /// The bytes of the secret at `at`; empty where there is none.
    #[must_use]
    pub fn get(&self, at: usize) -> &[u8] {
        self.values.get(at).map_or(&[], |version| version.value.expose())
    }
}
