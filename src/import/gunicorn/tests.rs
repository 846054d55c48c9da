//! The mapping alone: facts as the script would tell them.

use std::path::PathBuf;

use serde_json::{Value, json};

use super::*;
use crate::config::model::{BindAddress, Share, Workers};
use crate::config::{self, Loaded, Runner};

fn place() -> Place {
    Place { directory: PathBuf::from("/srv/shop"), python: PathBuf::from("python3") }
}

/// A gunicorn with these settings given, all others of the table at a default that says nothing.
fn facts(given: &[(&str, Value)]) -> Facts {
    let defaults =
        [("workers", json!(1)), ("timeout", json!(30)), ("graceful_timeout", json!(30)), ("umask", json!(0))];
    let mut settings: Vec<Setting> = defaults
        .iter()
        .chain(given)
        .map(|(name, value)| Setting {
            name: (*name).to_owned(),
            origin: "file".to_owned(),
            value: value.clone(),
            hook: false,
            words: Vec::new(),
        })
        .collect();
    for setting in settings.iter_mut().take(defaults.len()) {
        setting.origin = "default".to_owned();
    }
    // What is given beats the default of the same name.
    settings.reverse();
    Facts {
        python: "/srv/venv/bin/python".to_owned(),
        version: "27.0.1".to_owned(),
        adapter: true,
        location: Some("gunicorn.conf.py".to_owned()),
        application: Some("shop:app".to_owned()),
        positional: vec!["shop:app".to_owned()],
        worker_class: "sync".to_owned(),
        addresses: vec![json!(["127.0.0.1", 8000])],
        user: Some("shop".to_owned()),
        group: Some("www".to_owned()),
        settings,
        unknown: Vec::new(),
    }
}

fn loaded(facts: &Facts) -> (Loaded, String) {
    let text = draft(facts, &place()).write().text;
    let runner = Runner { uid: 0, user: None, gid: 0, group: None };
    match config::understand_text("shop.toml", text.clone(), runner) {
        Ok(loaded) => (loaded, text),
        Err(wrong) => panic!("{wrong}\n{text}"),
    }
}

#[test]
fn every_mapped_setting_becomes_each_of_its_keys() {
    let samples: &[(&str, Value)] = &[
        ("bind", json!(["127.0.0.1:8000"])),
        ("backlog", json!(512)),
        ("workers", json!(4)),
        ("max_requests", json!(1000)),
        ("max_requests_jitter", json!(50)),
        ("timeout", json!(60)),
        ("graceful_timeout", json!(20)),
        ("user", json!(1000)),
        ("group", json!(33)),
        ("umask", json!(0o27)),
        ("proc_name", json!("shop web")),
    ];
    let mut facts = facts(samples);
    facts.addresses.push(json!("run/shop.sock"));
    let draft = draft(&facts, &place());
    for row in TABLE.iter().flat_map(|(_, rows)| rows.iter()) {
        let Fate::Mapped(keys) = row.fate else { continue };
        for name in row.names {
            assert!(samples.iter().any(|(sample, _)| sample == name), "no sample of {name}");
        }
        for key in keys {
            assert!(draft.value(*key).is_some(), "{:?} did not become {key}", row.names);
        }
    }
    let (loaded, text) = loaded(&facts);
    let config = loaded.config;
    assert_eq!(config.workers, Workers::Count(4));
    assert_eq!((config.recycle.max_requests, config.recycle.max_requests_jitter), (1000, Share::Absolute(50)));
    assert_eq!(config.timeouts.watchdog.map(|time| time.as_secs()), Some(90));
    assert_eq!(config.timeouts.graceful.as_secs(), 20);
    assert_eq!((config.umask, config.listen.socket_mode, config.listen.backlog), (0o27, 0o640, 512));
    assert_eq!((config.user.as_deref(), config.group.as_deref()), (Some("shop"), Some("www")));
    assert_eq!(config.name, "shop-web");
    let bound: Vec<&BindAddress> = config.listen.bind.iter().map(|bind| &bind.address).collect();
    assert_eq!(bound[1], &BindAddress::Unix(PathBuf::from("/srv/shop/run/shop.sock")), "{text}");
}

#[test]
fn every_setting_that_is_given_is_spoken_of() {
    let names: Vec<&str> = TABLE.iter().flat_map(|(_, rows)| rows.iter()).flat_map(|row| row.names).copied().collect();
    let given: Vec<(&str, Value)> = names.iter().map(|name| (*name, json!(7))).collect();
    let mut facts = facts(&given);
    facts.settings.iter_mut().filter(|setting| setting.name == "proc_name").for_each(|name| name.value = json!("x"));
    facts.unknown.push(Unknown { name: "wrokers".to_owned() });
    facts.addresses.push(json!("shop.sock"));
    let (_, text) = loaded(&facts);
    for name in names {
        let there = text.lines().any(|line| line.starts_with('#') && line.contains(name));
        assert!(there, "{name} is not spoken of:\n{text}");
    }
    assert!(text.contains("wrokers: gunicorn ignores this name of the file's; was `workers` meant?"), "{text}");
}

#[test]
fn a_kept_flag_stays_in_the_command_and_a_mapped_one_leaves_it() {
    let mut facts =
        facts(&[("threads", json!(8)), ("workers", json!(4)), ("timeout", json!(60)), ("daemon", json!(true))]);
    for (name, words) in [
        ("threads", &["--threads", "8"][..]),
        ("workers", &["--workers", "4"]),
        ("timeout", &["--timeout", "60"]),
        ("daemon", &["--daemon"]),
    ] {
        let setting = facts.settings.iter_mut().find(|setting| setting.name == name && setting.is_given()).unwrap();
        setting.origin = "command line".to_owned();
        setting.words = words.iter().map(|word| (*word).to_owned()).collect();
    }
    let command = |facts: &Facts| loaded(facts).0.config.command[4..].join(" ");
    assert_eq!(command(&facts), "--threads 8 --request-timeout 60 shop:app");
    facts.worker_class = "gthread".to_owned();
    assert_eq!(command(&facts), "--threads 8 shop:app");
    facts.positional.clear();
    facts.application = None;
    assert_eq!(command(&facts), "--threads 8 MODULE:APP");
}

#[test]
fn a_timeout_of_zero_is_no_watchdog() {
    let (loaded, text) = loaded(&facts(&[("timeout", json!(0)), ("graceful_timeout", json!(0))]));
    assert_eq!(loaded.config.timeouts.watchdog, None, "{text}");
    assert_eq!(loaded.config.timeouts.graceful.as_secs(), 1);
}

#[test]
fn addresses_are_what_can_be_bound() {
    let mut facts = facts(&[("bind", json!([]))]);
    facts.addresses = vec![
        json!(["", 80]),
        json!(["localhost", 81]),
        json!(["::1", 82]),
        json!(["[::]", 83]),
        json!(["example.org", 84]),
        json!(5),
        json!({"evil": 1}),
    ];
    let (loaded, text) = loaded(&facts);
    let bound: Vec<String> =
        loaded.config.listen.bind.iter().map(|bind| config::render::address(&bind.address)).collect();
    assert_eq!(bound, ["0.0.0.0:80", "127.0.0.1:81", "[::1]:82", "[::]:83"]);
    assert!(text.contains("bind = example.org:84: paddock does not look names up"), "{text}");
    assert!(text.contains("bind = fd://5: "), "{text}");
}

#[test]
fn a_secret_of_the_environment_is_not_copied_into_a_comment() {
    let (_, text) = loaded(&facts(&[("raw_env", json!(["PASSWORD=hunter2"]))]));
    assert!(text.contains("raw_env = PASSWORD (file)") && !text.contains("hunter2"), "{text}");
}

#[test]
fn classes_that_are_not_known_are_named() {
    for (class, expected) in [
        ("asgi", "paddock_worker does not know gunicorn's own ASGI worker"),
        ("tornado", "a worker class that paddock_worker does not know"),
        ("uvicorn.workers.UvicornWorker", "uvicorn has given this class up"),
    ] {
        let mut facts = facts(&[("worker_class", json!(class))]);
        facts.worker_class = class.to_owned();
        let text = loaded(&facts).1.replace("\n#     ", " ");
        assert!(text.contains(expected), "{class}: {text}");
    }
}
