//! Varlink messages: JSON text into requests, answers into JSON text. See varlink.org for the protocol; the interface
//! is in `io.paddock.Control.varlink` beside this file.

use rustix::process::Pid;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::status::StatusReport;
use crate::config::model::Signal;
use crate::supervisor::action::Response;

/// paddock's own interface.
pub const INTERFACE: &str = "io.paddock.Control";
/// Its definition.
pub const DESCRIPTION: &str = include_str!("io.paddock.Control.varlink");
/// The interface that every Varlink service has.
const SERVICE: &str = "org.varlink.service";
const SERVICE_DESCRIPTION: &str = "\
interface org.varlink.service
method GetInfo() -> (vendor: string, product: string, version: string, url: string, interfaces: []string)
method GetInterfaceDescription(interface: string) -> (description: string)
error InterfaceNotFound (interface: string)
error MethodNotFound (method: string)
error MethodNotImplemented (method: string)
error InvalidParameter (parameter: string)
error PermissionDenied ()
error ExpectedMore ()
";

/// The longest request, in bytes.
pub const MAX_REQUEST: usize = 64 * 1024;
/// The longest answer that a client takes, in bytes: a status of 10,000 workers fits.
pub const MAX_REPLY: usize = 16 * 1024 * 1024;

/// What a client wants the loop to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ControlRequest {
    /// Say how things are.
    Status,
    /// Read the configuration again and replace every worker.
    Reload {
        /// Answer when the roll is over, not when it has begun.
        wait: bool,
    },
    /// Replace one slot's worker.
    Recycle {
        /// Which.
        slot: u32,
    },
    /// Have so many workers.
    Scale {
        /// At least 1.
        workers: u32,
    },
    /// Send a signal.
    Signal {
        /// Which, 1 to 64.
        signal: Signal,
        /// To which slot's worker; none: all.
        slot: Option<u32>,
    },
    /// Stop the app.
    Stop {
        /// Kill instead of drain.
        fast: bool,
    },
}

/// The loop's answer.
#[derive(Debug, Clone, PartialEq)]
pub enum ControlReply {
    /// To [`ControlRequest::Status`].
    Status(Box<StatusReport>),
    /// It is done.
    Done {
        /// A sentence.
        message: String,
    },
    /// It is not done, or was undone: exit code 1.
    Failed {
        /// A sentence that says why.
        reason: String,
        /// Last lines of the worker that is to blame, oldest first.
        last_words: Vec<String>,
    },
    /// The request or the configuration file is wrong: exit code 2.
    Invalid {
        /// The whole diagnostic.
        reason: String,
    },
}

impl From<Response> for ControlReply {
    fn from(response: Response) -> Self {
        match response {
            Response::Done { message } => Self::Done { message },
            Response::Failed { reason, last_words } => Self::Failed { reason, last_words },
            Response::Invalid { reason } => Self::Invalid { reason },
        }
    }
}

/// Who is at the other end of a connection, as the kernel saw it when it was made (`SO_PEERCRED`, unix(7)).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Peer {
    /// Its effective user.
    pub uid: u32,
    /// Its process, for messages only; none: it is of another pid namespace.
    pub pid: Option<Pid>,
}

/// One message from a client.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct Envelope {
    pub(crate) method: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(crate) parameters: Option<Map<String, Value>>,
    /// Many answers are welcome.
    #[serde(default, skip_serializing_if = "is_false")]
    pub(crate) more: bool,
    /// No answer is wanted.
    #[serde(default, skip_serializing_if = "is_false")]
    pub(crate) oneway: bool,
    /// Another protocol is to follow; we have none.
    #[serde(default, skip_serializing_if = "is_false")]
    pub(crate) upgrade: bool,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's skip_serializing_if passes a reference")]
const fn is_false(value: &bool) -> bool {
    !*value
}

/// What a message asks for.
#[derive(Debug, PartialEq)]
pub(crate) enum Asked {
    /// Something for the loop.
    Loop(ControlRequest),
    /// Something that needs no loop: the answer.
    Known(Answer),
}

/// The body of an answer: parameters, or an error with its own.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Answer {
    /// `parameters`
    Parameters(Value),
    /// `error` and `parameters`
    Error(String, Value),
}

impl Answer {
    /// An error of paddock's own interface.
    pub(crate) fn error(name: &str, parameters: Value) -> Self {
        Self::Error(format!("{INTERFACE}.{name}"), parameters)
    }

    /// `Failed` without last words.
    pub(crate) fn failed(reason: &str) -> Self {
        Self::error("Failed", json!({ "reason": reason, "last_words": [] }))
    }

    fn service_error(name: &str, key: &str, value: &str) -> Self {
        Self::Error(format!("{SERVICE}.{name}"), json!({ key: value }))
    }

    /// The message, with its zero byte.
    pub(crate) fn encode(&self, continues: bool) -> Vec<u8> {
        let mut object = Map::new();
        match self {
            Self::Parameters(parameters) => {
                object.insert("parameters".to_owned(), parameters.clone());
            }
            Self::Error(name, parameters) => {
                object.insert("error".to_owned(), Value::from(name.as_str()));
                object.insert("parameters".to_owned(), parameters.clone());
            }
        }
        if continues {
            object.insert("continues".to_owned(), Value::from(true));
        }
        // A zero character inside a string is written \u0000, so this is the only zero byte.
        let mut bytes = Value::Object(object).to_string().into_bytes();
        bytes.push(0);
        bytes
    }
}

impl From<ControlReply> for Answer {
    fn from(reply: ControlReply) -> Self {
        match reply {
            // Strings, numbers and maps with string keys always become JSON.
            ControlReply::Status(report) => {
                serde_json::to_value(&*report).map_or_else(|error| Self::failed(&error.to_string()), Self::Parameters)
            }
            ControlReply::Done { message } => Self::Parameters(json!({ "message": message })),
            ControlReply::Failed { reason, last_words } => {
                Self::error("Failed", json!({ "reason": reason, "last_words": last_words }))
            }
            ControlReply::Invalid { reason } => Self::error("Invalid", json!({ "reason": reason })),
        }
    }
}

/// Understand a message for the manager of `app`.
pub(crate) fn understand(envelope: Envelope, app: &str) -> Asked {
    request(envelope, app).unwrap_or_else(Asked::Known)
}

fn request(envelope: Envelope, app: &str) -> Result<Asked, Answer> {
    let Envelope { method, parameters, upgrade, .. } = envelope;
    if upgrade {
        return Err(Answer::service_error("InvalidParameter", "parameter", "upgrade"));
    }
    let (interface, name) = method.rsplit_once('.').unwrap_or_default();
    let mut parameters = Parameters(parameters.unwrap_or_default());
    if interface == SERVICE {
        return service(name, parameters).map(Asked::Known);
    }
    if interface != INTERFACE {
        return Err(Answer::service_error("InterfaceNotFound", "interface", interface));
    }
    let meant: Option<String> = parameters.optional("app")?;
    if meant.is_some_and(|meant| meant != app) {
        return Err(Answer::error("WrongApp", json!({ "app": app })));
    }
    let asked = match name {
        "Status" => Asked::Loop(ControlRequest::Status),
        "Reload" => Asked::Loop(ControlRequest::Reload { wait: parameters.optional("wait")?.unwrap_or(true) }),
        "Recycle" => Asked::Loop(ControlRequest::Recycle { slot: parameters.required("slot")? }),
        "Scale" => Asked::Loop(ControlRequest::Scale { workers: parameters.required("workers")? }),
        "Signal" => {
            let number: i32 = parameters.required("signal")?;
            if !(1..=64).contains(&number) {
                return Err(Answer::service_error("InvalidParameter", "parameter", "signal"));
            }
            let slot = parameters.optional("slot")?;
            Asked::Loop(ControlRequest::Signal { signal: Signal(number), slot })
        }
        "Stop" => Asked::Loop(ControlRequest::Stop { fast: parameters.optional("fast")?.unwrap_or(false) }),
        "Reap" => Asked::Known(Answer::failed(&format!(
            "the manager of {app} is alive (pid {}); reap is for what a dead manager left, use stop",
            std::process::id()
        ))),
        _ => return Err(Answer::service_error("MethodNotFound", "method", &method)),
    };
    parameters.end()?;
    Ok(asked)
}

/// The methods of `org.varlink.service`.
fn service(name: &str, mut parameters: Parameters) -> Result<Answer, Answer> {
    match name {
        "GetInfo" => {
            parameters.end()?;
            Ok(Answer::Parameters(json!({
                "vendor": "paddock",
                "product": "paddock",
                "version": env!("CARGO_PKG_VERSION"),
                "url": env!("CARGO_PKG_REPOSITORY"),
                "interfaces": [SERVICE, INTERFACE],
            })))
        }
        "GetInterfaceDescription" => {
            let interface: String = parameters.required("interface")?;
            parameters.end()?;
            let description = match interface.as_str() {
                SERVICE => SERVICE_DESCRIPTION,
                INTERFACE => DESCRIPTION,
                _ => {
                    return Err(Answer::service_error("InterfaceNotFound", "interface", &interface));
                }
            };
            Ok(Answer::Parameters(json!({ "description": description })))
        }
        _ => Err(Answer::service_error("MethodNotFound", "method", &format!("{SERVICE}.{name}"))),
    }
}

/// A call's parameters, taken one by one.
struct Parameters(Map<String, Value>);

impl Parameters {
    /// Null counts as left out.
    fn optional<T: DeserializeOwned>(&mut self, name: &str) -> Result<Option<T>, Answer> {
        match self.0.remove(name) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => serde_json::from_value(value).map(Some).map_err(|_| Self::invalid(name)),
        }
    }

    fn required<T: DeserializeOwned>(&mut self, name: &str) -> Result<T, Answer> {
        self.optional(name)?.ok_or_else(|| Self::invalid(name))
    }

    /// Nothing unknown may be left: a misspelt parameter must not be ignored.
    fn end(self) -> Result<(), Answer> {
        self.0.keys().next().map_or(Ok(()), |name| Err(Self::invalid(name)))
    }

    fn invalid(name: &str) -> Answer {
        Answer::service_error("InvalidParameter", "parameter", name)
    }
}
