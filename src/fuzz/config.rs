//! Configuration: text in, a [`Config`](crate::config::model::Config) or diagnostics out.

use std::ffi::OsString;
use std::os::unix::ffi::OsStrExt as _;
use std::path::PathBuf;
use std::sync::Arc;

use super::assert_harmless;
use crate::cli::{self, Command};
use crate::command::show_config;
use crate::config::diagnostic::{Diagnostics, Origin, Source};
use crate::config::machine::Machine;
use crate::config::{Flags, Invocation, Loaded, Runner, env_file, resolve, understand};

fn invocation(flags: Flags) -> Invocation {
    let runner = Runner { uid: 1000, user: Some("shop".into()), gid: 1000, group: Some("shop".into()) };
    Invocation { file: Some(PathBuf::from("shop.toml")), flags, runner }
}

fn load(text: &str, flags: Flags) -> Result<Loaded, Diagnostics> {
    let source = Source { path: "shop.toml".to_owned(), text: text.to_owned() };
    understand(&invocation(flags), Some(Arc::new(source)))
}

/// A configuration file.
pub(super) fn file(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    // It would read files of this machine.
    if !text.contains("environment_file") {
        judge(text, &Flags::new());
    }
}

/// Flags, with zero bytes between them, over a small file.
pub(super) fn flags(bytes: &[u8]) {
    let arguments = ["paddock", "run", "shop.toml"].into_iter().map(OsString::from);
    let given = bytes.split(|byte| *byte == 0).map(|argument| std::ffi::OsStr::from_bytes(argument).to_owned());
    match cli::parse(arguments.chain(given).collect::<Vec<_>>()) {
        Err(error) => assert!([0, 2].contains(&error.exit_code())),
        Ok(cli) => {
            let Command::Run { config, .. } = cli.command else { return };
            let flags = config.flags;
            if !flags.keys().any(|key| key.path() == "environment_file") {
                judge("command = [\"true\"]\n", &flags);
            }
        }
    }
}

fn judge(text: &str, flags: &Flags) {
    match load(text, flags.clone()) {
        Err(found) => assert_told(&found, text),
        Ok(loaded) => {
            assert_told(&loaded.warnings, text);
            assert_shown_again(&loaded);
            for memory_limit in [None, Some(1 << 30)] {
                let machine = Machine { cpus: 4, mem_total: Some(8 << 30), memory_limit };
                match resolve::resolve(&loaded, &machine) {
                    Err(found) => assert_told(&found, text),
                    Ok(resolved) => assert_sound(&resolved),
                }
            }
        }
    }
}

/// Every fault has words and a place that is there, and shows on a terminal without doing anything to it.
fn assert_told(found: &Diagnostics, text: &str) {
    for diagnostic in found.list() {
        assert!(!diagnostic.message.is_empty());
        if let (Origin::File(span), None) = (&diagnostic.origin, &diagnostic.source) {
            assert!(text.get(span.clone()).is_some(), "{span:?} is no place in {text:?}");
        }
    }
    assert!([1, 2].contains(&found.exit_code()));
    found.render_errors(false).lines().for_each(assert_harmless);
}

/// What `show-config` prints says the same.
fn assert_shown_again(loaded: &Loaded) {
    let shown = show_config::as_toml(loaded);
    match load(&shown, Flags::new()) {
        Ok(again) => assert_eq!(again.config, loaded.config, "{shown}"),
        Err(found) => panic!("{}\n{shown}", found.render_errors(false)),
    }
    let _ = show_config::as_json(loaded);
}

fn assert_sound(resolved: &resolve::Resolved) {
    let policy = &resolved.policy;
    assert!(policy.workers >= 1 && policy.parallel_starts >= 1);
    if let (Some(edge), Some(max)) = (policy.recycle_at, policy.memory_max) {
        assert!(edge <= max, "{edge} of {max}");
    }
    if let (Some(max), Some(budget)) = (policy.memory_max, policy.memory_budget) {
        assert!(u128::from(max) * u128::from(policy.workers) <= u128::from(budget), "{policy:?}");
    }
}

/// The file that `environment_file` names.
pub(super) fn environment_file(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    match env_file::parse(text) {
        Ok(variables) => {
            for (name, value) in variables {
                assert!(!name.is_empty() && !name.contains(['=', '\0']) && !value.contains('\0'));
            }
        }
        Err(faults) => {
            assert!(!faults.is_empty());
            for fault in faults {
                let Origin::File(span) = fault.origin else { panic!("no place") };
                assert!(text.get(span).is_some());
            }
        }
    }
}
