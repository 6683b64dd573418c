//! Presets: what outgate knows about a provider, in the policy's own words, so that a policy names a preset and a secret.
//!
//! ```yaml
//! providers:
//!   stripe: { preset: stripe, credential: { secret: env:STRIPE_KEY } }
//!   zendesk: { preset: zendesk, with: { subdomain: acme }, credential: { email: bot@acme.test, secret: env:ZENDESK } }
//! ```
//!
//! A preset is one file, `presets/<name>.yaml`: the keys of a provider, and under `preset` a [`header`] with its parameters,
//! the ways of its credential, its keys' formats, and where the facts come from. The files are built in, and read
//! when a policy names them. `${name}` stands for a parameter or for a part of the credential.
//!
//! It lies between `defaults` and the provider: whatever it says, the provider's own keys win ([`super::merge`]). Its routes
//! only fill in what the policy leaves open and never allow anything. One may deny paths that belong to another API on the same
//! host; a route of the policy that names such a path opens it.
//!
//! | file | what |
//! | --- | --- |
//! | `files` | the texts, by name |
//! | `header` | what a preset says about itself |
//! | `pattern` | what a parameter may look like |
//! | `removal` | what the app sends elsewhere than where the credential goes |
//! | `fill` | values in place of `${name}` |
//! | `credential` | from `credential: { secret: .. }` to a kind |
//! | `apply` | the policy with its presets |
//! | `catalogue` | what they say, for people |
//! | `keys` | the formats of all keys, for redaction |

pub mod apply;
pub mod catalogue;
mod credential;
mod files;
mod fill;
pub mod header;
pub mod keys;
pub mod pattern;
mod removal;

use super::decode::decode;
use super::diagnostic::Diagnostics;
use super::tree::{Entry, Node, PolicyPath, SourceId, Sources, Value};
use super::yaml;
use header::Header;

pub use files::{names, text};

/// The key of a preset's own file that holds its header.
const HEADER: &str = "preset";
/// The key of a preset whose entries are laid under the policy's one by one, and not merged.
const ROUTES: &str = "routes";

/// A preset as read.
#[derive(Clone, Debug)]
pub struct Preset {
    /// What it says about itself.
    pub header: Header,
    /// The ways of its credential as written, the usual one first.
    credentials: Vec<Entry>,
    /// Its keys of a provider, without its routes.
    base: Node,
    /// Its routes.
    routes: Vec<Node>,
}

impl Preset {
    /// Reads the built-in preset of this name; none where there is none, or where its text is wrong (a test reads them all).
    pub fn named(name: &str) -> Option<Self> {
        let source = Sources::new().add(title(name));
        Self::read(text(name)?, source, &mut Diagnostics::new())
    }

    /// Reads a preset's text. Every mistake goes to `mistakes`.
    pub fn read(text: &str, source: SourceId, mistakes: &mut Diagnostics) -> Option<Self> {
        let tree = yaml::parse(text, source, mistakes)?;
        let empty = Node { value: Value::Mapping(Vec::new()), place: tree.place };
        let header = tree.get(HEADER).unwrap_or(&empty);
        let credentials = header.get("credentials").map(|node| node.entries().to_vec()).unwrap_or_default();
        let routes = tree.get(ROUTES).map(|node| node.items().to_vec()).unwrap_or_default();
        let header = decode(header, &PolicyPath::root().key(HEADER), mistakes)?;
        let keys = tree.entries().iter().filter(|entry| ![HEADER, ROUTES].contains(&entry.key.as_str()));
        let base = Node { value: Value::Mapping(keys.cloned().collect()), place: tree.place };
        Some(Self { header, credentials, base, routes })
    }

    /// The names of the credential's ways, the usual one first.
    pub fn ways(&self) -> impl Iterator<Item = &str> {
        self.credentials.iter().map(|way| way.key.as_str())
    }
}

/// The name of a preset's text in messages and in `explain`.
fn title(name: &str) -> String {
    format!("preset {name}")
}

#[cfg(test)]
mod tests;
