//! systemd's manager over D-Bus: `org.freedesktop.systemd1(5)`.
//!
//! One connection, made when it is needed and made again after it was lost; the units do not care. At most
//! [`IN_FLIGHT`] calls and as many jobs are under way, each with a time limit.

use std::future::{Future, poll_fn};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures_core::Stream;
use tokio::sync::{Mutex, Semaphore};
use zbus::message::{Flags, Type};
use zbus::names::{InterfaceName, OwnedUniqueName};
use zbus::proxy::CacheProperties;
use zbus::{Connection, MatchRule, Message, MessageStream, OwnedObjectPath, OwnedVariant, Variant, fdo};

use super::stops::{Hearing, StopAsked, Stops};

/// dbus-daemon refuses a connection's 129th unanswered call (`max_replies_per_connection`) and its 513th match rule
/// (`max_match_rules_per_connection`), of which a job has one.
const IN_FLIGHT: usize = 64;
/// systemd answers in milliseconds; a manager that is busy with a thousand units takes seconds.
pub(crate) const CALL: Duration = Duration::from_secs(25);
/// A queued job: the same that other users of scopes wait.
const JOB: Duration = Duration::from_secs(30);
/// After this long without news of a job it is asked for: its end is told to nobody if it came while systemd was
/// replacing itself (`daemon-reexec`) and off the bus.
const NEWS: Duration = Duration::from_secs(2);
/// How often one call waits for systemd to be back on the bus.
const RETURNS: usize = 4;
/// Pauses between attempts to connect.
const RECONNECT: [Duration; 4] =
    [Duration::ZERO, Duration::from_millis(100), Duration::from_millis(300), Duration::from_millis(900)];

pub(super) const SYSTEMD: &str = "org.freedesktop.systemd1";
const MANAGER_PATH: &str = "/org/freedesktop/systemd1";
const UNIT: &str = "org.freedesktop.systemd1.Unit";
pub(super) const SCOPE: &str = "org.freedesktop.systemd1.Scope";
const JOB_INTERFACE: &str = "org.freedesktop.systemd1.Job";

/// A property of a unit: name and value.
pub type Property<'a> = (&'a str, Variant<'a>);

#[zbus::proxy(
    interface = "org.freedesktop.systemd1.Manager",
    default_service = "org.freedesktop.systemd1",
    default_path = "/org/freedesktop/systemd1"
)]
trait Manager {
    fn set_unit_properties(&self, name: &str, runtime: bool, properties: &[Property<'_>]) -> zbus::Result<()>;
    fn kill_unit(&self, name: &str, whom: &str, signal: i32) -> zbus::Result<()>;
    fn reset_failed_unit(&self, name: &str) -> zbus::Result<()>;
    fn list_units_by_patterns(&self, states: &[&str], patterns: &[&str]) -> zbus::Result<Vec<Listed>>;
    #[zbus(property)]
    fn version(&self) -> zbus::Result<String>;
    #[zbus(property)]
    fn system_state(&self) -> zbus::Result<String>;
    #[zbus(property)]
    fn control_group(&self) -> zbus::Result<String>;
}

/// Name, description, load state, active state, sub state, followed unit, object, job's number, type and object.
type Listed = (String, String, String, String, String, String, OwnedObjectPath, u32, String, OwnedObjectPath);

/// A unit in a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ListedUnit {
    /// Its name.
    pub name: String,
    /// `active`, `failed`, …
    pub active_state: String,
}

/// What went wrong between systemd and us.
#[derive(Debug, thiserror::Error)]
pub enum BusError {
    /// A unit of this name exists.
    #[error("a unit of this name exists already")]
    UnitExists,
    /// There is no such unit.
    #[error("there is no such unit")]
    NoSuchUnit,
    /// systemd (an older one) does not know a property, or does not let us set it. The text names it.
    #[error("{0}")]
    Property(String),
    /// Too many calls or connections.
    #[error("the bus is at its limits: {0}")]
    Limits(String),
    /// The connection went away, or there is none.
    #[error("no connection to the bus: {0}")]
    Lost(String),
    /// systemd is not on the bus, or left it before it had answered: it replaces itself, or reads its units again.
    #[error("systemd is not on the bus: {0}")]
    Away(String),
    /// No answer in time.
    #[error("systemd did not answer within {} s", .0.as_secs())]
    TimedOut(Duration),
    /// The job ended in another way than `done`.
    #[error("the job ended as \"{0}\"")]
    Job(String),
    /// Anything else.
    #[error("{0}")]
    Other(zbus::Error),
}

impl From<zbus::Error> for BusError {
    #[expect(clippy::wildcard_enum_match_arm, reason = "zbus has dozens of kinds and adds more; these need an answer")]
    fn from(error: zbus::Error) -> Self {
        match &error {
            zbus::Error::InputOutput(io) if io.kind() == std::io::ErrorKind::TimedOut => Self::TimedOut(CALL),
            zbus::Error::InputOutput(io) => Self::Lost(io.to_string()),
            zbus::Error::Connection(..) | zbus::Error::Handshake(_) => Self::Lost(error.to_string()),
            zbus::Error::MethodError(name, ..) if name.as_str() == "org.freedesktop.systemd1.UnitExists" => {
                Self::UnitExists
            }
            zbus::Error::MethodError(name, ..) if name.as_str() == "org.freedesktop.systemd1.NoSuchUnit" => {
                Self::NoSuchUnit
            }
            zbus::Error::FDO(fdo) => match &**fdo {
                fdo::Error::PropertyReadOnly(text) | fdo::Error::UnknownProperty(text) => Self::Property(text.clone()),
                fdo::Error::LimitsExceeded(text) => Self::Limits(text.clone()),
                fdo::Error::Disconnected(text) => Self::Lost(text.clone()),
                fdo::Error::Timeout(_) | fdo::Error::TimedOut(_) => Self::TimedOut(CALL),
                // The bus says so when whom it has asked is gone; the last ones, because nobody but the kernel starts it.
                fdo::Error::NoReply(text)
                | fdo::Error::NameHasNoOwner(text)
                | fdo::Error::ServiceUnknown(text)
                | fdo::Error::SpawnChildExited(text)
                | fdo::Error::SpawnExecFailed(text)
                | fdo::Error::SpawnFailed(text) => Self::Away(text.clone()),
                fdo::Error::ZBus(inner) => Self::from(inner.clone()),
                _ => Self::Other(error),
            },
            _ => Self::Other(error),
        }
    }
}

impl From<fdo::Error> for BusError {
    fn from(error: fdo::Error) -> Self {
        Self::from(zbus::Error::from(error))
    }
}

/// Which systemd.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Which {
    /// PID 1, for root.
    System,
    /// The caller's own `systemd --user`.
    User,
}

type Connecting = Pin<Box<dyn Future<Output = zbus::Result<Connection>>>>;

/// A connection, and what hears of stops of units on it, once that is wanted.
struct Connected {
    connection: Connection,
    hearing: Option<Hearing>,
}

/// systemd, reached over its bus.
pub struct Bus {
    connect: Box<dyn Fn() -> Connecting>,
    connection: Mutex<Option<Connected>>,
    stops: Stops,
    calls: Semaphore,
    jobs: Semaphore,
    job_limit: Duration,
}

impl Bus {
    /// One of this machine's.
    pub fn new(which: Which) -> Self {
        Self::connecting_with(move || {
            let builder = match which {
                Which::System => zbus::connection::Builder::system(),
                Which::User => zbus::connection::Builder::session(),
            };
            Box::pin(builder.method_timeout(CALL).build())
        })
    }

    /// One that is reached in another way.
    pub fn connecting_with(connect: impl Fn() -> Connecting + 'static) -> Self {
        Self {
            connect: Box::new(connect),
            connection: Mutex::new(None),
            stops: Stops::default(),
            calls: Semaphore::new(IN_FLIGHT),
            jobs: Semaphore::new(IN_FLIGHT),
            job_limit: JOB,
        }
    }

    /// Wait this long for the end of a job.
    #[must_use]
    pub fn with_job_limit(mut self, limit: Duration) -> Self {
        self.job_limit = limit;
        self
    }

    /// The connection: the one there is, or a new one.
    async fn connection(&self) -> Result<Connection, BusError> {
        let mut slot = self.connection.lock().await;
        if let Some(connected) = slot.as_ref().filter(|connected| !connected.connection.is_closed()) {
            return Ok(connected.connection.clone());
        }
        *slot = None;
        let mut last = None;
        for pause in RECONNECT {
            tokio::time::sleep(pause).await;
            match tokio::time::timeout(CALL, (self.connect)()).await {
                Ok(Ok(connection)) => {
                    *slot = Some(Connected { connection: connection.clone(), hearing: None });
                    return Ok(connection);
                }
                Ok(Err(error)) => last = Some(error.to_string()),
                Err(_) => return Err(BusError::TimedOut(CALL)),
            }
        }
        Err(BusError::Lost(last.unwrap_or_default()))
    }

    /// One call, which may be made twice.
    async fn call<T, F>(&self, call: impl Fn(ManagerProxy<'static>) -> F) -> Result<T, BusError>
    where
        F: Future<Output = zbus::Result<T>>,
    {
        self.persist(async || {
            let connection = self.connection().await?;
            let manager = ManagerProxy::builder(&connection).cache_properties(CacheProperties::No).build().await?;
            let _permit = self.calls.acquire().await;
            Ok(call(manager).await?)
        })
        .await
    }

    /// Ask again once systemd is back, if it left the bus before it had answered.
    async fn persist<T>(&self, ask: impl AsyncFn() -> Result<T, BusError>) -> Result<T, BusError> {
        for _ in 0..RETURNS {
            match ask().await {
                Err(BusError::Away(_)) => self.until_back(CALL).await?,
                other => return other,
            }
        }
        ask().await
    }

    /// Wait until systemd is on the bus, at most so long.
    pub async fn until_back(&self, at_most: Duration) -> Result<(), BusError> {
        let connection = self.connection().await?;
        let bus = fdo::DBusProxy::new(&connection).await?;
        let mut changes = bus.receive_name_owner_changed_with_args(&[(0, SYSTEMD)]).await?;
        let back = async {
            while owner(&connection).await.is_none() {
                if poll_fn(|cx| Pin::new(&mut changes).poll_next(cx)).await.is_none() {
                    break;
                }
            }
        };
        tokio::time::timeout(at_most, back).await.map_err(|_| BusError::TimedOut(at_most))
    }

    /// systemd's version, e.g. `257.13-1~deb13u1`.
    pub async fn version(&self) -> Result<String, BusError> {
        self.call(|manager| async move { manager.version().await }).await
    }

    /// The cgroup below which this systemd keeps its units; empty for the root.
    pub async fn control_group(&self) -> Result<String, BusError> {
        self.call(|manager| async move { manager.control_group().await }).await
    }

    /// `running`, `stopping`, …
    pub async fn system_state(&self) -> Result<String, BusError> {
        self.call(|manager| async move { manager.system_state().await }).await
    }

    /// Make a transient scope of which we are the controller, and wait until its start job is done. Whoever stops it later
    /// asks us; once this connection is gone systemd does so by itself again.
    ///
    /// If this fails or is dropped, what may still become of the unit is looked after: it does not stay loaded.
    pub async fn start_scope(&self, unit: &str, mut properties: Vec<Property<'_>>) -> Result<Arc<StopAsked>, BusError> {
        let connection = self.connection().await?;
        // Before there is anything to be stopped.
        let asked = self.stops.of(unit);
        let name = self.hear_stops(&connection).await?;
        properties.extend(name.map(|name| ("Controller", name.to_string().into())));
        let aux: [(&str, &[Property<'_>]); 0] = [];
        let body = (unit, "fail", properties, &aux[..]);
        let mut abandoned = Abandoned { unit: Some((connection.clone(), unit.to_owned())), job_limit: self.job_limit };
        let result = self.job(&connection, unit, "StartTransientUnit", &body).await;
        if matches!(result, Ok(()) | Err(BusError::UnitExists)) {
            abandoned.unit = None;
        }
        result.map(|()| asked)
    }

    /// Hear of stops on this connection; by which name systemd can tell us.
    async fn hear_stops(&self, connection: &Connection) -> Result<Option<OwnedUniqueName>, BusError> {
        let mut slot = self.connection.lock().await;
        if let Some(connected) = slot.as_mut().filter(|connected| connected.hearing.is_none()) {
            connected.hearing = Some(self.stops.listen(&connected.connection).await?);
        }
        Ok(connection.unique_name().cloned())
    }

    /// Stop a scope and wait until that is done. That there is none is no error.
    pub async fn stop(&self, unit: &str) -> Result<(), BusError> {
        let connection = self.connection().await?;
        // One with a controller would only be asked, and one that nobody is in would wait for its end in vain.
        let abandon = Message::method_call(MANAGER_PATH, "AbandonScope")
            .destination(SYSTEMD)
            .interface("org.freedesktop.systemd1.Manager")
            .with_flags(Flags::NO_REPLY_EXPECTED)
            .build(&(unit,))?;
        connection.send(&abandon).await?;
        match self.job(&connection, unit, "StopUnit", &(unit, "replace")).await {
            Err(BusError::NoSuchUnit) => Ok(()),
            other => other,
        }
    }

    /// Call a method that queues a job, and wait for the end of that job. The bus is asked for this unit's jobs only, and
    /// only meanwhile.
    async fn job<B>(&self, connection: &Connection, unit: &str, method: &str, body: &B) -> Result<(), BusError>
    where
        B: serde::Serialize + zbus::DynamicType,
    {
        let _job = self.jobs.acquire().await;
        let permit = self.calls.acquire().await;
        let mut removed = jobs_of(connection, unit).await?;
        let reply = connection
            .call_method(Some(SYSTEMD), MANAGER_PATH, Some("org.freedesktop.systemd1.Manager"), method, body)
            .await?;
        drop(permit);
        let job: OwnedObjectPath = reply.body().deserialize()?;
        let systemd = sender(&reply);
        let ended = async {
            loop {
                let news = poll_fn(|cx| Pin::new(&mut removed).poll_next(cx));
                let Ok(signal) = tokio::time::timeout(NEWS, news).await else {
                    if self.is_over(connection, &job).await {
                        // How it ended nobody can tell any more: whoever asked looks at what came of it.
                        return Ok(());
                    }
                    continue;
                };
                let Some(signal) = signal else {
                    return Err(BusError::Lost("it was closed while a job was waited for".to_owned()));
                };
                let signal = signal?;
                // Anybody on the bus can send us a signal of this name; systemd has a new name after a daemon-reexec.
                if sender(&signal) != systemd && sender(&signal) != owner(connection).await {
                    continue;
                }
                let body = signal.body();
                let (_, removed_job, _, result): (u32, zbus::ObjectPath<'_>, &str, &str) = body.deserialize()?;
                if removed_job == *job {
                    return if result == "done" { Ok(()) } else { Err(BusError::Job(result.to_owned())) };
                }
            }
        };
        tokio::time::timeout(self.job_limit, ended).await.unwrap_or(Err(BusError::TimedOut(self.job_limit)))
    }

    /// Whether systemd answers that it has no such job.
    async fn is_over(&self, connection: &Connection, job: &OwnedObjectPath) -> bool {
        let _permit = self.calls.acquire().await;
        let properties = fdo::PropertiesProxy::builder(connection).destination(SYSTEMD).path(job);
        let Ok(properties) = properties.cache_properties(CacheProperties::No).build().await else { return false };
        let Ok(interface) = InterfaceName::from_static_str(JOB_INTERFACE) else { return false };
        matches!(properties.get(interface, "State").await, Err(fdo::Error::UnknownObject(_)))
    }

    /// Change properties of a loaded unit, until it is gone.
    pub async fn set_properties(&self, unit: &str, properties: &[Property<'_>]) -> Result<(), BusError> {
        self.call(|manager| async move { manager.set_unit_properties(unit, true, properties).await }).await
    }

    /// SIGKILL to every process of a unit.
    pub async fn kill(&self, unit: &str) -> Result<(), BusError> {
        let signal = rustix::process::Signal::KILL.as_raw();
        self.call(|manager| async move { manager.kill_unit(unit, "all", signal).await }).await
    }

    /// Let a failed unit go. That there is none is no error.
    pub async fn reset_failed(&self, unit: &str) -> Result<(), BusError> {
        match self.call(|manager| async move { manager.reset_failed_unit(unit).await }).await {
            Err(BusError::NoSuchUnit) => Ok(()),
            other => other,
        }
    }

    /// The loaded units whose names match a pattern (`fnmatch(3)`).
    pub async fn units(&self, pattern: &str) -> Result<Vec<ListedUnit>, BusError> {
        let listed = self.call(|manager| async move { manager.list_units_by_patterns(&[], &[pattern]).await }).await?;
        Ok(listed.into_iter().map(|unit| ListedUnit { name: unit.0, active_state: unit.3 }).collect())
    }

    /// A unit's `ActiveState`; `inactive` for one that is not loaded.
    pub async fn active_state(&self, unit: &str) -> Result<String, BusError> {
        self.property(unit, UNIT, "ActiveState").await
    }

    /// A scope's `Result`; `success` for one that is not loaded.
    pub async fn scope_result(&self, unit: &str) -> Result<String, BusError> {
        self.property(unit, SCOPE, "Result").await
    }

    /// A scope's cgroup; empty for one that has none.
    pub async fn scope_control_group(&self, unit: &str) -> Result<String, BusError> {
        self.property(unit, SCOPE, "ControlGroup").await
    }

    async fn property(&self, unit: &str, interface: &'static str, name: &str) -> Result<String, BusError> {
        self.persist(async || {
            let connection = self.connection().await?;
            let _permit = self.calls.acquire().await;
            let properties = fdo::PropertiesProxy::builder(&connection)
                .destination(SYSTEMD)
                .path(unit_path(unit))
                .cache_properties(CacheProperties::No)
                .build()
                .await?;
            let value: OwnedVariant = properties.get(InterfaceName::from_static_str(interface)?, name).await?;
            String::try_from(value).map_err(BusError::Other)
        })
        .await
    }
}

/// A unit that was asked for by somebody who will not wait for it.
struct Abandoned {
    unit: Option<(Connection, String)>,
    job_limit: Duration,
}

impl Drop for Abandoned {
    fn drop(&mut self) {
        let (Some((connection, unit)), Ok(runtime)) = (self.unit.take(), tokio::runtime::Handle::try_current()) else {
            return;
        };
        let job_limit = self.job_limit;
        // A scope whose process died before systemd got to it fails, and a failed unit stays loaded until it is reset.
        runtime.spawn(async move {
            let Ok(mut removed) = jobs_of(&connection, &unit).await else { return };
            let ended = poll_fn(|cx| Pin::new(&mut removed).poll_next(cx));
            let _ = tokio::time::timeout(job_limit, ended).await;
            let builder = ManagerProxy::builder(&connection).cache_properties(CacheProperties::No);
            if let Ok(manager) = builder.build().await {
                let _ = manager.reset_failed_unit(&unit).await;
            }
        });
    }
}

async fn jobs_of(connection: &Connection, unit: &str) -> Result<MessageStream, BusError> {
    let rule = MatchRule::builder()
        .msg_type(Type::Signal)
        .sender(SYSTEMD)
        .path(MANAGER_PATH)
        .interface("org.freedesktop.systemd1.Manager")
        .member("JobRemoved")
        .arg(2, unit)
        .build();
    Ok(MessageStream::for_match_rule(rule?, connection, None).await?)
}

/// Who is systemd on this bus now.
async fn owner(connection: &Connection) -> Option<OwnedUniqueName> {
    let bus = fdo::DBusProxy::new(connection).await.ok()?;
    bus.get_name_owner(SYSTEMD.try_into().ok()?).await.ok()
}

fn sender(message: &Message) -> Option<OwnedUniqueName> {
    message.header().sender().map(|name| name.to_owned().into())
}

/// The object of a unit, loaded or not: `sd_bus_path_encode(3)`.
pub(crate) fn unit_path(unit: &str) -> String {
    use std::fmt::Write as _;
    let mut path = format!("{MANAGER_PATH}/unit/");
    for (index, byte) in unit.bytes().enumerate() {
        if byte.is_ascii_alphabetic() || (index > 0 && byte.is_ascii_digit()) {
            path.push(char::from(byte));
        } else {
            // Writing to a String cannot fail.
            let _ = write!(path, "_{byte:02x}");
        }
    }
    path
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_unit_has_the_path_that_systemd_gives_it() {
        assert_eq!(
            unit_path(r"paddock-my\x2dshop-0-1.scope"),
            "/org/freedesktop/systemd1/unit/paddock_2dmy_5cx2dshop_2d0_2d1_2escope"
        );
        assert_eq!(unit_path("0.scope"), "/org/freedesktop/systemd1/unit/_30_2escope");
    }
}
