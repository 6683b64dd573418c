//! `outgate inject`: the sidecar in the pods of manifests, without a cluster.

use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use super::{fail, print};
use crate::injector::manifest::inject_text;
use crate::injector::template::Template;

/// Bytes of manifests that are read.
const MAX_INPUT: u64 = 64 * 1024 * 1024;

/// Arguments of `inject`.
#[derive(clap::Args)]
pub struct Arguments {
    /// Manifests: YAML, with as many documents as you like; `-` is standard input.
    #[arg(short, long, value_name = "FILE")]
    file: PathBuf,
    /// What is added: the document that the chart renders into the injector's ConfigMap. Default: the library's, with its default
    /// values, for the image of this release.
    #[arg(long, value_name = "FILE", env = "OUTGATE_TEMPLATE")]
    template: Option<PathBuf>,
    /// Where the result goes; `-` is standard output. Nothing is written where a document was refused.
    #[arg(short, long, value_name = "FILE", default_value = "-")]
    output: PathBuf,
}

/// Injects all documents, or none.
pub fn run(arguments: &Arguments) -> ExitCode {
    match inject(arguments) {
        Ok(code) => code,
        Err(message) => fail(message),
    }
}

fn inject(arguments: &Arguments) -> Result<ExitCode, String> {
    let template = template(arguments.template.as_deref())?;
    let input = read(&arguments.file).map_err(|error| format!("{}: {error}", arguments.file.display()))?;
    let injected = inject_text(&input, &template).map_err(|mistakes| mistakes.0.join("\noutgate: "))?;
    for warning in &injected.warnings {
        let _ = writeln!(std::io::stderr(), "outgate: warning: {warning}");
    }
    if injected.pods == 0 {
        let _ = writeln!(std::io::stderr(), "outgate: warning: there is no pod to inject");
    }
    if is_standard(&arguments.output) {
        return Ok(print(&injected.text));
    }
    write(&arguments.output, &injected.text)
        .map_err(|error| format!("{}: {error}", arguments.output.display()))?;
    Ok(ExitCode::SUCCESS)
}

/// Beside the file, and renamed over it: it may be the input, and a full disk would leave half of it. What is no file, or a link, is
/// written through.
fn write(path: &Path, text: &str) -> std::io::Result<()> {
    let there = std::fs::symlink_metadata(path).ok();
    if there.as_ref().is_some_and(|there| !there.is_file()) {
        return std::fs::write(path, text);
    }
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(format!(".outgate-{}", std::process::id()));
    let beside = path.with_file_name(name);
    let written = std::fs::write(&beside, text)
        .and_then(|()| there.map_or(Ok(()), |there| std::fs::set_permissions(&beside, there.permissions())))
        .and_then(|()| std::fs::rename(&beside, path));
    if written.is_err() {
        let _ = std::fs::remove_file(&beside);
    }
    written
}

/// The template of a file, or the library's.
fn template(path: Option<&Path>) -> Result<Template, String> {
    let Some(path) = path else { return Template::embedded().map_err(|error| error.to_string()) };
    let text = std::fs::read_to_string(path).map_err(|error| format!("{}: {error}", path.display()))?;
    Template::parse(&text).map_err(|error| format!("{}: {error}", path.display()))
}

fn is_standard(path: &Path) -> bool {
    path.as_os_str() == "-"
}

fn read(path: &Path) -> std::io::Result<String> {
    let mut text = String::new();
    let taken = if is_standard(path) {
        std::io::stdin().take(MAX_INPUT + 1).read_to_string(&mut text)?
    } else {
        std::fs::File::open(path)?.take(MAX_INPUT + 1).read_to_string(&mut text)?
    };
    if u64::try_from(taken).is_ok_and(|taken| taken > MAX_INPUT) {
        return Err(std::io::Error::other("more than 64 MiB of manifests"));
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};

    use super::*;

    #[test]
    fn a_file_is_replaced_whole_and_a_link_is_followed() {
        let folder = tempfile::tempdir().unwrap();
        let (file, link) = (folder.path().join("a.yaml"), folder.path().join("link"));
        std::fs::write(&file, "old").unwrap();
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
        let before = std::fs::metadata(&file).unwrap().ino();
        write(&file, "new").unwrap();
        let after = std::fs::metadata(&file).unwrap();
        assert_ne!(after.ino(), before);
        assert_eq!(after.mode() & 0o777, 0o600);
        std::os::unix::fs::symlink(&file, &link).unwrap();
        write(&link, "newer").unwrap();
        assert!(std::fs::symlink_metadata(&link).unwrap().is_symlink());
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "newer");
        assert!(write(&folder.path().join("none/b.yaml"), "x").is_err());
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 2, "nothing is left beside");
    }
}
