//! `sealed`: encrypted values in a YAML file next to the policy, for teams without a server of secrets.
//!
//! ```yaml
//! secrets:
//!   vault: { sealed: { file: secrets.sealed.yaml, key: env:OUTGATE_SEAL_KEY } }
//! # then: bearer: vault:stripe        (or vault:app#stripe.key, where the value is JSON)
//! ```
//!
//! The file is a map of names to `aes256gcm:<base64 of nonce, ciphertext and tag>`; `outgate seal` writes it, and it may be
//! committed to version control. Each value is sealed with AES-256-GCM (NIST SP 800-38D) under a random nonce of 96 bits; its
//! name is the associated data, so that an entry which is moved to another name does not open. Names are not secret. The
//! key is 32 bytes in base64, from `env:` or `file:`. One key seals at most 2^32 values. The file is watched.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use aws_lc_rs::aead::{AES_256_GCM, Aad, NONCE_LEN, Nonce, RandomizedNonceKey};
use aws_lc_rs::hkdf;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use schemars::JsonSchema;
use serde::Deserialize;
use zeroize::Zeroizing;

use super::document;
use super::server::{OwnSecrets, check_own};
use super::{field, file::FileStore};
use crate::secret::config::{StoreEnv, StoreMistake};
use crate::secret::error::{SecretError, StoreFault};
use crate::secret::reference::SecretRef;
use crate::secret::value::{SecretValue, ValueRules};
use crate::secret::{ReadFuture, SecretBytes, SecretStore, Source};

/// Bytes of a key.
pub const KEY_BYTES: usize = 32;
const FORM: &str = "aes256gcm:";
/// Ties a sealed value to its use and its name.
const CONTEXT: &str = "outgate sealed v1\0";

/// An encrypted file.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct SealedConfig {
    /// The file, as `outgate seal` writes it. Relative paths start at the policy's directory.
    pub file: String,
    /// Its key: `env:` or `file:`.
    pub key: SecretRef,
}

impl SealedConfig {
    pub(crate) fn mistakes(&self) -> Vec<StoreMistake> {
        check_own("key", &self.key).into_iter().collect()
    }
}

/// A key of sealed values.
pub struct SealKey(RandomizedNonceKey);

impl SealKey {
    /// A new key, in base64.
    ///
    /// # Errors
    /// The system gives no randomness.
    pub fn generate() -> Result<Zeroizing<String>, StoreFault> {
        let mut bytes = Zeroizing::new([0; KEY_BYTES]);
        aws_lc_rs::rand::fill(&mut *bytes).map_err(|_| StoreFault::SealKey)?;
        Ok(Zeroizing::new(STANDARD.encode(*bytes)))
    }

    /// A key for one purpose, derived (HKDF, RFC 5869) from a secret that is as good as random, such as a refresh token.
    ///
    /// # Errors
    /// [`StoreFault::SealKey`].
    pub fn derived(secret: &[u8], purpose: &str) -> Result<Self, StoreFault> {
        let mut bytes = Zeroizing::new([0; KEY_BYTES]);
        let derived = hkdf::Salt::new(hkdf::HKDF_SHA256, purpose.as_bytes()).extract(secret);
        let key = derived.expand(&[b"seal"], hkdf::HKDF_SHA256).and_then(|key| key.fill(&mut *bytes));
        key.map_err(|_| StoreFault::SealKey)?;
        RandomizedNonceKey::new(&AES_256_GCM, &*bytes).map(Self).map_err(|_| StoreFault::SealKey)
    }

    /// Reads a key.
    ///
    /// # Errors
    /// [`StoreFault::SealKey`].
    pub fn parse(value: &SecretValue) -> Result<Self, StoreFault> {
        let bytes = document::base64(value.expose()).map_err(|_| StoreFault::SealKey)?;
        if bytes.len() != KEY_BYTES {
            return Err(StoreFault::SealKey);
        }
        RandomizedNonceKey::new(&AES_256_GCM, &bytes).map(Self).map_err(|_| StoreFault::SealKey)
    }

    /// Seals a value under its name; gives the text of the entry.
    ///
    /// # Errors
    /// The system gives no randomness.
    pub fn seal(&self, name: &str, value: &[u8]) -> Result<String, StoreFault> {
        // With room for the tag: when a vector grows, a copy stays unwiped.
        let mut bytes = Zeroizing::new(Vec::with_capacity(value.len() + AES_256_GCM.tag_len()));
        bytes.extend_from_slice(value);
        let aad = Aad::from(format!("{CONTEXT}{name}"));
        let nonce = self.0.seal_in_place_append_tag(aad, &mut *bytes).map_err(|_| StoreFault::SealKey)?;
        let sealed = [nonce.as_ref().as_slice(), &bytes].concat();
        Ok(format!("{FORM}{}", STANDARD.encode(sealed)))
    }

    /// Opens an entry.
    ///
    /// # Errors
    /// It is no entry, or it does not open with this key under this name.
    pub fn open(&self, name: &str, entry: &str) -> Result<SecretBytes, StoreFault> {
        let text = entry.strip_prefix(FORM);
        let text = text.ok_or(StoreFault::SealedFile("an entry is not of the form `aes256gcm:...`"))?;
        let mut sealed = document::base64(text.as_bytes())
            .map_err(|_| StoreFault::SealedFile("an entry is not base64"))?;
        let (nonce, sealed) = sealed.split_at_mut_checked(NONCE_LEN).ok_or(StoreFault::Unopened)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(|_| StoreFault::Unopened)?;
        let aad = Aad::from(format!("{CONTEXT}{name}"));
        let opened = self.0.open_in_place(nonce, aad, sealed).map_err(|_| StoreFault::Unopened)?;
        Ok(Zeroizing::new(opened.to_vec()))
    }
}

/// The entries of a file.
///
/// # Errors
/// [`StoreFault::SealedFile`].
pub fn entries(text: &[u8]) -> Result<BTreeMap<String, String>, StoreFault> {
    let form = StoreFault::SealedFile("it is not a map of names to sealed values, or has one twice");
    let text = std::str::from_utf8(text).map_err(|_| form.clone())?;
    if text.lines().all(|line| line.trim().is_empty() || line.trim_start().starts_with('#')) {
        return Ok(BTreeMap::new());
    }
    serde_yaml::from_str(text).map_err(|_| form)
}

/// The text of a file with an entry replaced or added; everything else stays as it is, comments included.
#[must_use]
pub fn with_entry(text: &str, name: &str, entry: &str) -> String {
    let line = format!("\"{name}\": {entry}");
    let names = [format!("\"{name}\":"), format!("'{name}':"), format!("{name}:")];
    let is_it = |line: &str| names.iter().any(|name| line.starts_with(name));
    let mut lines: Vec<&str> = text.lines().map(|old| if is_it(old) { line.as_str() } else { old }).collect();
    if !text.lines().any(is_it) {
        lines.push(&line);
    }
    lines.join("\n") + "\n"
}

/// Whether a name can stand in the file and in a reference.
#[must_use]
pub fn is_name(name: &str) -> bool {
    name.starts_with(|c: char| c.is_ascii_alphanumeric())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'/' | b'-'))
}

/// Reads a key by its reference.
///
/// # Errors
/// It cannot be read, or is no key.
pub async fn read_key(reference: &SecretRef, directory: &Path) -> Result<SealKey, StoreFault> {
    SealKey::parse(&OwnSecrets::new(directory).read(reference, ValueRules::HeaderSafe).await?)
}

/// Opens the values of a file.
pub struct SealedStore {
    file: PathBuf,
    key: SecretRef,
    directory: PathBuf,
    files: FileStore,
}

impl SealedStore {
    pub(crate) fn new(config: &SealedConfig, env: &StoreEnv) -> Self {
        Self {
            file: env.directory.join(&config.file),
            key: config.key.clone(),
            directory: env.directory.clone(),
            files: FileStore::new(&env.directory),
        }
    }

    async fn read_now(&self, reference: &SecretRef) -> Result<SecretBytes, SecretError> {
        let fault = |fault: StoreFault| SecretError::store(reference, fault);
        if reference.version().is_some() {
            return Err(fault(StoreFault::Reference("sealed values have no versions")));
        }
        let text = self.files.read_path(self.file.clone(), reference).await;
        let text = text.map_err(|error| match error {
            SecretError::NotFound { .. } => fault(StoreFault::SealedFile("it does not exist")),
            other => other,
        })?;
        let key = read_key(&self.key, &self.directory).await.map_err(fault)?;
        let entries = entries(&text).map_err(fault)?;
        let entry = entries.get(reference.path()).ok_or(StoreFault::NotFound).map_err(fault)?;
        field::select(key.open(reference.path(), entry).map_err(fault)?, reference)
    }
}

impl SecretStore for SealedStore {
    fn read<'a>(&'a self, reference: &'a SecretRef) -> ReadFuture<'a> {
        Box::pin(async move { self.read_now(reference).await.map(Into::into) })
    }

    fn source(&self, _: &SecretRef) -> Source {
        Source::File(self.file.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::secret::fake::store_env;

    fn key(seed: u8) -> SealKey {
        SealKey::parse(&SecretValue::new(STANDARD.encode([seed; KEY_BYTES]).into_bytes()))
            .map_err(|e| e.to_string())
            .unwrap()
    }

    #[test]
    fn what_is_sealed_opens_with_its_key_and_name_alone() {
        let key = key(1);
        for value in [&b"CANARY"[..], b"", b"\0\xff\n", &[b'x'; 70_000]] {
            let entry = key.seal("stripe", value).unwrap();
            assert_eq!(key.open("stripe", &entry).unwrap().as_slice(), value);
            assert!(!entry.contains("CANARY") && !entry.contains(&STANDARD.encode("CANARY")));
            assert_eq!(key.open("other", &entry), Err(StoreFault::Unopened), "swapped names");
            assert_eq!(self::key(2).open("stripe", &entry), Err(StoreFault::Unopened), "another key");
            assert_ne!(entry, key.seal("stripe", value).unwrap(), "a nonce of its own");
        }
        let entry = key.seal("stripe", b"CANARY").unwrap();
        let sealed = STANDARD.decode(&entry[FORM.len()..]).unwrap();
        for position in 0..sealed.len() {
            let mut changed = sealed.clone();
            changed[position] ^= 1;
            let entry = format!("{FORM}{}", STANDARD.encode(changed));
            assert_eq!(key.open("stripe", &entry), Err(StoreFault::Unopened), "byte {position}");
        }
        for (entry, code) in [
            ("CANARY", "sealed_file"),
            ("aes256gcm:CANARY!", "sealed_file"),
            ("aes256gcm:", "sealed_unopened"),
            ("aes256gcm:QUFB", "sealed_unopened"),
        ] {
            let error = key.open("stripe", entry).unwrap_err();
            assert_eq!(error.code(), code, "{entry}");
            assert!(!format!("{error} {error:?}").contains("CANARY"));
        }
    }

    #[test]
    fn keys_are_32_bytes_in_base64() {
        let new = SealKey::generate().unwrap();
        assert!(SealKey::parse(&SecretValue::new(new.as_bytes().to_vec())).is_ok());
        assert_ne!(*new, *SealKey::generate().unwrap());
        for text in ["", "CANARY", &STANDARD.encode([1; 16]), &STANDARD.encode([1; 33])] {
            let error = SealKey::parse(&SecretValue::new(text.as_bytes().to_vec())).map(|_| ()).unwrap_err();
            assert_eq!(error, StoreFault::SealKey, "{text}");
        }
    }

    #[test]
    fn an_entry_is_replaced_in_its_place() {
        let text = "# keys of payments\n\"a\": aes256gcm:old\nb: aes256gcm:b\n";
        assert_eq!(with_entry(text, "a", "new"), "# keys of payments\n\"a\": new\nb: aes256gcm:b\n");
        assert_eq!(with_entry(text, "b", "new"), "# keys of payments\n\"a\": aes256gcm:old\n\"b\": new\n");
        assert_eq!(with_entry("", "c", "new"), "\"c\": new\n");
        let names = |text: &str| entries(text.as_bytes()).map(|entries| entries.len());
        assert_eq!(names(&with_entry(text, "1e5", "aes256gcm:x")), Ok(3));
        assert_eq!((names(""), names("# nothing yet\n\n")), (Ok(0), Ok(0)));
        assert!(names("a: x\na: y\n").is_err() && names("- a\n").is_err() && names("CANARY").is_err());
        for (name, good) in [
            ("a", true),
            ("team/a.b-c_d", true),
            ("1", true),
            ("", false),
            ("a b", false),
            ("a\"", false),
            ("-a", false),
            ("a#b", false),
        ] {
            assert_eq!(is_name(name), good, "{name}");
        }
    }

    #[tokio::test]
    async fn values_are_read_by_reference() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        std::fs::write(at("key"), format!("{}\n", STANDARD.encode([1; KEY_BYTES]))).unwrap();
        std::fs::write(at("wrong"), STANDARD.encode([2; KEY_BYTES])).unwrap();
        let mut text = with_entry("# ours\n", "stripe", &key(1).seal("stripe", b"CANARY").unwrap());
        text = with_entry(&text, "app", &key(1).seal("app", b"{\"db\":{\"password\":\"CANARY\"}}").unwrap());
        text = with_entry(&text, "swapped", &key(1).seal("stripe", b"CANARY").unwrap());
        std::fs::write(at("sealed.yaml"), text).unwrap();
        let table = [
            ("sealed.yaml", "key", "s:stripe", "CANARY"),
            ("sealed.yaml", "key", "s:app#db.password", "CANARY"),
            ("sealed.yaml", "key", "s:swapped", "sealed_unopened"),
            ("sealed.yaml", "key", "s:missing", "not_found"),
            ("sealed.yaml", "key", "s:stripe@2", "bad_reference"),
            ("sealed.yaml", "wrong", "s:stripe", "sealed_unopened"),
            ("sealed.yaml", "sealed.yaml", "s:stripe", "store_credential"),
            ("sealed.yaml", "none", "s:stripe", "store_credential"),
            ("none.yaml", "key", "s:stripe", "sealed_file"),
            ("key", "key", "s:stripe", "sealed_file"),
        ];
        for (file, key, reference, expected) in table {
            let config: SealedConfig =
                serde_yaml::from_str(&format!("file: {file}\nkey: file:{key}")).unwrap();
            let store = SealedStore::new(&config, &store_env(directory.path()));
            let reference: SecretRef = reference.parse().unwrap();
            assert_eq!(store.source(&reference), Source::File(at(file)));
            let got = match store.read(&reference).await {
                Ok(reading) => String::from_utf8(reading.bytes.to_vec()).unwrap(),
                Err(error) => {
                    assert!(!format!("{error} {error:?}").contains("CANARY"), "{error}");
                    error.code().to_owned()
                }
            };
            assert_eq!(got, expected, "{file} {key} {reference}");
        }
    }
}
