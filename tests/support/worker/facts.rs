//! What a worker finds around itself as it starts.

use std::fs;

use serde_json::{Map, Value, json};

/// Everything that a manager could have got wrong about the process, taken before this program opens anything.
pub(super) fn gather() -> Value {
    let env: Map<String, Value> = std::env::vars().map(|(key, value)| (key, Value::String(value))).collect();
    json!({
        "pid": std::process::id(),
        "parent": std::os::unix::process::parent_id(),
        "app": env.get("PADDOCK_APP"),
        "slot": number(&env, "PADDOCK_SLOT"),
        "generation": number(&env, "PADDOCK_GENERATION"),
        "quota": number(&env, "PADDOCK_MAX_REQUESTS"),
        "version": std::env::var("W_SWITCH").ok().and_then(|path| version_on_disk(&path)),
        "fds": open_fds(),
        "cgroup": fs::read_to_string("/proc/self/cgroup").unwrap_or_default(),
        "oom_score_adj": fs::read_to_string("/proc/self/oom_score_adj").unwrap_or_default().trim(),
        "cwd": std::env::current_dir().unwrap_or_default(),
        "status": status_fields(),
        "env": env,
    })
}

fn number(env: &Map<String, Value>, key: &str) -> Option<u64> {
    env.get(key)?.as_str()?.parse().ok()
}

fn version_on_disk(path: &str) -> Option<String> {
    let text = fs::read_to_string(path).ok()?;
    text.lines().find_map(|line| line.strip_prefix("version=")).map(str::to_owned)
}

/// Number and target of every open descriptor but the one that lists them.
fn open_fds() -> Map<String, Value> {
    let entries = fs::read_dir("/proc/self/fd").into_iter().flatten().flatten();
    entries
        .filter_map(|entry| {
            let target = fs::read_link(entry.path()).ok()?.display().to_string();
            let is_the_listing = target.starts_with("/proc/") && target.ends_with("/fd");
            (!is_the_listing).then(|| (entry.file_name().to_string_lossy().into_owned(), Value::String(target)))
        })
        .collect()
}

fn status_fields() -> Map<String, Value> {
    let wanted = ["Umask", "Uid", "Gid", "Groups", "SigBlk", "NoNewPrivs"];
    let text = fs::read_to_string("/proc/self/status").unwrap_or_default();
    text.lines()
        .filter_map(|line| line.split_once(':'))
        .filter(|(key, _)| wanted.contains(key))
        .map(|(key, value)| (key.to_owned(), Value::String(value.trim().to_owned())))
        .collect()
}
