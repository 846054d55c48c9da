//! The mapping alone: facts as the script would tell them.

use serde_json::{Value, json};

use super::*;
use crate::config::model::{Share, Size, Workers};
use crate::config::{self, Loaded, Runner};

fn facts(settings: &[(&str, Value)], worker: &[(&str, Option<Value>)]) -> Facts {
    let options = |options: &[(&str, Option<Value>)]| {
        options.iter().map(|(flag, value)| Opt { flag: (*flag).to_owned(), value: value.clone() }).collect()
    };
    Facts {
        python: "/srv/venv/bin/python".to_owned(),
        version: "5.7.0".to_owned(),
        adapter: true,
        target: Some("shop".to_owned()),
        directory: "/srv/shop".to_owned(),
        transport: "redis".to_owned(),
        has_visibility_timeout: false,
        general: Vec::new(),
        worker: options(worker),
        settings: settings
            .iter()
            .map(|(name, value)| Setting { name: (*name).to_owned(), value: value.clone(), is_default: false })
            .collect(),
        others: vec!["broker_url".to_owned()],
        unknown: vec!["thumb_size".to_owned()],
    }
}

fn loaded(facts: &Facts) -> (Loaded, String) {
    let text = draft(facts).write().text;
    let runner = Runner { uid: 0, user: None, gid: 0, group: None };
    match config::understand_text("mail.toml", text.clone(), runner) {
        Ok(loaded) => (loaded, text),
        Err(wrong) => panic!("{wrong}\n{text}"),
    }
}

fn text(value: &str) -> Value {
    json!(value)
}

const MIB: u64 = 1 << 20;

#[test]
fn every_mapped_setting_and_option_becomes_each_of_its_keys() {
    let settings = [
        ("worker_concurrency", json!(4)),
        ("worker_max_tasks_per_child", json!(100)),
        ("worker_max_memory_per_child", json!(204_800)),
        ("task_time_limit", json!(300)),
    ];
    let options = [
        ("--concurrency", Some(text("4"))),
        ("--max-tasks-per-child", Some(text("100"))),
        ("--max-memory-per-child", Some(text("204800"))),
        ("--uid", Some(text("shop"))),
        ("--gid", Some(text("www"))),
        ("--umask", Some(text("027"))),
        ("--workdir", Some(text("/srv/shop"))),
    ];
    for row in TABLE.iter().flat_map(|(_, rows)| rows.iter()) {
        let Fate::Mapped(keys) = row.fate else { continue };
        for name in row.names {
            let setting: Vec<_> = settings.iter().filter(|(sample, _)| sample == name).cloned().collect();
            let mut option: Vec<_> = options.iter().filter(|(sample, _)| sample == name).cloned().collect();
            assert_eq!(setting.len() + option.len(), 1, "samples of {name}");
            if *name == "--gid" {
                option.push(("--uid", Some(text("shop"))));
            }
            let draft = draft(&facts(&setting, &option));
            for key in keys {
                assert!(draft.value(*key).is_some(), "{name} did not become {key}");
            }
        }
    }
    let (loaded, text) = loaded(&facts(&settings, &options));
    let config = loaded.config;
    assert_eq!(config.workers, Workers::Count(4), "{text}");
    assert_eq!((config.recycle.max_requests, config.recycle.max_requests_jitter), (100, Share::Absolute(0)));
    assert_eq!((config.memory.recycle_at, config.memory.max), (Size::Bytes(200 * MIB), Some(Size::Bytes(250 * MIB))));
    assert_eq!(config.timeouts.graceful.as_secs(), 330);
    assert_eq!(config.umask, 0o27);
}

#[test]
fn every_setting_and_option_that_is_given_is_spoken_of() {
    let names = || TABLE.iter().flat_map(|(_, rows)| rows.iter()).flat_map(|row| row.names).copied();
    let settings: Vec<(&str, Value)> =
        names().filter(|name| !name.starts_with('-') && !name.contains('*')).map(|name| (name, json!(1))).collect();
    let options: Vec<(&str, Option<Value>)> =
        names().filter(|name| name.starts_with("--")).map(|name| (name, Some(text("7")))).collect();
    for (facts, names) in [
        (facts(&settings, &[]), settings.iter().map(|(name, _)| *name).collect::<Vec<_>>()),
        (facts(&[], &options), options.iter().map(|(name, _)| *name).collect()),
    ] {
        let (_, text) = loaded(&facts);
        for name in names.into_iter().filter(|name| *name != "--app" && *name != "--workdir") {
            assert!(text.lines().any(|line| line.starts_with('#') && line.contains(name)), "{name}:\n{text}");
        }
        assert!(text.contains("#   thumb_size: ") && text.contains("#   broker_url\n"), "{text}");
    }
}

#[test]
fn the_pool_decides_what_concurrency_becomes() {
    let read = |options: &[(&str, Option<Value>)]| {
        let (loaded, _) = loaded(&facts(&[], options));
        (loaded.config.workers, loaded.config.command[4..].join(" "))
    };
    let four = ("--concurrency", Some(text("4")));
    assert_eq!(read(&[]), (Workers::Auto, "-A shop worker".to_owned()));
    assert_eq!(read(std::slice::from_ref(&four)), (Workers::Count(4), "-A shop worker".to_owned()));
    assert_eq!(read(&[four.clone(), ("--pool", Some(text("solo")))]), (Workers::Count(1), "-A shop worker".to_owned()));
    let threads = "-A shop worker --pool threads --concurrency 4".to_owned();
    assert_eq!(read(&[four.clone(), ("--pool", Some(text("threads")))]), (Workers::Count(1), threads.clone()));
    assert_eq!(read(&[four, ("--pool", Some(text("gevent")))]), (Workers::Count(1), threads));
    assert_eq!(read(&[("--autoscale", Some(text("10,3")))]).0, Workers::Count(10));
}

#[test]
fn options_that_stay_stand_where_celery_wants_them() {
    let mut facts = facts(
        &[("worker_pool", json!("threads"))],
        &[
            ("--queues", Some(text("a,b"))),
            ("--loglevel", Some(text("info"))),
            ("--pool", Some(text("prefork"))),
            ("--beat", None),
            ("--without-gossip", None),
        ],
    );
    facts.general = vec![Opt { flag: "--broker".to_owned(), value: Some(text("amqp://")) }];
    let (loaded, _) = loaded(&facts);
    assert_eq!(
        loaded.config.command[3..].join(" "),
        "celery -A shop --broker amqp:// worker --queues a,b --loglevel info --without-gossip --pool solo"
    );
}

#[test]
fn late_acknowledgement_on_redis_needs_a_visibility_timeout() {
    let mut facts = facts(&[("task_acks_late", json!(true))], &[]);
    assert!(loaded(&facts).1.contains("visibility_timeout, an hour"));
    facts.has_visibility_timeout = true;
    assert!(!loaded(&facts).1.contains("visibility_timeout\": 300"));
    facts.has_visibility_timeout = false;
    facts.transport = "amqp".to_owned();
    assert!(!loaded(&facts).1.contains("visibility_timeout\": 300"));
}

#[test]
fn without_a_time_limit_the_drain_is_generous_and_says_so() {
    let draft = draft(&facts(&[], &[])).write();
    assert!(draft.text.contains("graceful = \"10min\""), "{}", draft.text);
    assert!(draft.attention.iter().any(|line| line.starts_with("timeouts.graceful: TO DO")), "{:?}", draft.attention);
}
