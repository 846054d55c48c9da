//! A worker's environment: what is inherited, what is configured, and the protocol.

use std::collections::BTreeMap;
use std::ffi::{OsStr, OsString};
use std::path::Path;
use std::time::Duration;

use super::account::Account;

/// Variables that speak to the manager, or to whoever started it, and must never reach a worker.
const NEVER_INHERITED: &[&str] = &[
    "CREDENTIALS_DIRECTORY",
    "FDSTORE",
    "INVOCATION_ID",
    "JOURNAL_STREAM",
    "MANAGERPID",
    "MANAGERPIDFDID",
    "NOTIFY_SOCKET",
    "RUNTIME_DIRECTORY",
    "SYSTEMD_EXEC_PID",
];

/// Whole families of them.
const NEVER_INHERITED_PREFIXES: &[&str] = &["LISTEN_", "WATCHDOG_", "MEMORY_PRESSURE_", "PADDOCK_"];

/// All that reaches a worker with `inherit_environment = false`.
const ALWAYS_INHERITED: &[&str] = &["PATH", "LANG", "TZ"];

/// The search path where there is none, as systemd sets it for services (`systemd.exec(5)`).
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What is the same for all workers of a generation.
///
/// `file` is `environment_file`, which `configured` beats.
pub fn base(
    inherited: impl IntoIterator<Item = (OsString, OsString)>,
    inherit: bool,
    account: Option<&Account>,
    file: &[(String, String)],
    configured: &BTreeMap<String, String>,
) -> BTreeMap<OsString, OsString> {
    let wanted = |name: &OsStr| {
        let Some(name) = name.to_str() else { return inherit };
        if inherit {
            !NEVER_INHERITED.contains(&name) && !NEVER_INHERITED_PREFIXES.iter().any(|prefix| name.starts_with(prefix))
        } else {
            ALWAYS_INHERITED.contains(&name)
        }
    };
    let mut environment: BTreeMap<OsString, OsString> =
        inherited.into_iter().filter(|(name, _)| wanted(name)).collect();
    environment.entry("PATH".into()).or_insert_with(|| DEFAULT_PATH.into());
    if let Some(account) = account {
        for (name, value) in
            [("HOME", &account.home), ("USER", &account.name), ("LOGNAME", &account.name), ("SHELL", &account.shell)]
        {
            environment.insert(name.into(), value.into());
        }
    }
    environment.extend(file.iter().map(|(name, value)| (name.into(), value.into())));
    environment.extend(configured.iter().map(|(name, value)| (name.into(), value.into())));
    environment
}

/// What one worker is told about itself.
#[derive(Debug, Clone, Copy)]
pub struct Facts<'a> {
    /// `PADDOCK_APP`
    pub app: &'a str,
    /// `PADDOCK_SLOT`
    pub slot: u32,
    /// `PADDOCK_GENERATION`
    pub generation: u64,
    /// `PADDOCK_WORKER`: what marks every process of this worker where there is no fence to tell them by.
    pub marker: &'a str,
    /// `PADDOCK_MAX_REQUESTS`
    pub quota: Option<u64>,
    /// `LISTEN_FDNAMES`, one for each socket.
    pub socket_names: &'a [String],
    /// `NOTIFY_SOCKET`
    pub notify: &'a Path,
    /// `MEMORY_PRESSURE_WATCH`
    pub pressure: &'a Path,
    /// `WATCHDOG_USEC`
    pub watchdog: Option<Duration>,
    /// `JOURNAL_STREAM`, if its output is a journal stream of its own.
    pub journal_stream: Option<&'a str>,
}

/// The whole environment of one worker; `LISTEN_PID` and `WATCHDOG_PID` are added by the gate, which knows them.
pub fn complete(base: &BTreeMap<OsString, OsString>, facts: &Facts<'_>) -> Vec<(OsString, OsString)> {
    let mut environment = base.clone();
    let mut set = |name: &str, value: OsString| environment.insert(name.into(), value);
    set("PADDOCK_APP", facts.app.into());
    set("PADDOCK_SLOT", facts.slot.to_string().into());
    set("PADDOCK_GENERATION", facts.generation.to_string().into());
    set("PADDOCK_WORKER", facts.marker.into());
    if let Some(quota) = facts.quota {
        set("PADDOCK_MAX_REQUESTS", quota.to_string().into());
    }
    if !facts.socket_names.is_empty() {
        set("LISTEN_FDS", facts.socket_names.len().to_string().into());
        set("LISTEN_FDNAMES", facts.socket_names.join(":").into());
    }
    set("NOTIFY_SOCKET", facts.notify.into());
    set("MEMORY_PRESSURE_WATCH", facts.pressure.into());
    if let Some(watchdog) = facts.watchdog {
        set("WATCHDOG_USEC", watchdog.as_micros().to_string().into());
    }
    if let Some(stream) = facts.journal_stream {
        set("JOURNAL_STREAM", stream.into());
    }
    environment.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs(of: &[(&str, &str)]) -> Vec<(OsString, OsString)> {
        of.iter().map(|(name, value)| (name.into(), value.into())).collect()
    }

    fn get<'a>(environment: &'a BTreeMap<OsString, OsString>, name: &str) -> Option<&'a str> {
        environment.get(OsStr::new(name)).and_then(|value| value.to_str())
    }

    #[test]
    fn the_services_own_variables_never_leak() {
        let service = pairs(&[
            ("NOTIFY_SOCKET", "/run/systemd/notify"),
            ("WATCHDOG_USEC", "1"),
            ("WATCHDOG_PID", "1"),
            ("LISTEN_FDS", "1"),
            ("LISTEN_PID", "1"),
            ("LISTEN_FDNAMES", "x"),
            ("LISTEN_PIDFDID", "1"),
            ("FDSTORE", "1"),
            ("INVOCATION_ID", "1"),
            ("JOURNAL_STREAM", "1:2"),
            ("MEMORY_PRESSURE_WATCH", "/x"),
            ("MEMORY_PRESSURE_WRITE", "x"),
            ("SYSTEMD_EXEC_PID", "1"),
            ("MANAGERPID", "1"),
            ("CREDENTIALS_DIRECTORY", "/x"),
            ("KEPT", "1"),
        ]);
        let environment = base(service, true, None, &[], &BTreeMap::new());
        let names: Vec<_> = environment.keys().map(|name| name.to_str().unwrap()).collect();
        assert_eq!(names, ["KEPT", "PATH"]);
    }

    #[test]
    fn without_inheritance_only_path_lang_and_tz_remain() {
        let inherited = pairs(&[("PATH", "/p"), ("LANG", "C"), ("TZ", "UTC"), ("SECRET", "s"), ("LC_ALL", "C")]);
        let environment = base(inherited, false, None, &[], &BTreeMap::new());
        assert_eq!(environment.keys().map(|name| name.to_str().unwrap()).collect::<Vec<_>>(), ["LANG", "PATH", "TZ"]);
    }

    #[test]
    fn configuration_beats_file_beats_account_beats_inheritance() {
        let account =
            Account { uid: 1, gid: 1, groups: vec![], name: "shop".into(), home: "/h".into(), shell: "/s".into() };
        let inherited = pairs(&[("HOME", "/root"), ("A", "inherited"), ("B", "inherited"), ("C", "inherited")]);
        let file = [("B".to_owned(), "file".to_owned()), ("C".to_owned(), "file".to_owned())];
        let configured = BTreeMap::from([("C".to_owned(), "configured".to_owned())]);
        let environment = base(inherited, true, Some(&account), &file, &configured);
        assert_eq!(get(&environment, "HOME"), Some("/h"));
        assert_eq!(get(&environment, "LOGNAME"), Some("shop"));
        assert_eq!(get(&environment, "A"), Some("inherited"));
        assert_eq!(get(&environment, "B"), Some("file"));
        assert_eq!(get(&environment, "C"), Some("configured"));
    }

    #[test]
    fn the_protocol_beats_everything_and_no_sockets_means_no_listen_variables() {
        let configured = BTreeMap::from([("NOTIFY_SOCKET".to_owned(), "/elsewhere".to_owned())]);
        let base = base(Vec::new(), true, None, &[], &configured);
        let names = ["http".to_owned(), "admin".to_owned()];
        let mut facts = Facts {
            app: "shop",
            slot: 2,
            generation: 3,
            marker: "shop-2-x",
            quota: Some(9),
            socket_names: &names,
            notify: Path::new("/n"),
            pressure: Path::new("/p"),
            watchdog: Some(Duration::from_secs(2)),
            journal_stream: None,
        };
        let with: BTreeMap<_, _> = complete(&base, &facts).into_iter().collect();
        assert_eq!(get(&with, "NOTIFY_SOCKET"), Some("/n"));
        assert_eq!(get(&with, "LISTEN_FDS"), Some("2"));
        assert_eq!(get(&with, "LISTEN_FDNAMES"), Some("http:admin"));
        assert_eq!(get(&with, "WATCHDOG_USEC"), Some("2000000"));
        assert_eq!(get(&with, "PADDOCK_MAX_REQUESTS"), Some("9"));
        facts.socket_names = &[];
        let without: BTreeMap<_, _> = complete(&base, &facts).into_iter().collect();
        assert!(without.keys().all(|name| !name.to_str().unwrap().starts_with("LISTEN_")));
    }
}
