//! One value at a time: from what was written to what it means.
#![expect(clippy::wildcard_enum_match_arm, reason = "a value of whatever other kind is wrong, and says so")]

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::diagnostic::Origin;
use super::model::{BindAddress, IsolationChoice, LogFormat, Ready, Share, Signal, Size, WORKERS_MAX, Workers};
use super::raw::{Node, Value};
use super::signal;
use super::units::{parse_permyriad, parse_size, parse_time};

/// What is wrong with a value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Problem {
    pub(super) message: String,
    pub(super) remedy: Option<String>,
    /// Where, if not the whole value.
    pub(super) at: Option<Origin>,
}

impl Problem {
    pub(super) fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), remedy: None, at: None }
    }

    pub(super) fn remedy(mut self, remedy: impl Into<String>) -> Self {
        self.remedy = Some(remedy.into());
        self
    }

    fn wrong_type(node: &Node, expected: &str) -> Self {
        Self::new(format!("{} where {expected} is expected", node.value.kind()))
    }
}

/// A value's meaning, or what is wrong with it.
pub(super) type Parsed<T> = Result<T, Problem>;

/// A text without NUL bytes, which no path, argument or variable can hold.
pub(super) fn text(node: &Node) -> Parsed<String> {
    match &node.value {
        Value::Text(text) if text.contains('\0') => Err(Problem::new("contains a NUL character")),
        Value::Text(text) => Ok(text.clone()),
        _ => Err(Problem::wrong_type(node, "a text")),
    }
}

/// An app's name: `[A-Za-z0-9][A-Za-z0-9_.-]{0,47}`.
pub(super) fn app_name(node: &Node) -> Parsed<String> {
    let text = text(node)?;
    check_app_name(&text)?;
    Ok(text)
}

/// Whether an app may have this name.
pub(super) fn check_app_name(text: &str) -> Parsed<()> {
    let first = text.chars().next().is_some_and(|c| c.is_ascii_alphanumeric());
    let rest = text.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-'));
    if first && rest && text.len() <= 48 {
        return Ok(());
    }
    let message = format!("{text:?} cannot be an app's name");
    let remedy = "at most 48 letters, digits, `_`, `.` and `-`, the first one a letter or digit";
    Err(Problem::new(message).remedy(remedy))
}

/// A user or group, by name or number.
pub(super) fn account(node: &Node) -> Parsed<String> {
    let text = match &node.value {
        Value::Integer(digits, 10) => digits.clone(),
        _ => text(node)?,
    };
    let good = !text.is_empty()
        && !text.starts_with('-')
        && !text.contains(|c: char| c.is_control() || c.is_whitespace() || matches!(c, ':' | '/'));
    if good { Ok(text) } else { Err(Problem::new(format!("{text:?} is no name or number of a user or group"))) }
}

/// A path from the root; a flag's path may be relative to where the manager was started.
pub(super) fn path(node: &Node) -> Parsed<PathBuf> {
    let text = text(node)?;
    let path = PathBuf::from(&text);
    if path.is_absolute() {
        return Ok(path);
    }
    if node.is_untyped() && !text.is_empty() {
        return std::path::absolute(&path).map_err(|error| Problem::new(format!("no current directory: {error}")));
    }
    Err(Problem::new(format!("{text:?} is not an absolute path")).remedy("begin it with `/`"))
}

/// A whole number.
pub(super) fn number(node: &Node) -> Parsed<u64> {
    let (digits, radix) = match &node.value {
        Value::Integer(digits, radix) => (digits.as_str(), *radix),
        Value::Text(digits) if node.is_untyped() => (digits.as_str(), 10),
        _ => return Err(Problem::wrong_type(node, "an integer")),
    };
    match i128::from_str_radix(digits, radix) {
        Ok(number) if number < 0 => Err(Problem::new("negative")),
        Ok(number) => u64::try_from(number).map_err(|_| Problem::new("too large")),
        Err(_) if digits.bytes().all(|byte| byte.is_ascii_digit()) && !digits.is_empty() => {
            Err(Problem::new("too large"))
        }
        Err(_) => Err(Problem::new(format!("{digits:?} is not a whole number"))),
    }
}

/// A whole number within bounds.
pub(super) fn number_within(node: &Node, low: u64, high: u64) -> Parsed<u64> {
    match number(node)? {
        number if number < low => Err(Problem::new(format!("{number} is less than {low}"))),
        number if number > high => Err(Problem::new(format!("{number} is more than {high}"))),
        number => Ok(number),
    }
}

/// The same for what is counted in 32 bits.
pub(super) fn count_within(node: &Node, low: u32, high: u32) -> Parsed<u32> {
    let number = number_within(node, low.into(), high.into())?;
    u32::try_from(number).map_err(|_| Problem::new("too large"))
}

/// A whole number, or `infinity`.
pub(super) fn number_or_infinity(node: &Node) -> Parsed<u64> {
    match &node.value {
        Value::Text(text) if text.trim() == "infinity" => Ok(u64::MAX),
        Value::Text(_) if !node.is_untyped() => {
            Err(Problem::new("a text that is not \"infinity\" where an integer is expected"))
        }
        _ => number_within(node, 1, u64::MAX),
    }
}

/// True or false.
pub(super) fn boolean(node: &Node) -> Parsed<bool> {
    match &node.value {
        Value::Boolean(boolean) => Ok(*boolean),
        Value::Text(text) if node.is_untyped() => match text.as_str() {
            "true" | "yes" | "on" | "1" => Ok(true),
            "false" | "no" | "off" | "0" => Ok(false),
            _ => Err(Problem::new(format!("{text:?} is neither true nor false"))),
        },
        _ => Err(Problem::wrong_type(node, "true or false")),
    }
}

/// `workers`.
pub(super) fn workers(node: &Node) -> Parsed<Workers> {
    match &node.value {
        Value::Text(text) if text == "auto" => Ok(Workers::Auto),
        Value::Text(text) if !node.is_untyped() => {
            let problem = Problem::new(format!("{text:?} is neither a number nor \"auto\""));
            Err(match text.trim().parse::<u32>() {
                Ok(number) => problem.remedy(format!("write {number} without quotes")),
                Err(_) => problem,
            })
        }
        _ => match number(node)? {
            0 => Err(Problem::new("an app has at least 1 worker")),
            _ => Ok(Workers::Count(count_within(node, 1, WORKERS_MAX)?)),
        },
    }
}

/// One of some words.
fn word<T: Copy>(node: &Node, words: &[(&str, T)]) -> Parsed<T> {
    let text = text(node)?;
    let found = words.iter().find(|(word, _)| *word == text);
    if let Some((_, meaning)) = found {
        return Ok(*meaning);
    }
    let list: Vec<String> = words.iter().map(|(word, _)| format!("{word:?}")).collect();
    let remedy = format!("one of {}", list.join(", "));
    Err(Problem::new(format!("{text:?} means nothing here")).remedy(remedy))
}

/// `ready`.
pub(super) fn ready(node: &Node) -> Parsed<Ready> {
    word(node, &[("notify", Ready::Notify), ("settle", Ready::Settle)])
}

/// `isolation`.
pub(super) fn isolation(node: &Node) -> Parsed<IsolationChoice> {
    let words = [
        ("auto", IsolationChoice::Auto),
        ("scope", IsolationChoice::Scope),
        ("cgroup", IsolationChoice::Cgroup),
        ("none", IsolationChoice::None),
    ];
    word(node, &words)
}

/// `log.format`.
pub(super) fn log_format(node: &Node) -> Parsed<LogFormat> {
    let words = [
        ("auto", LogFormat::Auto),
        ("journald", LogFormat::Journald),
        ("text", LogFormat::Text),
        ("json", LogFormat::Json),
    ];
    word(node, &words)
}

/// `drain_signal`: a signal that a program can handle.
pub(super) fn drain_signal(node: &Node) -> Parsed<Signal> {
    let text = match &node.value {
        Value::Integer(digits, 10) => digits.clone(),
        _ => text(node)?,
    };
    let Some(signal) = signal::parse(&text) else {
        let problem = Problem::new(format!("{text:?} is no signal"));
        return Err(problem.remedy("a name such as \"TERM\", \"HUP\" or \"QUIT\""));
    };
    if signal == signal::KILL || signal == signal::STOP {
        let problem = Problem::new(format!("no program can handle {}", signal::name(signal)));
        return Err(problem.remedy("take one that it drains on, such as \"TERM\""));
    }
    Ok(signal)
}

/// An octal mode: a text of octal digits, or an integer written `0o022`.
pub(super) fn mode(node: &Node) -> Parsed<u32> {
    let digits = match &node.value {
        Value::Integer(digits, 8) | Value::Text(digits) => digits.as_str(),
        Value::Integer(digits, _) => {
            let problem = Problem::new("a decimal number where an octal mode is expected");
            return Err(problem.remedy(format!("write it in quotes: \"{digits}\"")));
        }
        _ => return Err(Problem::wrong_type(node, "a text of octal digits")),
    };
    let octal = !digits.is_empty() && digits.bytes().all(|byte| matches!(byte, b'0'..=b'7'));
    match u32::from_str_radix(digits, 8) {
        Ok(mode) if octal && mode <= 0o777 => Ok(mode),
        _ => {
            let problem = Problem::new(format!("{digits:?} is not an octal mode"));
            Err(problem.remedy("0000 to 0777, such as \"0022\""))
        }
    }
}

/// A size or a percentage.
pub(super) fn size(node: &Node) -> Parsed<Size> {
    let text = match &node.value {
        Value::Integer(..) => return Ok(Size::Bytes(number(node)?)),
        Value::Text(text) => text.trim(),
        _ => return Err(Problem::wrong_type(node, "a size such as \"512M\"")),
    };
    if text == "infinity" {
        return Ok(Size::Infinity);
    }
    if let Some(share) = parse_permyriad(text) {
        return share.map(Size::Percent).map_err(|error| Problem::new(error.to_string()).remedy(error.remedy()));
    }
    parse_size(text).map(Size::Bytes).map_err(|error| Problem::new(error.to_string()).remedy(error.remedy()))
}

/// A number, or a percentage of another one.
pub(super) fn share(node: &Node) -> Parsed<Share> {
    if let Value::Text(text) = &node.value {
        if let Some(share) = parse_permyriad(text.trim()) {
            return share.map(Share::Percent).map_err(|error| Problem::new(error.to_string()).remedy(error.remedy()));
        }
        let digits = Node { value: Value::Integer(text.trim().to_owned(), 10), origin: node.origin.clone() };
        return number(&digits)
            .map(Share::Absolute)
            .map_err(|problem| problem.remedy("a number, or a percentage such as \"5%\""));
    }
    number(node).map(Share::Absolute)
}

/// A span of time; an integer is seconds.
pub(super) fn time(node: &Node) -> Parsed<Duration> {
    match &node.value {
        Value::Integer(..) => Ok(Duration::from_secs(number_within(node, 0, u64::from(u32::MAX))?)),
        Value::Text(text) => parse_time(text).map_err(|error| Problem::new(error.to_string()).remedy(error.remedy())),
        Value::Float(digits) => {
            let remedy = format!("write it with its unit: \"{digits}s\"");
            Err(Problem::wrong_type(node, "a time such as \"30s\"").remedy(remedy))
        }
        _ => Err(Problem::wrong_type(node, "a time such as \"30s\"")),
    }
}

/// A span of time that neither is zero nor never ends.
pub(super) fn some_time(node: &Node) -> Parsed<Duration> {
    match time(node)? {
        Duration::ZERO => Err(Problem::new("zero makes no sense here").remedy("such as \"1s\"")),
        Duration::MAX => Err(Problem::new("infinity makes no sense here").remedy("such as \"30s\"")),
        time => Ok(time),
    }
}

/// A span of time that may be zero but ends.
pub(super) fn bounded_time(node: &Node) -> Parsed<Duration> {
    match time(node)? {
        Duration::MAX => Err(Problem::new("infinity makes no sense here").remedy("such as \"2s\"")),
        time => Ok(time),
    }
}

/// A bound that may be infinite.
pub(super) fn bound(node: &Node) -> Parsed<Duration> {
    match time(node)? {
        Duration::ZERO => {
            Err(Problem::new("zero leaves no time at all").remedy("such as \"30s\", or \"infinity\" for no bound"))
        }
        time => Ok(time),
    }
}

/// A span of time for which both zero and infinity mean that there is none.
pub(super) fn optional_time(node: &Node) -> Parsed<Option<Duration>> {
    match time(node)? {
        Duration::ZERO | Duration::MAX => Ok(None),
        time => Ok(Some(time)),
    }
}

/// The longest path of a unix socket: `sun_path` of unix(7) less its final NUL.
const LONGEST_SOCKET_PATH: usize = 107;

/// `IP:PORT` or `unix:/PATH`.
pub(super) fn bind(node: &Node) -> Parsed<BindAddress> {
    let text = text(node)?;
    if let Some(path) = text.strip_prefix("unix:") {
        let problem = if path.starts_with('@') {
            Problem::new("abstract unix sockets cannot be bound").remedy("write unix:/PATH")
        } else if !path.starts_with('/') {
            Problem::new(format!("{path:?} is not an absolute path")).remedy("write unix:/PATH")
        } else if path.len() > LONGEST_SOCKET_PATH {
            let message = format!("the path has {} bytes", path.len());
            Problem::new(message).remedy(format!("at most {LONGEST_SOCKET_PATH} (unix(7))"))
        } else if path.ends_with('/') {
            Problem::new(format!("{path:?} is a directory")).remedy("name the socket itself")
        } else {
            return Ok(BindAddress::Unix(Path::new(path).to_path_buf()));
        };
        return Err(problem);
    }
    if let Ok(address) = text.parse::<SocketAddr>() {
        return Ok(BindAddress::Tcp(address));
    }
    Err(not_an_address(&text))
}

/// The remedy that fits what was probably meant.
fn not_an_address(text: &str) -> Problem {
    let problem = Problem::new(format!("{text:?} is no address to bind"));
    if text.starts_with('/') {
        return problem.remedy(format!("for a unix socket write \"unix:{text}\""));
    }
    let (host, port) = text.rsplit_once(':').unwrap_or(("", text));
    let Ok(port) = port.parse::<u16>() else {
        return problem.remedy("write IP:PORT, such as \"127.0.0.1:8000\", or \"unix:/PATH\"");
    };
    match host {
        "" => problem.remedy(format!("write \"127.0.0.1:{port}\", or \"0.0.0.0:{port}\" for every interface")),
        "*" => problem.remedy(format!("write \"0.0.0.0:{port}\" or \"[::]:{port}\"")),
        "localhost" => problem.remedy(format!("write \"{}:{port}\"", Ipv4Addr::LOCALHOST)),
        host if host.contains(':') && !host.starts_with('[') => problem.remedy(format!("write \"[{host}]:{port}\"")),
        _ => problem.remedy("names are not looked up: write the IP address"),
    }
}

/// A socket's name in LISTEN_FDNAMES, as sd_listen_fds_with_names(3) allows it: at most 255 printable ASCII
/// characters, no `:`.
pub(super) fn socket_name(node: &Node) -> Parsed<String> {
    let text = text(node)?;
    let printable = text.bytes().all(|byte| (b' '..=b'~').contains(&byte) && byte != b':');
    if printable && !text.is_empty() && text.len() <= 255 {
        return Ok(text);
    }
    let problem = Problem::new(format!("{text:?} cannot be a socket's name"));
    Err(problem.remedy("at most 255 ASCII characters, no `:`"))
}

/// An array's members.
pub(super) fn list(node: &Node) -> Parsed<&[Node]> {
    match &node.value {
        Value::List(nodes) => Ok(nodes),
        Value::Text(text) => {
            let problem = Problem::wrong_type(node, "an array");
            let words: Vec<&str> = text.split_whitespace().collect();
            Err(problem.remedy(format!("write {words:?}")))
        }
        _ => Err(Problem::wrong_type(node, "an array")),
    }
}
