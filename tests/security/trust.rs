//! A root manager trusts root's files alone.

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt as _, chown, lchown, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use crate::as_root;
use crate::support::manager::{Dir, install, paddock, run_within};
use crate::support::suite::Suite;

/// Neither root nor its group.
const STRANGER: u32 = 12_345;

pub(crate) fn register(suite: &mut Suite) {
    as_root(suite, "root_refuses_a_configuration_that_others_can_write_or_replace", configuration);
    as_root(suite, "root_refuses_a_program_that_others_can_write", program);
    as_root(suite, "root_refuses_a_runtime_directory_that_others_can_exchange", runtime_directory);
}

fn chmod(path: &Path, mode: u32) {
    fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
}

/// Root's files, all as they should be.
struct Case {
    /// Keeps them.
    _dir: Dir,
    program: PathBuf,
    file: PathBuf,
    runtime: PathBuf,
}

impl Case {
    fn new() -> Self {
        let dir = Dir::create();
        let way = dir.path().join("way");
        fs::create_dir(&way).unwrap();
        chmod(&way, 0o755);
        let (program, file) = (way.join("paddock"), way.join("shop.toml"));
        install(&paddock(), &program);
        // It ends at once, so that a manager that accepts the files ends too.
        fs::write(&file, "command = [\"/bin/false\"]\nready = \"settle\"\nisolation = \"none\"\n").unwrap();
        chmod(&file, 0o644);
        Self { program, file, runtime: dir.path().join("run"), _dir: dir }
    }

    /// What it says when it is started from there, and its exit code.
    fn run(&self) -> (i32, String) {
        let mut command = Command::new(&self.program);
        command.arg("run").arg(&self.file).arg("--runtime-directory").arg(&self.runtime);
        let output = run_within(Duration::from_secs(30), command.env_remove("NOTIFY_SOCKET"));
        (output.status.code().expect("an exit code"), String::from_utf8_lossy(&output.stderr).into_owned())
    }

    #[track_caller]
    fn refuses(&self, words: &str, remedy: &str) {
        let (code, said) = self.run();
        assert!(code == 1 && said.contains(words) && said.contains(remedy), "{code}: {said}");
        assert!(!said.contains("exit 1"), "a worker was started: {said}");
    }

    #[track_caller]
    fn accepts(&self) {
        let (_, said) = self.run();
        assert!(said.contains("exit 1"), "no worker was started: {said}");
    }
}

fn configuration() {
    let case = Case::new();
    case.accepts();
    let file = case.file.display();
    chmod(&case.file, 0o646);
    case.refuses("everybody can write it", &format!("chmod go-w {file}"));
    chmod(&case.file, 0o664);
    chown(&case.file, None, Some(STRANGER)).unwrap();
    case.refuses("its group can write it", &format!("chmod go-w {file}"));
    chmod(&case.file, 0o644);
    chown(&case.file, Some(STRANGER), None).unwrap();
    case.refuses(&format!("user {STRANGER} can write it"), &format!("chown root {file}"));
}

fn program() {
    let case = Case::new();
    let program = case.program.display();
    chmod(&case.program, 0o757);
    case.refuses("everybody can write this program", &format!("chmod go-w {program}"));
    chmod(&case.program, 0o755);
    chown(&case.program, Some(STRANGER), None).unwrap();
    case.refuses(&format!("user {STRANGER} can write this program"), &format!("chown root {program}"));
    chown(&case.program, Some(0), None).unwrap();
    case.accepts();
}

fn runtime_directory() {
    let mut case = Case::new();
    let parent = case.runtime.with_file_name("parent");
    fs::create_dir(&parent).unwrap();
    case.runtime = parent.join("middle/run");
    let name = parent.display().to_string();
    chown(&parent, None, Some(STRANGER)).unwrap();
    chmod(&parent, 0o775);
    case.refuses(&format!("{name}: its group may rename what is in it"), &format!("chmod go-w {name}"));
    assert!(!parent.join("middle").exists(), "something was made there");
    chmod(&parent, 0o1777);
    case.accepts();
    chown(&parent, Some(STRANGER), None).unwrap();
    case.refuses(&format!("{name}: user {STRANGER} may rename what is in it"), &format!("chown root {name}"));
    // By way of a link that another user can take away.
    let link = parent.with_file_name("link");
    chown(&parent, Some(0), None).unwrap();
    symlink(&parent, &link).unwrap();
    case.runtime = link.join("middle/run");
    case.accepts();
    lchown(&link, Some(STRANGER), None).unwrap();
    case.refuses(&format!("{}: user {STRANGER} may rename", link.display()), "chown root");
}
