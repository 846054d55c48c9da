//! Reading the file itself.

use std::fs::{File, Metadata, OpenOptions};
use std::io::Read as _;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;

use super::diagnostic::{Diagnostic, Origin, Source};

/// The longest file that is read, in bytes.
pub(super) const LONGEST: u64 = 1 << 20;

/// A file's text. The path is opened once, and what is checked is what is read. `manager`: the user that would be
/// ruled by what the file says, if any.
pub(super) fn read(path: &Path, manager: Option<u32>) -> Result<Source, Box<(Source, Diagnostic)>> {
    let empty = || Source { path: path.display().to_string(), text: String::new() };
    match read_bytes(path, manager) {
        Err(diagnostic) => Err(Box::new((empty(), *diagnostic))),
        Ok(bytes) => match String::from_utf8(bytes) {
            Ok(text) => Ok(Source { text, ..empty() }),
            Err(error) => {
                let good = error.utf8_error().valid_up_to();
                let text = String::from_utf8_lossy(error.as_bytes()).into_owned();
                let span = good..good + '\u{fffd}'.len_utf8();
                let diagnostic =
                    Diagnostic::text(Origin::File(span), "", "not UTF-8 here").remedy("save the file as UTF-8");
                Err(Box::new((Source { text, ..empty() }, diagnostic)))
            }
        },
    }
}

fn read_bytes(path: &Path, manager: Option<u32>) -> Result<Vec<u8>, Box<Diagnostic>> {
    let machine = |message: String| Box::new(Diagnostic::machine(Origin::Whole, "", message));
    let failed = |error: std::io::Error| machine(format!("cannot be read: {error}"));
    // Without O_NONBLOCK a FIFO would hold us until somebody writes.
    let file = OpenOptions::new()
        .read(true)
        .custom_flags(nix::libc::O_NONBLOCK | nix::libc::O_CLOEXEC | nix::libc::O_NOCTTY)
        .open(path)
        .map_err(failed)?;
    let metadata = file.metadata().map_err(failed)?;
    if !metadata.is_file() {
        return Err(machine("not a regular file".to_owned()));
    }
    if manager == Some(0) {
        trust(path, &metadata)?;
    }
    let mut bytes = Vec::new();
    let mut bounded: std::io::Take<File> = file.take(LONGEST + 1);
    bounded.read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > LONGEST {
        return Err(machine(format!("longer than {LONGEST} bytes")));
    }
    Ok(bytes)
}

/// Whoever writes the file of a root manager is root: refuse one that others can write, or replace.
fn trust(path: &Path, metadata: &Metadata) -> Result<(), Box<Diagnostic>> {
    let refuse = |what: String, remedy: String| {
        let fault = Diagnostic::machine(Origin::Whole, "", what);
        Err(Box::new(fault.remedy(remedy)))
    };
    if let Some(who) = foreign_writers(metadata) {
        return refuse(
            format!("{who} can write it, and the manager is root"),
            format!("chmod go-w {}", path.display()),
        );
    }
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let Ok(above) = std::fs::metadata(directory) else {
        return Ok(());
    };
    let is_sticky = above.mode() & 0o1000 != 0;
    match foreign_writers(&above) {
        Some(who) if !is_sticky => refuse(
            format!("{who} can replace it, for they can write its directory, and the manager is root"),
            format!("chmod go-w {}", directory.display()),
        ),
        _ => Ok(()),
    }
}

/// Who besides the owner may write; root's group counts as root.
fn foreign_writers(metadata: &Metadata) -> Option<&'static str> {
    if metadata.mode() & 0o002 != 0 {
        Some("everybody")
    } else if metadata.mode() & 0o020 != 0 && metadata.gid() != 0 {
        Some("its group")
    } else {
        None
    }
}
