//! What the command line prints: help, errors, shown values, completions and manual pages.
#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use paddock::cli::Shell;
use paddock::command::{completions, man};
use snapbox::{Data, assert_data_eq};

/// The golden configurations at their relative paths, as files of our own: root's manager takes nobody else's, and whose
/// the checkout is does not matter here.
struct Configurations(PathBuf);

impl Configurations {
    fn new(test: &str) -> Self {
        let directory = std::env::temp_dir().join(format!("paddock-golden-{test}-{}", std::process::id()));
        let to = directory.join("tests/golden/config");
        fs::create_dir_all(&to).unwrap();
        for entry in fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/config")).unwrap() {
            let from = entry.unwrap().path();
            fs::write(to.join(from.file_name().unwrap()), fs::read(&from).unwrap()).unwrap();
        }
        Self(directory)
    }
}

impl Drop for Configurations {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn paddock(arguments: &[&str]) -> Output {
    paddock_in(Path::new(env!("CARGO_MANIFEST_DIR")), arguments)
}

fn paddock_in(directory: &Path, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_paddock"))
        .args(arguments)
        .current_dir(directory)
        .env_remove("COLUMNS")
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

fn golden(name: &str) -> Data {
    Data::read_from(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name), None).raw()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

const COMMANDS: &[&str] = &[
    "run",
    "check",
    "show-config",
    "status",
    "reload",
    "recycle",
    "scale",
    "signal",
    "stop",
    "reap",
    "import",
    "completions",
    "man",
];

#[test]
fn help_teaches() {
    let output = paddock(&["--help"]);
    assert_eq!(output.status.code(), Some(0));
    assert_data_eq!(text(&output.stdout), golden("help/paddock.txt"));
    for command in COMMANDS {
        let output = paddock(&[command, "-h"]);
        assert_eq!(output.status.code(), Some(0), "{command}");
        assert_data_eq!(text(&output.stdout), golden(&format!("help/{command}.txt")));
    }
}

#[test]
fn all_that_is_wrong_in_a_file_is_shown_with_its_line() {
    let configurations = Configurations::new("wrong");
    for name in ["wrong", "combination", "syntax"] {
        let file = format!("tests/golden/config/{name}.toml");
        let output = paddock_in(&configurations.0, &["show-config", &file]);
        assert_eq!(output.status.code(), Some(2), "{name}");
        assert_eq!(text(&output.stdout), "");
        assert_data_eq!(text(&output.stderr), golden(&format!("config/{name}.txt")));
    }
}

#[test]
fn values_are_shown_with_where_they_come_from() {
    let flags = ["--surge", "0", "--no-spread", "-e", "DEBUG=1", "--timeout-graceful=2min", "--limits-tasks-max", "99"];
    let arguments = [&["show-config", "tests/golden/config/full.toml"], flags.as_slice()].concat();
    let configurations = Configurations::new("full");
    let output = paddock_in(&configurations.0, &arguments);
    assert_eq!(output.status.code(), Some(0), "{}", text(&output.stderr));
    assert_data_eq!(text(&output.stdout), golden("config/full.txt"));
    let output = paddock_in(&configurations.0, &[arguments.as_slice(), &["--json"]].concat());
    assert_data_eq!(text(&output.stdout), golden("config/full.json"));
}

#[test]
fn exit_codes_tell_wrong_text_from_a_missing_file() {
    let cases: &[(i32, &[&str])] = &[
        (1, &["show-config", "/nonexistent/app.toml"]),
        (1, &["check", "--no-start", "/nonexistent/app.toml"]),
        (1, &["run", "/nonexistent/app.toml"]),
        (2, &["check", "--no-start", "tests/golden/config/wrong.toml"]),
        (2, &["run", "tests/golden/config/wrong.toml"]),
        (2, &["run", "--no-such-flag"]),
        (2, &["run"]),
        (2, &["run", "--workers"]),
        (2, &["run", "--", ""]),
        (2, &["no-such-command"]),
        (2, &[]),
        (2, &["scale", "shop", "0"]),
        (2, &["scale", "shop", "-1"]),
        (2, &["scale", "shop", "many"]),
        (2, &["recycle", "shop"]),
        (2, &["signal", "shop", "TERMINATE"]),
        (2, &["man", "no-such-page"]),
        (0, &["check", "--no-start", "tests/golden/config/full.toml"]),
        (0, &["--version"]),
    ];
    let configurations = Configurations::new("codes");
    for (code, arguments) in cases {
        let output = paddock_in(&configurations.0, arguments);
        assert_eq!(output.status.code(), Some(*code), "{arguments:?}: {}", text(&output.stderr));
        assert_eq!(output.stderr.is_empty(), *code == 0 && !is_root_warning(&output), "{arguments:?}");
    }
}

/// Root without `user` is warned.
fn is_root_warning(output: &Output) -> bool {
    text(&output.stderr).contains("user: not set, and the manager is root")
}

#[test]
fn a_fault_in_the_environment_file_is_shown_in_that_file() {
    let directory = std::env::temp_dir().join(format!("paddock-command-line-{}", std::process::id()));
    fs::create_dir_all(&directory).unwrap();
    let variables = directory.join("shop.env");
    fs::write(&variables, "A=1\nexport B=2\nC=\"open\n").unwrap();
    let template = include_str!("golden/config/variables.toml");
    let file = directory.join("app.toml");
    fs::write(&file, template.replace("ENVIRONMENT_FILE", variables.to_str().unwrap())).unwrap();
    let output = paddock(&["show-config", file.to_str().unwrap()]);
    fs::remove_dir_all(&directory).unwrap();
    assert_eq!(output.status.code(), Some(2));
    let shown = text(&output.stderr).replace(directory.to_str().unwrap(), "DIRECTORY");
    assert_data_eq!(shown, golden("config/variables.txt"));
}

#[test]
fn the_manual_pages_in_the_tree_are_current() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/man");
    let pages = man::pages().unwrap();
    for page in &pages {
        let committed = Data::read_from(&directory.join(page.file_name()), None).raw();
        assert_data_eq!(text(&page.text), committed);
    }
    let mut expected: Vec<String> = pages.iter().map(man::Page::file_name).collect();
    let mut found: Vec<String> =
        fs::read_dir(&directory).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    expected.sort();
    found.sort();
    assert_eq!(found, expected);
}

#[test]
fn completions_know_every_flag_and_parse() {
    for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
        let script = text(&completions::script(shell));
        for word in ["memory-max", "no-spread", "limit-nofile", "runtime-directory", "show-config"] {
            assert!(script.contains(word), "{shell:?}: {word}");
        }
        assert!(!script.contains("gate"), "{shell:?}");
    }
    let mut bash = Command::new("bash").arg("-n").stdin(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    bash.stdin.take().unwrap().write_all(&completions::script(Shell::Bash)).unwrap();
    let output = bash.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
}
