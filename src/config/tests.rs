//! Whole configurations, right and wrong.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::time::Duration;

use super::model::*;
use super::*;

/// Somebody who is not root.
pub(super) fn somebody() -> Runner {
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

pub(super) fn given(flags: &[(Key, &[&str])]) -> Flags {
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
fn any_free_port_may_be_asked_for_twice() {
    let loaded = load_flags(&[(Key::Command, &["a"]), (Key::Bind, &["127.0.0.1:0", "127.0.0.1:0"])]).unwrap();
    assert_eq!(loaded.config.listen.bind.len(), 2);
    let wrong = load_flags(&[(Key::Command, &["a"]), (Key::Bind, &["127.0.0.1:1", "127.0.0.1:1"])]).unwrap_err();
    assert_eq!(
        wrong.to_string(),
        "--bind: the same address a second time; remove one; all workers share the one socket"
    );
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

/// A file that is only there in memory.
fn understood(text: &str) -> Result<Loaded, Diagnostics> {
    let invocation = Invocation { file: Some(PathBuf::from("app.toml")), flags: Flags::new(), runner: somebody() };
    understand(&invocation, Some(Arc::new(Source { path: "app.toml".to_owned(), text: text.to_owned() })))
}

/// `key = value` in its table, below a command.
fn assignment(key: Key, value: &str) -> String {
    let spec = key.spec();
    let command = if key == Key::Command { "" } else { "command = [\"a\"]\n" };
    let table = if spec.table.is_empty() { String::new() } else { format!("[{}]\n", spec.table) };
    format!("{command}{table}{} = {value}\n", spec.name)
}

#[test]
fn a_value_that_makes_no_sense_says_why_and_what_to_write() {
    let cases = [
        (Key::Name, r#""-x""#, r#""-x" cannot be an app's name"#),
        (Key::Name, r#""a b""#, r#""a b" cannot be an app's name"#),
        (Key::Name, "5", "an integer where a text is expected"),
        (Key::Command, r#"[""]"#, "names no program"),
        (Key::Command, r#"["a\u0000"]"#, "contains a NUL character"),
        (Key::Command, r#""gunicorn -w 4""#, r#"a text where an array is expected; write ["gunicorn", "-w", "4"]"#),
        (Key::Workers, "0", "an app has at least 1 worker"),
        (Key::Workers, "-3", "negative"),
        (Key::Workers, r#""4""#, r#""4" is neither a number nor "auto"; write 4 without quotes"#),
        (Key::Workers, "99999999999999999999", "too large"),
        (Key::Ready, r#""soon""#, r#""soon" means nothing here; one of "notify", "settle""#),
        (Key::DrainSignal, r#""KILL""#, "no program can handle KILL"),
        (Key::DrainSignal, r#""TERMINATE""#, r#""TERMINATE" is no signal"#),
        (Key::WorkingDirectory, r#""srv""#, r#""srv" is not an absolute path"#),
        (Key::User, r#""a b""#, r#""a b" is no name or number of a user or group"#),
        (Key::Umask, "22", r#"a decimal number where an octal mode is expected; write it in quotes: "22""#),
        (Key::Umask, r#""0088""#, r#""0088" is not an octal mode"#),
        (Key::Environment, r#"{ 1A = "x" }"#, r#""1A" cannot name a variable"#),
        (Key::Environment, "{ PORT = 5 }", "PORT: an integer where a text is expected; write its value in quotes"),
        (Key::Environment, r#"{ LISTEN_FDS = "3" }"#, "LISTEN_FDS is for paddock to set"),
        (Key::InheritEnvironment, r#""yes""#, "a text where true or false is expected"),
        (Key::Bind, r#"["8000"]"#, r#""8000" is no address to bind; write "127.0.0.1:8000""#),
        (Key::Bind, r#"["localhost:8000"]"#, r#""localhost:8000" is no address to bind; write "127.0.0.1:8000""#),
        (Key::Bind, r#"["::1:80"]"#, r#""::1:80" is no address to bind; write "[::1]:80""#),
        (Key::Bind, r#"["/run/x"]"#, r#""/run/x" is no address to bind; for a unix socket write "unix:/run/x""#),
        (Key::Bind, r#"["unix:@x"]"#, "abstract unix sockets cannot be bound"),
        (Key::Bind, r#"["unix:x"]"#, r#""x" is not an absolute path"#),
        (Key::Names, r#"["a:b"]"#, r#""a:b" cannot be a socket's name"#),
        (Key::Backlog, "0", "0 is less than 1"),
        (Key::SocketMode, r#""1777""#, r#""1777" is not an octal mode"#),
        (Key::MemoryMax, "512", "512 bytes: no program starts in that; a bare number is bytes; write a unit"),
        (Key::MemoryMax, r#""512MB""#, r#"not a size: units are single capital letters; write "512M""#),
        (Key::MemoryMax, r#""0""#, "zero makes no sense here"),
        (Key::MemoryBudget, r#""101%""#, "more than 100%"),
        (Key::MemorySwapMax, r#""10%""#, "a percentage makes no sense here"),
        (Key::MaxRequestsJitter, r#""few""#, r#""few" is not a whole number"#),
        (Key::MaxLifetime, r#""6 hrs""#, "not a time"),
        (Key::TimeoutStart, "0", "zero leaves no time at all"),
        (Key::TimeoutStart, "1.5", r#"a float where a time such as "30s" is expected; write it with its unit: "1.5s""#),
        (Key::TimeoutSettle, r#""0""#, "zero makes no sense here"),
        (Key::TimeoutAbort, r#""infinity""#, "infinity makes no sense here"),
        (Key::Backoff, r#""0ms""#, "zero makes no sense here"),
        (Key::TasksMax, "0", "0 is less than 1"),
        (Key::TasksMax, r#""many""#, r#"a text that is not "infinity""#),
        (Key::CpuWeight, "10001", "10001 is more than 10000"),
        (Key::Nofile, "3", "3 is less than 16"),
        (Key::LogFormat, r#""xml""#, r#""xml" means nothing here"#),
    ];
    for (key, value, expected) in cases {
        let wrong = understood(&assignment(key, value)).unwrap_err().to_string();
        let (_, message) =
            wrong.split_once(&format!(": {key}: ")).unwrap_or_else(|| panic!("{key} = {value}: {wrong}"));
        assert!(message.starts_with(expected), "{key} = {value}: {wrong}");
        assert!(message.contains("; ") && !message.contains('\n'), "{key} = {value}: no remedy in {wrong}");
    }
}

#[test]
fn a_value_has_more_than_one_spelling() {
    let same = [
        (Key::Umask, "0o027", r#""0027""#),
        (Key::User, "1000", r#""1000""#),
        (Key::DrainSignal, r#""SIGQUIT""#, r#""quit""#),
        (Key::DrainSignal, "3", r#""QUIT""#),
        (Key::MemoryMax, "536870912", r#""512M""#),
        (Key::MemoryMax, r#""1.5G""#, r#""1536M""#),
        (Key::MaxRequestsJitter, r#""7""#, "7"),
        (Key::TimeoutStart, "90", r#""1min 30s""#),
        (Key::MaxLifetime, r#""infinity""#, "0"),
        (Key::Workers, "0x10", "16"),
    ];
    for (key, one, other) in same {
        let config = |value: &str| understood(&assignment(key, value)).unwrap().config;
        assert_eq!(config(one), config(other), "{key}");
    }
}

#[test]
fn a_line_that_is_no_toml_hides_nothing_above_and_invents_nothing_below() {
    let text = "command = [\"a\"]\nworkers = 0\n[listen\nbackog = 5\nbind = 5\n";
    let wrong = understood(text).unwrap_err();
    let source = Source { path: String::new(), text: text.to_owned() };
    let lines: Vec<Option<usize>> = wrong.list().iter().map(|one| line(one, Some(&source))).collect();
    assert_eq!(lines, [Some(2), Some(3)], "{wrong}");
}

#[test]
fn a_table_key_and_a_flag_name_lead_to_the_right_place() {
    let remedy = |text: &str| {
        let wrong = understood(&format!("command = [\"a\"]\n{text}\n")).unwrap_err();
        wrong.list().first().and_then(|one| one.remedy.clone()).unwrap_or_default()
    };
    assert_eq!(remedy("memory_max = \"1G\""), "did you mean `max` in [memory]?");
    assert_eq!(remedy("timeout-start = 5"), "did you mean `start` in [timeouts]?");
    assert_eq!(remedy("wrokers = 5"), "did you mean `workers`?");
    assert_eq!(remedy("[recylce]\nsurge = 1"), "did you mean `recycle`?");
    assert_eq!(remedy("[recycle]\nworkers = 1"), "`workers` belongs at the top, above the first [table]");
    assert_eq!(remedy("[recycle]\nmax_reqests = 1"), "did you mean `max_requests`?");
    assert_eq!(remedy("zzz = 1"), "`man 5 paddock.toml` has them all");
}

#[test]
fn what_is_shown_is_a_file_that_says_the_same() {
    let text = r#"
command = ["a", "it's", "two\nlines \u007f \"\\"]
workers = "auto"
umask = "0077"
environment = { A = "1", B = "x\ty" }
drain_signal = "RTMIN+3"
[listen]
bind = ["[::1]:80", "unix:/run/x y"]
names = ["one"]
[memory]
max = "12.5%"
swap_max = "infinity"
[recycle]
max_requests_jitter = "0.01%"
max_lifetime = "1h 1us"
[timeouts]
graceful = "infinity"
[limits]
tasks_max = "infinity"
nofile = 1024
"#;
    let loaded = understood(text).unwrap();
    let shown = crate::command::show_config::as_toml(&loaded);
    let again = understood(&shown).unwrap_or_else(|wrong| panic!("{wrong}\n{shown}"));
    assert_eq!(again.config, loaded.config);
}

proptest::proptest! {
    /// Nothing that a file says makes us panic, neither reading it nor showing what is wrong.
    #[test]
    fn any_file_is_survived(pieces in proptest::collection::vec(proptest::sample::select(PIECES), 0..24)) {
        match understood(&pieces.concat()) {
            Ok(loaded) => {
                let shown = crate::command::show_config::as_toml(&loaded);
                let again = understood(&shown).unwrap_or_else(|wrong| panic!("{wrong}\n{shown}"));
                proptest::prop_assert_eq!(again.config, loaded.config);
            }
            Err(wrong) => {
                proptest::prop_assert!(!wrong.render_errors(true).is_empty());
                proptest::prop_assert!(!wrong.render_errors(false).contains('\x1b'));
                proptest::prop_assert!(!wrong.to_string().contains('\x1b'));
            }
        }
    }
}

/// What files are made of, and what they should not be made of.
#[rustfmt::skip]
const PIECES: &[&str] = &[
    "command = [\"a\"]\n", "workers = ", "environment", "name", "=", " = ", "\n", "\r\n", "\t", "\"auto\"", "\"", "'''",
    "\"\"\"", "[listen]\n", "[memory]\n", "[recycle]\n", "[timeouts]\n", "[x]\n", "[[listen]]\n", "[", "]", "{", "}",
    ",", ".", "#", "bind = [", "max = ", "budget = ", "surge = ", "start = ", "512M", "\"512M\"", "\"10%\"", "\"1min\"",
    "5", "-1", "0", "99999999999999999999", "0o17", "1.5", "nan", "true", "2020-01-01", "ä", "\u{202e}", "\u{1b}[31m",
    "\0", "\u{1f4a9}", "\\u0000", "A = \"1\"\n", "memory.max = \"1G\"\n", "\"127.0.0.1:1\"", "names = [\"a\"]\n",
    "ready = \"settle\"\n", "watchdog = 5\n",
];
