//! Whole configurations, right and wrong.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::time::Duration;

use super::model::*;
use super::*;

/// Somebody who is not root.
fn somebody() -> Runner {
    Runner { uid: 1000, user: Some("ann".to_owned()), gid: 100, group: Some("users".to_owned()) }
}

/// A file of its own for a test, removed afterwards.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str, text: &str) -> Self {
        let directory = std::env::temp_dir().join(format!("paddock-config-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        std::fs::write(directory.join("app.toml"), text).unwrap();
        Self(directory)
    }

    fn load(&self, flags: &[(Key, &[&str])]) -> Result<Loaded, Diagnostics> {
        load(&Invocation { file: Some(self.0.join("app.toml")), flags: given(flags), runner: somebody() })
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn given(flags: &[(Key, &[&str])]) -> Flags {
    flags.iter().map(|(key, texts)| (*key, texts.iter().map(|text| (*text).to_owned()).collect())).collect()
}

pub(super) fn load_flags(flags: &[(Key, &[&str])]) -> Result<Loaded, Diagnostics> {
    load(&Invocation { file: None, flags: given(flags), runner: somebody() })
}

#[test]
fn a_command_is_enough_and_the_rest_is_default() {
    let config = load_flags(&[(Key::Command, &["/usr/bin/gunicorn", "x"])]).unwrap().config;
    let expected = Config {
        name: "gunicorn".to_owned(),
        command: vec!["/usr/bin/gunicorn".to_owned(), "x".to_owned()],
        workers: Workers::Count(1),
        ready: Ready::Notify,
        drain_signal: Signal(15),
        isolation: IsolationChoice::Auto,
        working_directory: None,
        user: None,
        group: None,
        umask: 0o022,
        environment: BTreeMap::new(),
        environment_file: None,
        inherit_environment: true,
        listen: Listen { bind: vec![], backlog: 2048, socket_mode: 0o666, socket_user: None, socket_group: None },
        memory: Memory { max: None, budget: None, recycle_at: Size::Percent(8000), swap_max: Size::Bytes(0) },
        recycle: Recycle {
            max_requests: 0,
            max_requests_jitter: Share::Absolute(0),
            spread: true,
            max_lifetime: None,
            surge: 1,
        },
        timeouts: Timeouts {
            start: Duration::from_mins(1),
            settle: Duration::from_secs(1),
            watchdog: None,
            graceful: Duration::from_secs(30),
            abort: Duration::from_secs(2),
        },
        restart: Restart { backoff: Duration::from_millis(100), backoff_max: Duration::from_secs(30) },
        reload: Reload { hold: Duration::from_secs(1) },
        limits: Limits::default(),
        log: Log { format: LogFormat::Auto },
        control: Control { group: None },
    };
    assert_eq!(config, expected);
}

#[test]
fn a_flag_beats_the_file_which_beats_the_default() {
    let scratch = Scratch::new("beats", "command = [\"a\"]\nworkers = 3\n[recycle]\nmax_requests = 5\nspread = true\n");
    let flags: &[(Key, &[&str])] = &[(Key::Workers, &["7"]), (Key::Spread, &["false"])];
    let loaded = scratch.load(flags).unwrap();
    assert_eq!(loaded.config.name, "app");
    assert_eq!(loaded.config.workers, Workers::Count(7));
    assert_eq!(loaded.config.recycle.max_requests, 5);
    assert!(!loaded.config.recycle.spread);
    assert_eq!(loaded.origin(Key::Workers), "--workers");
    assert!(loaded.origin(Key::MaxRequests).ends_with("app.toml:4"));
    assert_eq!(loaded.origin(Key::Surge), "default");
}

#[test]
fn an_environment_flag_leaves_the_other_variables_alone() {
    let scratch = Scratch::new("env", "command = [\"a\"]\nenvironment = { A = \"1\", B = \"2\" }\n");
    let loaded = scratch.load(&[(Key::Environment, &["B=3=4", "C="])]).unwrap();
    let expected = [("A", "1"), ("B", "3=4"), ("C", "")];
    let expected = expected.map(|(name, value)| (name.to_owned(), value.to_owned()));
    assert_eq!(loaded.config.environment, expected.into_iter().collect());
}

#[test]
fn every_default_is_a_value_of_its_key() {
    let defaults: Vec<(Key, &str)> = Key::ALL
        .iter()
        .filter_map(|key| match key.spec().default {
            key::Fallback::Value(text) => Some((*key, text)),
            key::Fallback::Unset(_) | key::Fallback::Derived(_) => None,
        })
        .collect();
    let mut flags: Flags = defaults.iter().map(|(key, text)| (*key, vec![(*text).to_owned()])).collect();
    flags.insert(Key::Command, vec!["a".to_owned()]);
    let loaded = load(&Invocation { file: None, flags, runner: somebody() }).unwrap();
    let by_default = load_flags(&[(Key::Command, &["a"])]).unwrap();
    assert_eq!(loaded.config, by_default.config);
}

#[test]
fn every_example_is_a_value_of_its_key() {
    for key in Key::ALL {
        let spec = key.spec();
        let mut text = String::new();
        if *key != Key::Command {
            text.push_str("command = [\"a\"]\n");
        }
        if *key == Key::Group {
            text.push_str("user = \"shop\"\n");
        }
        if !spec.table.is_empty() {
            let _ = writeln!(text, "[{}]", spec.table);
        }
        if *key == Key::Names {
            text.push_str("bind = [\"127.0.0.1:1\", \"127.0.0.1:2\"]\n");
        }
        let _ = writeln!(text, "{} = {}", spec.name, spec.example);
        let scratch = Scratch::new(&format!("example-{key}"), &text);
        if *key == Key::EnvironmentFile {
            // The example's file does not exist on every machine.
            let variables = scratch.0.join("shop.env");
            std::fs::write(&variables, "A=1\n").unwrap();
            text = text.replace("/etc/shop.env", &variables.to_string_lossy());
            std::fs::write(scratch.0.join("app.toml"), &text).unwrap();
        }
        let result = load(&Invocation {
            file: Some(scratch.0.join("app.toml")),
            flags: Flags::new(),
            runner: Runner { uid: 0, ..somebody() },
        });
        let loaded = result.unwrap_or_else(|wrong| panic!("{wrong}\n{text}"));
        let fresh = load_flags(&[(Key::Command, &["a"])]).unwrap();
        assert_ne!(loaded.config, Config { name: "app".to_owned(), ..fresh.config }, "{text}");
    }
}

#[test]
fn everything_that_is_wrong_is_told_at_once() {
    let text = "\
max_request = 5
workers = \"four\"
ready = \"settle\"
command = [\"a\", 5]
umask = 22
[memory]
max = \"512m\"
[timeouts]
watchdog = \"30s\"
start = 0
[lisen]
bind = []
";
    let scratch = Scratch::new("wrong", text);
    let wrong = scratch.load(&[(Key::Surge, &["-1"])]).unwrap_err();
    assert_eq!(wrong.exit_code(), 2);
    let keys: Vec<&str> = wrong.list().iter().map(|one| one.key.as_str()).collect();
    let expected = [
        "max_request",
        "workers",
        "command",
        "umask",
        "memory.max",
        "timeouts.watchdog",
        "timeouts.start",
        "lisen",
        "recycle.surge",
    ];
    assert_eq!(keys, expected, "{wrong}");
    assert!(wrong.list().iter().all(|one| one.remedy.is_some()), "{wrong}");
    let lines = wrong.to_string();
    let first = lines.lines().next().unwrap();
    assert!(
        first.contains("app.toml:1:1: max_request: unknown key; did you mean `max_requests` in [recycle]?"),
        "{first}"
    );
}
