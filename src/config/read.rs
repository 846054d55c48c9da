//! Reading the file itself.

use std::fs::{File, OpenOptions};
use std::io::Read as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use super::diagnostic::{Diagnostic, Origin, Source};
use crate::trust;

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
        trust(path, &file)?;
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
fn trust(path: &Path, file: &File) -> Result<(), Box<Diagnostic>> {
    let refuse = |what: String, remedy: String| {
        let fault = Diagnostic::machine(Origin::Whole, "", what);
        Err(Box::new(fault.remedy(remedy)))
    };
    let failed =
        |error: std::io::Error| Box::new(Diagnostic::machine(Origin::Whole, "", format!("cannot be read: {error}")));
    let status = rustix::fs::fstat(file).map_err(|errno| failed(errno.into()))?;
    if let Some(who) = trust::writer(&status, 0) {
        return refuse(format!("{who} can write it, and the manager is root"), who.remedy(path, 0));
    }
    if let Some(trust::Fault { who, path }) = trust::exchanger(path, 0).map_err(failed)? {
        let remedy = who.remedy(&path, 0);
        let path = path.display();
        return refuse(format!("{who} can replace it, for they can write {path}, and the manager is root"), remedy);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::PermissionsExt as _;
    use std::path::PathBuf;

    use rustix::fs::{CWD, FileType, Mode, mknodat};

    /// A directory of its own, removed afterwards.
    struct Scratch(PathBuf);

    impl Scratch {
        fn new(name: &str) -> Self {
            let directory = std::env::temp_dir().join(format!("paddock-read-{name}-{}", std::process::id()));
            fs::create_dir_all(&directory).unwrap();
            chmod(&directory, 0o755);
            Self(directory)
        }

        fn file(&self, bytes: &[u8]) -> PathBuf {
            let path = self.0.join("app.toml");
            fs::write(&path, bytes).unwrap();
            chmod(&path, 0o644);
            path
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn chmod(path: &Path, mode: u32) {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }

    /// What is wrong, if anything.
    fn refusal(path: &Path, manager: u32) -> Option<String> {
        read(path, Some(manager)).err().map(|failure| failure.1.message)
    }

    #[test]
    fn a_file_that_others_can_write_or_replace_is_nothing_for_root() {
        let scratch = Scratch::new("trust");
        let path = scratch.file(b"workers = 1\n");
        assert_eq!(refusal(&path, 0), None);
        chmod(&path, 0o646);
        assert_eq!(refusal(&path, 0).as_deref(), Some("everybody can write it, and the manager is root"));
        assert_eq!(refusal(&path, 1000), None);
        chmod(&path, 0o644);
        chmod(&scratch.0, 0o777);
        let directory = scratch.0.display();
        let replaced = format!("everybody can replace it, for they can write {directory}, and the manager is root");
        assert_eq!(refusal(&path, 0), Some(replaced.clone()));
        let link = Scratch::new("trust-link");
        let linked = link.0.join("link.toml");
        std::os::unix::fs::symlink(&path, &linked).unwrap();
        assert_eq!(refusal(&linked, 0), Some(replaced));
        chmod(&scratch.0, 0o1777);
        assert_eq!(refusal(&path, 0), None);
        assert_eq!(refusal(&linked, 0), None);
    }

    #[test]
    fn a_file_or_directory_of_another_user_is_nothing_for_root() {
        if !rustix::process::geteuid().is_root() {
            return;
        }
        let scratch = Scratch::new("owner");
        let path = scratch.file(b"workers = 1\n");
        std::os::unix::fs::chown(&path, Some(12_345), None).unwrap();
        let failure = read(&path, Some(0)).unwrap_err().1;
        assert_eq!(failure.message, "user 12345 can write it, and the manager is root");
        assert_eq!(failure.remedy, Some(format!("chown root {}", path.display())));
        std::os::unix::fs::chown(&path, Some(0), None).unwrap();
        std::os::unix::fs::chown(&scratch.0, Some(12_345), None).unwrap();
        let failure = read(&path, Some(0)).unwrap_err().1;
        assert!(failure.message.starts_with("user 12345 can replace it"), "{}", failure.message);
        assert_eq!(failure.remedy, Some(format!("chown root {}", scratch.0.display())));
        assert_eq!(refusal(&path, 12_345), None);
    }

    #[test]
    fn what_is_no_file_of_a_reasonable_length_is_refused_at_once() {
        let scratch = Scratch::new("kinds");
        let path = scratch.0.join("app.toml");
        assert!(refusal(&path, 1000).unwrap().contains("No such file"));
        assert_eq!(refusal(&scratch.0, 1000).as_deref(), Some("not a regular file"));
        mknodat(CWD, &path, FileType::Fifo, Mode::from_raw_mode(0o600), 0).unwrap();
        assert_eq!(refusal(&path, 1000).as_deref(), Some("not a regular file"));
        fs::remove_file(&path).unwrap();
        let longest = usize::try_from(LONGEST).unwrap();
        assert_eq!(refusal(&scratch.file(&vec![b'\n'; longest]), 1000), None);
        let message = format!("longer than {LONGEST} bytes");
        assert_eq!(refusal(&scratch.file(&vec![b'\n'; longest + 1]), 1000), Some(message));
    }

    #[test]
    fn text_that_is_not_utf_8_is_shown_where_it_begins_to_be_wrong() {
        let scratch = Scratch::new("utf8");
        let failure = read(&scratch.file(b"name = \"\xc3\xa4\"\nuser = \"\xff\"\n"), Some(1000)).unwrap_err();
        let (source, diagnostic) = *failure;
        let Origin::File(span) = diagnostic.origin else { panic!("no place") };
        assert_eq!(source.position(span.start), (2, 9));
        assert_eq!(diagnostic.message, "not UTF-8 here");
    }
}
