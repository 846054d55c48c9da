//! `paddock import`: what is written, what is said, and that the guides tell the same. A stand-in for the user's Python
//! says here what the real one says in the tests of contrib/python.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use snapbox::{Data, assert_data_eq};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn golden() -> PathBuf {
    root().join("tests/golden/import")
}

fn snapshot(name: &str) -> Data {
    Data::read_from(&golden().join(name), None).raw()
}

/// Run where the fixtures are, with nothing in the environment that the importer would read.
fn import(peer: &str, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_paddock"))
        .args(["import", peer])
        .args(arguments)
        .current_dir(golden())
        .env_clear()
        .env("PATH", "/usr/local/bin:/usr/bin:/bin")
        .env("SHOP_SECRET", "hunter2")
        .env("ANSWER", golden().join(format!("answers/{peer}.json")))
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

/// Text, without where this checkout is.
fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap().replace(golden().to_str().unwrap(), "/srv/import")
}

/// A directory of one test's own.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("paddock-import-{name}-{}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn file(&self, name: &str) -> String {
        self.0.join(name).to_str().unwrap().to_owned()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

const CASES: [(&str, &[&str]); 3] = [
    ("gunicorn", &["--python", "./python", "--", "--log-level", "debug", "shop.wsgi:application"]),
    ("uwsgi", &["shop.ini", "--", "--procname=shop"]),
    ("celery", &["--python", "./python", "--app", "shopq"]),
];

#[test]
fn each_peer_becomes_a_commented_file_that_paddock_accepts() {
    let scratch = Scratch::new("accepts");
    for (peer, arguments) in CASES {
        let output = import(peer, arguments);
        assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
        assert_data_eq!(text(&output.stdout), snapshot(&format!("{peer}.toml")));
        assert_data_eq!(text(&output.stderr), snapshot(&format!("{peer}.txt")));
        let file = scratch.file(&format!("{peer}.toml"));
        // Whoever runs the tests may not take another user.
        let own = text(&output.stdout).lines().filter(|line| !is_account(line)).collect::<Vec<_>>().join("\n");
        fs::write(&file, own).unwrap();
        let checked =
            Command::new(env!("CARGO_BIN_EXE_paddock")).args(["check", "--no-start", &file]).output().unwrap();
        assert_eq!(checked.status.code(), Some(0), "{}", text(&checked.stderr));
    }
}

fn is_account(line: &str) -> bool {
    ["user =", "group =", "socket_user =", "socket_group ="].iter().any(|key| line.starts_with(key))
}

#[test]
fn no_secret_is_copied_into_a_comment() {
    for (peer, arguments) in CASES {
        let output = import(peer, arguments);
        let commented = text(&output.stdout).lines().filter(|line| line.starts_with('#')).collect::<String>();
        assert!(!commented.contains("hunter2"), "{peer}: {commented}");
        assert!(!text(&output.stderr).contains("hunter2"), "{peer}");
    }
}

#[test]
fn a_file_that_is_there_is_replaced_only_by_force() {
    let scratch = Scratch::new("force");
    let file = scratch.file("shop.toml");
    let write = |force: &[&str]| import("uwsgi", &[&["shop.ini", "--output", &file], force].concat());
    assert_eq!(write(&[]).status.code(), Some(0));
    let first = fs::read_to_string(&file).unwrap();
    assert!(first.contains("drain_signal = \"HUP\""));
    fs::write(&file, "mine").unwrap();
    let refused = write(&[]);
    assert_eq!(refused.status.code(), Some(1));
    assert!(text(&refused.stderr).contains("is there already: --force replaces it"), "{}", text(&refused.stderr));
    assert_eq!(fs::read_to_string(&file).unwrap(), "mine");
    assert_eq!(write(&["--force"]).status.code(), Some(0));
    assert_eq!(fs::read_to_string(&file).unwrap(), first);
    let left: Vec<_> = fs::read_dir(&scratch.0).unwrap().collect();
    assert_eq!(left.len(), 1, "{left:?}");
    std::os::unix::fs::symlink("/nonexistent/target", scratch.file("link")).unwrap();
    assert_eq!(import("uwsgi", &["shop.ini", "-o", &scratch.file("link")]).status.code(), Some(1));
}

#[test]
fn what_cannot_be_imported_says_why() {
    let scratch = Scratch::new("wrong");
    let bare = scratch.file("bare.ini");
    fs::write(&bare, "processes = 4\n").unwrap();
    let circle = scratch.file("circle.ini");
    fs::write(&circle, "[uwsgi]\na = %(b)\nb = %(a)\n").unwrap();
    let binary = scratch.file("binary.ini");
    fs::write(&binary, b"[uwsgi]\nx = \xff\n").unwrap();
    let cases: &[(i32, &str, &[&str], &str)] = &[
        (1, "gunicorn", &["--python", "/nonexistent/python"], "/nonexistent/python: No such file"),
        (2, "gunicorn", &["--python", "/bin/false"], "/bin/false failed (exit status: 1)"),
        (1, "gunicorn", &["--python", "/bin/echo"], "/bin/echo: its answer cannot be read"),
        (2, "celery", &[], "what is to be imported?"),
        (2, "gunicorn", &["--app", "shop"], "--app is Celery's"),
        (2, "uwsgi", &[], "what is to be imported?"),
        (1, "uwsgi", &["/nonexistent.ini"], "/nonexistent.ini: No such file"),
        (1, "uwsgi", &["/dev/zero"], "/dev/zero: not a file"),
        (1, "uwsgi", &[&binary], "stream did not contain valid UTF-8"),
        (2, "uwsgi", &[&bare], "has no section [uwsgi]"),
        (2, "uwsgi", &[&circle], "leads back to itself"),
        (2, "uwsgi", &["--", "--no-such"], "uWSGI has no option --no-such"),
        (2, "uwsgi", &["shop.ini", "--config", "shop.ini"], "cannot be used with"),
        (2, "uwsgi", &["shop.ini", "--force"], "--output"),
        (1, "uwsgi", &["shop.ini", "--output", "/nonexistent/shop.toml"], "/nonexistent/shop.toml: No such file"),
    ];
    for (code, peer, arguments, expected) in cases {
        let output = import(peer, arguments);
        let told = text(&output.stderr);
        assert_eq!(output.status.code(), Some(*code), "{arguments:?}: {told}");
        assert!(told.contains(expected), "{arguments:?}: {told}");
        assert_eq!(text(&output.stdout), "", "{arguments:?}");
    }
}

#[test]
fn a_python_without_the_peer_is_told_apart_from_a_broken_configuration() {
    for peer in ["gunicorn", "celery"] {
        let output = import(peer, &["--python", "./isolated-python", "x.py"]);
        let told = text(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{told}");
        assert!(told.contains(&format!("{peer} is not installed in ")) && told.contains("--python"), "{told}");
    }
}

#[test]
fn the_guides_tell_the_same_tables() {
    for peer in ["gunicorn", "uwsgi", "celery"] {
        let output = import(peer, &["--list"]);
        assert_eq!(output.status.code(), Some(0));
        let name = format!("docs/migrating-from-{peer}.md");
        let guide = fs::read_to_string(root().join(&name)).unwrap();
        let begin = format!("<!-- what `paddock import {peer} --list` prints -->\n\n");
        let (_, table) = guide.split_once(&begin).unwrap();
        // To bring it up to date, put there what the command prints.
        assert_data_eq!(text(&output.stdout), table.to_owned());
    }
}
