//! The mapping alone: options as the reader would hand them over.

use std::path::PathBuf;

use super::*;
use crate::config::model::{Size, Workers};
use crate::config::{self, Loaded, Runner};

fn place() -> Place {
    Place { directory: PathBuf::from("/srv/shop"), python: PathBuf::from("python3") }
}

fn resolved(lines: &str) -> Resolved {
    let options = lines.lines().map(str::trim).filter(|line| !line.is_empty()).map(|line| {
        let (key, value) = line.split_once('=').unwrap_or((line, ""));
        Opt { key: key.trim().to_owned(), value: value.trim().to_owned(), origin: "shop.ini:1".to_owned() }
    });
    Resolved { options: options.collect(), files: vec!["shop.ini".to_owned()], ..Resolved::default() }
}

fn loaded(lines: &str) -> (Loaded, String) {
    let text = draft(&resolved(lines), "uwsgi", &place()).write().text;
    let runner = Runner { uid: 0, user: None, gid: 0, group: None };
    match config::understand_text("shop.toml", text.clone(), runner) {
        Ok(loaded) => (loaded, text),
        Err(wrong) => panic!("{wrong}\n{text}"),
    }
}

const MIB: u64 = 1 << 20;

#[test]
fn every_mapped_option_becomes_each_of_its_keys() {
    for row in TABLE.iter().flat_map(|(_, rows)| rows.iter()) {
        let Fate::Mapped(keys) = row.fate else { continue };
        for name in row.names {
            let value = match *name {
                "chown-socket" => "shop:www",
                "chmod-socket" | "chmod" | "umask" => "027",
                name if keys.contains(&Key::Bind) => {
                    assert!(!name.is_empty());
                    "127.0.0.1:3031"
                }
                _ => "300",
            };
            let user = if name.ends_with("gid") { "\nuid = shop" } else { "" };
            let resolved = resolved(&format!("{name} = {value}{user}"));
            let draft = draft(&resolved, "uwsgi", &place());
            for key in keys {
                assert!(draft.value(*key).is_some(), "{name} did not become {key}");
            }
            let written = draft.write();
            assert!(written.text.contains(&format!("{name} = {value}")), "{name}: {}", written.text);
            assert!(!written.text.contains("paddock refuses this"), "{name}: {}", written.text);
        }
    }
}

#[test]
fn a_usual_file_becomes_a_worker_without_master() {
    let (loaded, text) = loaded(
        "master\nprocesses = 4\nthreads = 2\nhttp-socket = :8080\nsocket = run/shop.sock\nchmod-socket = 660\nchown-socket = shop:www\n\
         module = shop.wsgi\nvirtualenv = /srv/venv\nplugins = python3\nlazy-apps = true\nenable-threads = false\nvacuum = true\n\
         die-on-term\nharakiri = 30\nreload-on-rss = 512\nmax-worker-lifetime = 3600\nworker-reload-mercy = 20\nlisten = 1024\n\
         uid = shop\ngid = www\numask = 007\nmax-requests = 1000\nenv = KEY=secret\ntouch-reload = /tmp/x",
    );
    let config = loaded.config;
    assert_eq!(
        config.command,
        [
            "uwsgi",
            "--plugins=python3",
            "--http-socket=fd://3",
            "--socket=fd://4",
            "--threads=2",
            "--module=shop.wsgi",
            "--virtualenv=/srv/venv",
            "--harakiri=30",
            "--env=KEY=secret",
            "--need-app",
            "--add-header=Connection: close",
        ],
        "{text}"
    );
    assert_eq!(config.workers, Workers::Count(4));
    assert_eq!((config.memory.recycle_at, config.memory.max), (Size::Bytes(512 * MIB), Some(Size::Bytes(640 * MIB))));
    assert_eq!(config.recycle.max_lifetime.map(|time| time.as_secs()), Some(3600));
    assert_eq!(config.recycle.max_requests, 0);
    assert_eq!(config.timeouts.graceful.as_secs(), 20);
    assert_eq!((config.listen.backlog, config.listen.socket_mode, config.umask), (1024, 0o660, 0o7));
    let text = text.replace("\n# ", " ");
    assert!(text.contains("TO DO: harakiri = 30 (shop.ini:1) lets a request"), "{text}");
    assert!(text.contains(" max_requests = 1000\n") && text.contains("touch-reload = /tmp/x"), "{text}");
    assert!(text.contains("python3 -m paddock_worker wsgi shop.wsgi:application --threads 2"), "{text}");
    assert!(!text.contains("env = KEY=secret"), "{text}");
}

#[test]
fn hard_limits_lie_above_soft_ones() {
    let memory = |lines: &str| {
        let config = loaded(lines).0.config.memory;
        (config.recycle_at, config.max)
    };
    let soft = Size::Bytes(512 * MIB);
    assert_eq!(memory("reload-on-rss = 512\nevil-reload-on-rss = 1024"), (soft, Some(Size::Bytes(1024 * MIB))));
    assert_eq!(memory("reload-on-rss = 512\nlimit-as = 256"), (soft, Some(Size::Bytes(640 * MIB))));
    assert_eq!(memory("limit-as = 2048").1, Some(Size::Bytes(2048 * MIB)));
    assert_eq!(memory("master").1, None);
    assert!(loaded("reload-on-as = 2048").1.contains("Address space is more than memory"));
}

#[test]
fn every_option_of_uwsgis_is_spoken_of_and_nothing_brings_the_master_back() {
    let mapped = |name: &str| find(TABLE, name).is_some_and(|row| matches!(row.fate, Fate::Mapped(_)));
    let others: Vec<_> = options::all().into_iter().filter(|(name, _)| !mapped(name)).collect();
    let lines: Vec<String> = others.iter().map(|(name, _)| format!("{name} = 7")).collect();
    let (loaded, text) = loaded(&lines.join("\n"));
    let spoken: BTreeSet<&str> =
        text.lines().filter_map(|line| line.strip_prefix("#   ")?.split_once(" = 7 (")).map(|(name, _)| name).collect();
    let passed = |name: &str| {
        loaded
            .config
            .command
            .iter()
            .any(|word| word.strip_prefix("--").and_then(|word| word.split('=').next()) == Some(name))
    };
    assert!(others.len() > 1200);
    for (name, facts) in others {
        assert!(spoken.contains(name), "{name}");
        let stays = find(TABLE, name).is_none_or(|row| matches!(row.fate, Fate::Kept | Fate::Changed));
        assert_eq!(passed(name), stays || name == "need-app" || name == "add-header", "{name}");
        assert!(!(stays && facts.master), "{name}");
    }
}

#[test]
fn a_value_that_a_later_one_beats_is_spoken_of() {
    let (loaded, text) = loaded("processes = 2\nworkers = 5");
    assert_eq!(loaded.config.workers, Workers::Count(5));
    assert!(text.contains("#   processes = 2 (shop.ini:1): a later one beats it"), "{text}");
}

#[test]
fn what_nobody_knows_is_handed_on_and_placeholders_are_not() {
    let mut resolved = resolved("base = /srv\nmodulle = shop\nchdir = /srv/shop");
    resolved.used.insert("base".to_owned());
    let written = draft(&resolved, "uwsgi", &place()).write();
    assert!(written.text.contains("--set=modulle=shop") && !written.text.contains("--set=base"), "{}", written.text);
    assert!(written.attention.iter().any(|line| line.contains("modulle")), "{:?}", written.attention);
}

#[test]
fn addresses_are_what_can_be_bound() {
    let read = |value: &str| address(value, &place());
    assert_eq!(read(":8080").as_deref(), Ok("0.0.0.0:8080"));
    assert_eq!(read("8080").as_deref(), Ok("0.0.0.0:8080"));
    assert_eq!(read("*:80").as_deref(), Ok("0.0.0.0:80"));
    assert_eq!(read("localhost:80").as_deref(), Ok("127.0.0.1:80"));
    assert_eq!(read("[::1]:80").as_deref(), Ok("[::1]:80"));
    assert_eq!(read("/run/x.sock").as_deref(), Ok("unix:/run/x.sock"));
    assert_eq!(read("x.sock").as_deref(), Ok("unix:/srv/shop/x.sock"));
    for wrong in ["@abstract", "=0", "", "host.example:80", "127.0.0.1:http"] {
        assert!(read(wrong).is_err(), "{wrong}");
    }
}

#[test]
fn a_binary_is_taken_from_the_command_line_or_the_environment() {
    assert_eq!(beside(Path::new("python3")), "uwsgi");
    assert_eq!(beside(Path::new("/nonexistent/bin/python3")), "uwsgi");
}
