//! `outgate ca init` makes the CA; `outgate ca export` prints its certificate. The key is never shown.

use std::process::ExitCode;

use super::{PolicyArgument, fail, load, print};
use crate::policy::compiled::{Ca, CompiledPolicy};
use crate::tls::roots::{SystemRoots, write_bundle};
use crate::tls::truststore::write_truststore;
use crate::tls::{Authority, CaSource};

/// Arguments of `ca`.
#[derive(clap::Args)]
pub struct Arguments {
    #[command(subcommand)]
    action: Action,
}

#[derive(clap::Subcommand)]
enum Action {
    /// Make the CA where the policy says, if it is not there yet, and write the bundle.
    Init(PolicyArgument),
    /// Print the CA's certificate as PEM.
    Export(PolicyArgument),
}

/// Runs the action.
pub fn run(arguments: &Arguments) -> ExitCode {
    let (Action::Init(policy) | Action::Export(policy)) = &arguments.action;
    let policy = match load(policy) {
        Ok(policy) => policy,
        Err(code) => return code,
    };
    let authority = match Authority::load_or_create(&source(&policy)) {
        Ok(authority) => authority,
        Err(error) => return fail(error),
    };
    match &arguments.action {
        Action::Export(_) => print(authority.certificate_pem()),
        Action::Init(_) => init(&policy, &authority),
    }
}

fn init(policy: &CompiledPolicy, authority: &Authority) -> ExitCode {
    let bundle = &policy.fixed.interception.bundle;
    let roots = SystemRoots::load(Some(authority.certificate_der()), Some(bundle), None, None);
    if let Err(error) = write_bundle(bundle, &roots, authority.certificate_pem()) {
        return fail(error);
    }
    let mut text = format!(
        "CA      sha256 {}\nbundle  {} (system roots and this CA)\n",
        authority.fingerprint_sha256(),
        bundle.display(),
    );
    if let Some(truststore) = &policy.fixed.interception.truststore {
        if let Err(error) = write_truststore(truststore, &roots, &[authority.certificate_der()]) {
            return fail(error);
        }
        text.push_str(&format!("java    {} (the same as PKCS#12)\n", truststore.display()));
    }
    print(&text)
}

/// Where the policy has its CA.
pub fn source(policy: &CompiledPolicy) -> CaSource {
    match &policy.fixed.interception.ca {
        Ca::Directory(directory) => CaSource::Directory(directory.clone()),
        Ca::Files { certificate, key } => {
            CaSource::Files { certificate: certificate.clone(), key: key.clone() }
        }
    }
}
