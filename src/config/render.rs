//! A [`Config`]'s values as text again, each by its key.

use std::time::Duration;

use serde_json::{Map, Value, json};

use super::key::Key;
use super::model::{BindAddress, Config, Share, Size, Workers};
use super::signal;
use super::units::{render_permyriad, render_size, render_time};

/// A key's value; none if it has none.
pub fn value(key: Key, config: &Config) -> Option<Value> {
    let (listen, memory, recycle) = (&config.listen, &config.memory, &config.recycle);
    let (timeouts, limits) = (&config.timeouts, &config.limits);
    match key {
        Key::Name => Some(json!(config.name)),
        Key::Command => Some(json!(config.command)),
        Key::Workers => Some(match config.workers {
            Workers::Count(count) => json!(count),
            Workers::Auto => json!("auto"),
        }),
        Key::Ready => Some(json!(config.ready)),
        Key::DrainSignal => Some(json!(signal::name(config.drain_signal))),
        Key::Isolation => Some(json!(config.isolation)),
        Key::WorkingDirectory => config.working_directory.as_ref().map(|path| json!(path.to_string_lossy())),
        Key::User => config.user.as_ref().map(|user| json!(user)),
        Key::Group => config.group.as_ref().map(|group| json!(group)),
        Key::Umask => Some(mode(config.umask)),
        Key::Environment => (!config.environment.is_empty()).then(|| json!(config.environment)),
        Key::EnvironmentFile => config.environment_file.as_ref().map(|path| json!(path.to_string_lossy())),
        Key::InheritEnvironment => Some(json!(config.inherit_environment)),
        Key::Bind => list(listen.bind.iter().map(|bind| address(&bind.address))),
        Key::Names => list(listen.bind.iter().map(|bind| bind.name.clone())),
        Key::Backlog => Some(json!(listen.backlog)),
        Key::SocketMode => Some(mode(listen.socket_mode)),
        Key::SocketUser => listen.socket_user.as_ref().map(|user| json!(user)),
        Key::SocketGroup => listen.socket_group.as_ref().map(|group| json!(group)),
        Key::MemoryMax => memory.max.map(size),
        Key::MemoryBudget => memory.budget.map(size),
        Key::MemoryRecycleAt => Some(size(memory.recycle_at)),
        Key::MemorySwapMax => Some(size(memory.swap_max)),
        Key::MaxRequests => Some(json!(recycle.max_requests)),
        Key::MaxRequestsJitter => Some(match recycle.max_requests_jitter {
            Share::Absolute(number) => json!(number),
            Share::Percent(share) => json!(render_permyriad(share)),
        }),
        Key::Spread => Some(json!(recycle.spread)),
        Key::MaxLifetime => recycle.max_lifetime.map(time),
        Key::Surge => Some(json!(recycle.surge)),
        Key::TimeoutStart => Some(time(timeouts.start)),
        Key::TimeoutSettle => Some(time(timeouts.settle)),
        Key::TimeoutWatchdog => timeouts.watchdog.map(time),
        Key::TimeoutGraceful => Some(time(timeouts.graceful)),
        Key::TimeoutAbort => Some(time(timeouts.abort)),
        Key::Backoff => Some(time(config.restart.backoff)),
        Key::BackoffMax => Some(time(config.restart.backoff_max)),
        Key::Hold => Some(time(config.reload.hold)),
        Key::TasksMax => limits.tasks_max.map(|most| if most == u64::MAX { json!("infinity") } else { json!(most) }),
        Key::CpuWeight => limits.cpu_weight.map(|weight| json!(weight)),
        Key::Nofile => limits.nofile.map(|most| json!(most)),
        Key::LogFormat => Some(json!(config.log.format)),
        Key::ControlGroup => config.control.group.as_ref().map(|group| json!(group)),
    }
}

fn mode(mode: u32) -> Value {
    json!(format!("{mode:04o}"))
}

fn size(size: Size) -> Value {
    json!(match size {
        Size::Bytes(bytes) => render_size(bytes),
        Size::Percent(share) => render_permyriad(share),
        Size::Infinity => "infinity".to_owned(),
    })
}

fn time(time: Duration) -> Value {
    json!(render_time(time))
}

fn list(texts: impl Iterator<Item = String>) -> Option<Value> {
    let texts: Vec<String> = texts.collect();
    (!texts.is_empty()).then(|| json!(texts))
}

/// As `bind` writes it.
pub fn address(address: &BindAddress) -> String {
    match address {
        BindAddress::Tcp(tcp) => tcp.to_string(),
        BindAddress::Unix(path) => format!("unix:{}", path.display()),
    }
}

/// A value as TOML.
pub fn toml(value: &Value) -> String {
    match value {
        Value::Array(members) => {
            let members: Vec<String> = members.iter().map(toml).collect();
            format!("[{}]", members.join(", "))
        }
        Value::Object(members) => inline_table(members),
        // JSON's escapes are TOML's too, but TOML wants DEL escaped as well.
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) => {
            value.to_string().replace('\u{7f}', "\\u007F")
        }
    }
}

/// The names are those of variables, which need no quotes.
fn inline_table(members: &Map<String, Value>) -> String {
    let members: Vec<String> = members.iter().map(|(name, value)| format!("{name} = {}", toml(value))).collect();
    format!("{{ {} }}", members.join(", "))
}
