//! References to secrets: `<store>:<path>[#<field>][@<version>]`.
//!
//! A reference is not a secret: it is logged, shown in `/status` and compared. What is *not* a reference may be one, so
//! no error of the parser repeats its input.
//!
//! ```yaml
//! bearer: env:STRIPE_KEY
//! bearer: file:/run/secrets/app.json#stripe.key    # a field of a JSON file
//! bearer: payments:kv/stripe#secret_key@4          # a store of the policy's `secrets:`, version 4
//! ```

use std::borrow::Cow;
use std::fmt;
use std::str::FromStr;

use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::de::{self, Deserialize, Deserializer};

use super::error::SecretError;

/// The store of environment variables.
pub const ENV: &str = "env";
/// The store of files.
pub const FILE: &str = "file";
/// What stands for the store where outgate makes the value itself ([`SecretRef::made`]); no policy can name it.
pub const TOKEN: &str = "token";

/// Bytes that a reference may have; a longer text is a key.
const MAX_REFERENCE: usize = 1024;
const MAX_STORE_NAME: usize = 63;

/// What stands for the tenant of a request in a reference.
pub const TENANT: &str = "{tenant}";

/// Which secret is meant: a store, a path in it, and where the store has them a field and a version.
///
/// In path and field `{tenant}` may stand for the tenant of a request. Such a reference names no secret by itself:
/// [`SecretRef::for_tenant`] makes one that does.
///
/// The path runs to the first `#`, or else to the last `@` that has no `/` behind it. Files and variables have no
/// versions: in a `file:` reference `@` is an ordinary character.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SecretRef {
    store: String,
    path: String,
    field: Option<String>,
    version: Option<String>,
}

impl SecretRef {
    /// What names a value that outgate makes itself: `token:<kind>/<where from>#<mark>`. The mark tells apart what has the
    /// same kind and source.
    #[must_use]
    pub fn made(kind: &str, from: &str, mark: &str) -> Self {
        let path = if from.is_empty() { kind.to_owned() } else { format!("{kind}/{from}") };
        Self { store: TOKEN.to_owned(), path, field: Some(mark.to_owned()), version: None }
    }

    /// Whether it names what outgate makes itself.
    #[must_use]
    pub fn is_made(&self) -> bool {
        self.store == TOKEN
    }

    /// Whether `{tenant}` stands in it.
    #[must_use]
    pub fn is_per_tenant(&self) -> bool {
        self.path.contains(TENANT) || self.field.as_deref().is_some_and(|field| field.contains(TENANT))
    }

    /// The reference of one tenant.
    ///
    /// # Errors
    /// [`SecretError::Tenant`]: a tenant of this name cannot have such a secret. Nothing of a name may change what the rest
    /// of the reference means: it climbs no path, opens no field within a field, and is no option of a program.
    pub fn for_tenant(&self, tenant: &str) -> Result<Self, SecretError> {
        let plain = |text: &str| {
            !text.is_empty()
                && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
        };
        let climbs = tenant == "." || tenant.contains("..") || tenant.starts_with('-');
        let in_field = self.field.as_deref().is_some_and(|field| field.contains(TENANT));
        if !plain(tenant) || climbs || in_field && tenant.contains('.') {
            return Err(SecretError::Tenant { reference: self.clone() });
        }
        let reference = Self {
            store: self.store.clone(),
            path: self.path.replace(TENANT, tenant),
            field: self.field.as_ref().map(|field| field.replace(TENANT, tenant)),
            version: self.version.clone(),
        };
        let fits = reference.path.len() <= MAX_REFERENCE && reference.check().is_ok();
        if fits { Ok(reference) } else { Err(SecretError::Tenant { reference: self.clone() }) }
    }

    /// The name that a value which outgate makes itself has for one tenant.
    #[must_use]
    pub fn made_for_tenant(&self, tenant: &str) -> Self {
        let mark = self.field.as_deref().unwrap_or_default();
        Self { field: Some(format!("{mark}.{tenant}")), ..self.clone() }
    }

    /// The store's name: `env`, `file` or one of the policy's `secrets:`.
    #[must_use]
    pub fn store(&self) -> &str {
        &self.store
    }

    /// The path in the store: a variable's name, a file, a path of the store's own.
    #[must_use]
    pub fn path(&self) -> &str {
        &self.path
    }

    /// The field of the value, dotted for nested ones.
    #[must_use]
    pub fn field(&self) -> Option<&str> {
        self.field.as_deref()
    }

    /// The version, where one is pinned.
    #[must_use]
    pub fn version(&self) -> Option<&str> {
        self.version.as_deref()
    }
}

/// Why `{tenant}` is refused.
pub const NOT_A_TENANTS: &str =
    "`{tenant}` has no meaning here: only a provider's credential can be a tenant's";

/// What a store's name may be.
pub const STORE_NAME: &str = "a store's name is 1 to 63 lower-case letters, digits, `_` or `-`, starts with a letter, and is not `env`, `file` or `token`";

/// Whether `name` can stand before the colon of a reference.
#[must_use]
pub fn is_store_name(name: &str) -> bool {
    name.len() <= MAX_STORE_NAME
        && name != TOKEN
        && name.starts_with(|c: char| c.is_ascii_lowercase())
        && name.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'_' || b == b'-')
}

impl FromStr for SecretRef {
    type Err = SecretError;

    fn from_str(text: &str) -> Result<Self, SecretError> {
        let (store, rest) = text.split_once(':').ok_or(SecretError::Literal)?;
        if text.len() > MAX_REFERENCE || !is_store_name(store) {
            return Err(SecretError::Literal);
        }
        check_characters(rest)?;
        let (path, field, version) = split(store, rest);
        let reference = Self {
            store: store.to_owned(),
            path: path.to_owned(),
            field: field.map(str::to_owned),
            version: version.map(str::to_owned),
        };
        reference.check()?;
        Ok(reference)
    }
}

impl SecretRef {
    fn check(&self) -> Result<(), SecretError> {
        let wrong = |what| Err(SecretError::Reference(what));
        if self.path.is_empty() {
            return wrong("nothing stands behind `<store>:`");
        }
        if self.field.as_deref().is_some_and(|field| field.split('.').any(str::is_empty)) {
            return wrong("the field behind `#` is empty or has an empty part");
        }
        if self.version.as_deref().is_some_and(|version| !is_version(version)) {
            return wrong("the version behind `@` is not made of letters, digits, `.`, `_` and `-`");
        }
        if self.store == ENV {
            if self.version.is_some() {
                return wrong("a variable has no versions");
            }
            if !is_variable(&self.path.replace(TENANT, "x")) {
                return wrong("`env:` takes a variable's name: letters, digits and `_`, no digit first");
            }
        }
        if self.store == FILE && self.path.ends_with('/') {
            return wrong("`file:` takes a file, and not a directory");
        }
        Ok(())
    }
}

fn check_characters(rest: &str) -> Result<(), SecretError> {
    if rest.replace(TENANT, "").contains(['{', '}']) {
        // Reserved, so that a placeholder added later cannot change what a reference of today means.
        return Err(SecretError::Reference(
            "`{` and `}` are kept for placeholders, of which there is `{tenant}`",
        ));
    }
    if rest.contains(char::is_control) {
        return Err(SecretError::Reference("it holds a control character"));
    }
    if rest.trim() != rest {
        return Err(SecretError::Reference("it starts or ends with a space"));
    }
    Ok(())
}

/// Path, field and version of what stands behind `<store>:`.
fn split<'a>(store: &str, rest: &'a str) -> (&'a str, Option<&'a str>, Option<&'a str>) {
    let (path, field) = match rest.split_once('#') {
        Some((path, field)) => (path, Some(field)),
        None => (rest, None),
    };
    if store == FILE {
        return (path, field, None);
    }
    match field {
        Some(field) => match field.rsplit_once('@') {
            Some((field, version)) => (path, Some(field), Some(version)),
            None => (path, Some(field), None),
        },
        None => match path.rsplit_once('@') {
            Some((path, version)) if !version.contains('/') => (path, None, Some(version)),
            _ => (path, None, None),
        },
    }
}

fn is_version(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'))
}

/// Whether it can be the name of a variable.
pub(super) fn is_variable(name: &str) -> bool {
    !name.starts_with(|c: char| c.is_ascii_digit())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
}

impl fmt::Display for SecretRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.store, self.path)?;
        if let Some(field) = &self.field {
            write!(f, "#{field}")?;
        }
        if let Some(version) = &self.version {
            write!(f, "@{version}")?;
        }
        Ok(())
    }
}

impl fmt::Debug for SecretRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SecretRef({self})")
    }
}

impl<'de> Deserialize<'de> for SecretRef {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        // Not `deserialize_str`: with that a reader may refuse a number by itself, and repeat it.
        deserializer.deserialize_any(Visitor)
    }
}

struct Visitor;

/// serde's own answer to a scalar of another type repeats it (``invalid type: integer `4711` ``), and a key of digits
/// is such a scalar: so every scalar has its own refusal here.
macro_rules! refuse_literal {
    ($($method:ident: $type:ty),+ $(,)?) => {
        $(fn $method<E: de::Error>(self, _: $type) -> Result<SecretRef, E> {
            Err(E::custom(SecretError::Literal))
        })+
    };
}

impl de::Visitor<'_> for Visitor {
    type Value = SecretRef;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a secret reference such as `env:NAME` or `file:/path`")
    }

    fn visit_str<E: de::Error>(self, text: &str) -> Result<SecretRef, E> {
        text.parse().map_err(E::custom)
    }

    refuse_literal!(
        visit_bool: bool,
        visit_i64: i64,
        visit_i128: i128,
        visit_u64: u64,
        visit_u128: u128,
        visit_f64: f64,
        visit_bytes: &[u8],
    );
}

impl JsonSchema for SecretRef {
    fn schema_name() -> Cow<'static, str> {
        "SecretRef".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "description": "A reference to a secret: `<store>:<path>[#<field>][@<version>]`, such as `env:STRIPE_KEY` or `file:/run/secrets/stripe`. Never the secret itself.",
            "pattern": "^[a-z][a-z0-9_-]{0,62}:([^{}]|\\{tenant\\})+$",
            "maxLength": MAX_REFERENCE,
            "examples": ["env:STRIPE_KEY", "file:/run/secrets/app.json#stripe.key"],
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn references_are_read_and_written_back() {
        // text, store, path, field, version
        type Row = (&'static str, &'static str, &'static str, Option<&'static str>, Option<&'static str>);
        let table: &[Row] = &[
            ("env:STRIPE_KEY", "env", "STRIPE_KEY", None, None),
            ("env:_k9", "env", "_k9", None, None),
            ("env:APP_JSON#stripe.key", "env", "APP_JSON", Some("stripe.key"), None),
            ("file:/run/secrets/stripe", "file", "/run/secrets/stripe", None, None),
            ("file:keys/a:b", "file", "keys/a:b", None, None),
            ("file:/a@b/c@d", "file", "/a@b/c@d", None, None),
            ("file:/app.json#stripe.key", "file", "/app.json", Some("stripe.key"), None),
            ("file:/app.json#me@home", "file", "/app.json", Some("me@home"), None),
            ("payments:kv/stripe#secret_key", "payments", "kv/stripe", Some("secret_key"), None),
            ("payments:kv/stripe#secret_key@4", "payments", "kv/stripe", Some("secret_key"), Some("4")),
            (
                "cloud:arn:aws:secretsmanager:eu:1:secret:x@AWSCURRENT",
                "cloud",
                "arn:aws:secretsmanager:eu:1:secret:x",
                None,
                Some("AWSCURRENT"),
            ),
            ("cloud:team@acme/key", "cloud", "team@acme/key", None, None),
            ("cloud:team@acme/key@7", "cloud", "team@acme/key", None, Some("7")),
        ];
        for (text, store, path, field, version) in table {
            let reference: SecretRef = text.parse().unwrap_or_else(|error| panic!("{text}: {error}"));
            let got = (reference.store(), reference.path(), reference.field(), reference.version());
            assert_eq!(got, (*store, *path, *field, *version), "{text}");
            assert_eq!(&reference.to_string(), text);
        }
    }

    #[test]
    fn a_tenants_name_stands_for_the_placeholder_and_changes_nothing_else() {
        let table: &[(&str, &str, Option<&str>)] = &[
            ("file:/s/{tenant}/key", "acme", Some("file:/s/acme/key")),
            ("file:/s/{tenant}/key", "Acme-2_x.eu", Some("file:/s/Acme-2_x.eu/key")),
            ("file:/s/{tenant}", "acme", Some("file:/s/acme")),
            ("payments:kv/{tenant}/{tenant}#key@4", "a", Some("payments:kv/a/a#key@4")),
            ("file:/s/all.json#{tenant}.key", "acme", Some("file:/s/all.json#acme.key")),
            ("env:KEY_{tenant}", "ACME", Some("env:KEY_ACME")),
            ("env:{tenant}", "9ACME", None),
            ("env:KEY_{tenant}", "a-b", None),
            // A dot would open another tenant's field.
            ("file:/s/all.json#{tenant}.key", "acme.admin", None),
            ("file:/s/{tenant}/key", "..", None),
            ("file:/s/{tenant}/key", ".", None),
            ("file:/s/.{tenant}/key", ".", None),
            ("file:/s/{tenant}/key", "a..b", None),
            ("file:/s/{tenant}/key", "../other", None),
            ("file:/s/{tenant}/key", "a/b", None),
            ("file:/s/{tenant}/key", "a\\b", None),
            ("file:/s/{tenant}/key", "a%2fb", None),
            ("file:/s/{tenant}/key", "a#b", None),
            ("file:/s/{tenant}/key", "a b", None),
            ("file:/s/{tenant}/key", "a\0", None),
            ("file:/s/{tenant}/key", "\u{ff0e}\u{ff0e}", None),
            ("file:/s/{tenant}/key", "", None),
            ("payments:kv/{tenant}", "a@3", None),
            ("payments:kv/{tenant}", "a?list=true", None),
            ("payments:{tenant}", "-rf", None),
            ("payments:kv/{tenant}", "{tenant}", None),
        ];
        for (text, tenant, expected) in table {
            let reference: SecretRef = text.parse().unwrap();
            assert!(reference.is_per_tenant(), "{text}");
            let got = reference.for_tenant(tenant).ok().map(|reference| reference.to_string());
            assert_eq!(got.as_deref(), *expected, "{text} {tenant:?}");
        }
        let long: SecretRef = format!("file:/{}{{tenant}}", "a".repeat(1000)).parse().unwrap();
        assert!(long.for_tenant(&"b".repeat(128)).is_err());
        assert!(!"env:KEY".parse::<SecretRef>().unwrap().is_per_tenant());
    }

    #[test]
    fn what_is_no_reference_is_refused_and_not_repeated() {
        let long = format!("file:/{}", "CANARY".repeat(200));
        let table: &[(&str, &str)] = &[
            ("", "literal"),
            ("sk_live_CANARY", "literal"),
            ("CANARY:x", "literal"),
            ("123456:CANARY", "literal"),
            (":CANARY", "literal"),
            ("a b:CANARY", "literal"),
            (&long, "literal"),
            ("env:", "bad_reference"),
            ("env:sk-live-CANARY", "bad_reference"),
            ("env:9CANARY", "bad_reference"),
            ("env:CANARY@2", "bad_reference"),
            ("env:ÄCANARY", "bad_reference"),
            ("file:", "bad_reference"),
            ("file:#CANARY", "bad_reference"),
            ("file:/CANARY/", "bad_reference"),
            ("file:/CANARY#", "bad_reference"),
            ("file:/CANARY#a..b", "bad_reference"),
            ("file: /CANARY", "bad_reference"),
            ("file:/CANARY\n", "bad_reference"),
            ("file:/CANARY/{user}", "bad_reference"),
            ("payments:kv/CANARY@", "bad_reference"),
            ("payments:kv/CANARY#x@a b", "bad_reference"),
            ("payments:kv/CANARY@{tenant}", "bad_reference"),
            ("file:/CANARY/{tenant", "bad_reference"),
        ];
        for (text, code) in table {
            let error = text.parse::<SecretRef>().map(|r| panic!("{r} was taken")).unwrap_err();
            assert_eq!(error.code(), *code, "{text}");
            assert!(!format!("{error} {error:?}").contains("CANARY"), "{text}: {error}");
        }
        assert_eq!(
            SecretError::Literal.to_string(),
            "a literal secret is refused: use `env:NAME` or `file:/path`"
        );
    }

    #[test]
    fn deserializing_repeats_no_scalar() {
        let read = |yaml: &str| serde_yaml::from_str::<Vec<SecretRef>>(yaml);
        assert_eq!(read("- env:KEY\n").unwrap()[0].to_string(), "env:KEY");
        for literal in ["- 4711471147\n", "- -4711471147\n", "- 4711471147.5\n", "- \"4711471147\"\n"] {
            let error = read(literal).unwrap_err();
            assert!(error.to_string().contains("a literal secret is refused"), "{error}");
        }
        for literal in ["4711471147", "-4711471147", "4711471147.5", "99999999999999999999"] {
            let error = serde_json::from_str::<SecretRef>(literal).unwrap_err().to_string();
            assert!(error.contains("a literal secret is refused") && !error.contains("4711"), "{error}");
        }
    }
}
