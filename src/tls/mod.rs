//! TLS on both sides of the proxy: who we are to the app, and whom we trust upstream.
//!
//! ```text
//! downstream (the app believes outgate's CA)      upstream (outgate believes the system's roots)
//!   authority     the CA and its files              roots          which certificates are trusted, and the app's bundle
//!   leaf_cache    one ServerConfig per host         client_config  the ClientConfig of one upstream profile
//!   client_hello  look at SNI, replay the bytes
//!   accept        the handshake of interception
//!   truststore    the app's bundle once more, for Java
//! ```
//!
//! Two rules hold here. The CA's key leaves this folder only as signatures: no type that holds it prints it,
//! nothing serves it, and it is wiped when dropped. And what outgate trusts upstream never contains outgate's
//! own CA, or one outgate could pretend to be a provider to another.
pub mod accept;
pub mod authority;
pub mod client_config;
pub mod client_hello;
pub mod error;
pub mod leaf_cache;
pub mod pem;
pub mod provider;
pub mod roots;
pub mod truststore;

pub use accept::accept;
pub use authority::{Authority, CaSource};
pub use client_config::{Alpn, ClientCertificate, ClientTls, MinVersion, TlsFault, classify};
pub use client_hello::{ClientHelloPeek, alert_unrecognized_name, read_client_hello};
pub use error::TlsError;
pub use leaf_cache::{LeafCache, LeafStats, Succession};
pub use provider::crypto_provider;
pub use roots::{SystemRoots, write_bundle};
