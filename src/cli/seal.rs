//! `outgate seal`: writes an entry of a file of sealed values (the store `sealed`). The value comes from standard input and
//! never from an argument, which other processes could see.

use std::io::{IsTerminal, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use rustix::termios::{LocalModes, OptionalActions, Termios, tcgetattr, tcsetattr};
use zeroize::Zeroizing;

use super::{fail, print};
use crate::secret::SecretRef;
use crate::secret::stores::sealed::{SealKey, entries, is_name, read_key, with_entry};

/// Bytes that a value may have.
const MAX_VALUE: usize = 256 * 1024;

/// Arguments of `seal`.
#[derive(clap::Args)]
pub struct Arguments {
    /// The file of sealed values; made if it is not there.
    #[arg(long, value_name = "FILE", required_unless_present = "new_key")]
    store: Option<PathBuf>,
    /// The key: `env:NAME` or `file:/path`.
    #[arg(long, value_name = "REF", required_unless_present = "new_key")]
    key: Option<String>,
    /// The entry's name; a reference is then `<store>:<name>`. The value is read from standard input.
    #[arg(value_name = "NAME", required_unless_present = "new_key")]
    name: Option<String>,
    /// Print a new key, and do nothing else.
    #[arg(long, conflicts_with_all = ["store", "key", "name"])]
    new_key: bool,
}

/// Seals a value, or makes a key.
pub fn run(arguments: &Arguments) -> ExitCode {
    let Arguments { store: Some(store), key: Some(key), name: Some(name), .. } = arguments else {
        return match SealKey::generate() {
            Ok(key) => print(&Zeroizing::new(format!("{}\n", *key))),
            Err(_) => fail("the system gives no randomness"),
        };
    };
    match seal(store, key, name) {
        Ok(replaced) => {
            let what = if replaced { "replaced" } else { "added" };
            let _ = writeln!(std::io::stderr(), "`{name}` {what} in {}", store.display());
            ExitCode::SUCCESS
        }
        Err(message) => fail(message),
    }
}

/// Whether an entry was replaced.
fn seal(store: &Path, key: &str, name: &str) -> Result<bool, String> {
    if !is_name(name) {
        return Err(
            "a name is letters, digits, `.`, `_`, `/` and `-`, and starts with a letter or digit".to_owned()
        );
    }
    let key = load_key(key)?;
    let text = match std::fs::read_to_string(store) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
        Err(error) => return Err(format!("{}: {error}", store.display())),
    };
    let present = entries(text.as_bytes()).map_err(|fault| format!("{}: {fault}", store.display()))?;
    // With two keys in one file, half of it would not open.
    if !present.is_empty() && !present.iter().any(|(name, entry)| key.open(name, entry).is_ok()) {
        return Err(format!("the key opens none of the entries of {}", store.display()));
    }
    let value = read_value()?;
    let entry = key.seal(name, &value).map_err(|_| "the system gives no randomness".to_owned())?;
    replace(store, &with_entry(&text, name, &entry))
        .map_err(|error| format!("{}: {error}", store.display()))?;
    Ok(present.contains_key(name))
}

fn load_key(reference: &str) -> Result<SealKey, String> {
    let reference: SecretRef = reference.parse().map_err(|error| format!("--key: {error}"))?;
    let runtime = tokio::runtime::Builder::new_current_thread().build().map_err(|error| error.to_string())?;
    let key = runtime.block_on(read_key(&reference, Path::new(".")));
    key.map_err(|fault| format!("--key: {fault}"))
}

/// The value without one line end at its end.
fn read_value() -> Result<Zeroizing<Vec<u8>>, String> {
    let stdin = std::io::stdin();
    let _quiet = stdin.is_terminal().then(Quiet::begin).flatten();
    if stdin.is_terminal() {
        let _ = writeln!(std::io::stderr(), "The value, then Enter and Ctrl-D (it is not shown):");
    }
    let mut buffer = Zeroizing::new(vec![0; MAX_VALUE + 1]);
    let mut filled = 0;
    while filled < buffer.len() {
        match stdin.lock().read(&mut buffer[filled..]) {
            Ok(0) => break,
            Ok(more) => filled += more,
            Err(error) => return Err(format!("standard input: {error}")),
        }
    }
    if filled > MAX_VALUE {
        return Err(format!("the value is larger than {MAX_VALUE} bytes"));
    }
    buffer.truncate(filled);
    for end in [&b"\n"[..], b"\r"] {
        if buffer.ends_with(end) {
            buffer.pop();
        } else {
            break;
        }
    }
    if buffer.iter().all(u8::is_ascii_whitespace) {
        return Err("the value on standard input is empty or blank".to_owned());
    }
    Ok(buffer)
}

/// A terminal that shows nothing of what is typed.
struct Quiet(Termios);

impl Quiet {
    fn begin() -> Option<Self> {
        let before = tcgetattr(std::io::stdin()).ok()?;
        let mut quiet = before.clone();
        quiet.local_modes.remove(LocalModes::ECHO);
        tcsetattr(std::io::stdin(), OptionalActions::Flush, &quiet).ok()?;
        Some(Self(before))
    }
}

impl Drop for Quiet {
    fn drop(&mut self) {
        let _ = tcsetattr(std::io::stdin(), OptionalActions::Flush, &self.0);
    }
}

/// Writes beside the file and renames, so that a running outgate reads the old text or the new one, never half of it.
fn replace(path: &Path, text: &str) -> std::io::Result<()> {
    let mode = std::fs::metadata(path).map_or(0o600, |metadata| metadata.permissions().mode() & 0o777);
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".{}", std::process::id()));
    let beside = path.with_file_name(name);
    let written = (|| {
        let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(&beside)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        std::fs::rename(&beside, path)
    })();
    if written.is_err() {
        let _ = std::fs::remove_file(&beside);
    }
    written
}
