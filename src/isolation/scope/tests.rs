//! A fence against a systemd that misbehaves: served by zbus over a socket pair, with files instead of a kernel.
#![expect(
    clippy::wildcard_enum_match_arm,
    clippy::needless_pass_by_value,
    clippy::unused_self,
    reason = "most turns of the fake are as usual, and its methods have the shape that D-Bus gives them"
)]

use std::collections::VecDeque;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use rustix::process::{WaitId, WaitIdOptions, getpid};
use zbus::{OwnedObjectPath, OwnedVariant};

use super::super::{DeathFacts, FenceEvent};
use super::*;

const LIMITS: FenceLimits =
    FenceLimits { memory_max: Some(64 << 20), swap_max: Some(0), tasks_max: None, cpu_weight: None };

/// What the manager does with the next scope.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Turn {
    /// As it should.
    Well,
    /// The job's end is told before the call is answered.
    EarlySignal,
    /// Other jobs end first.
    OtherJobsFirst,
    /// It does not know the property.
    Refuse(&'static str),
    /// The bus has too much to do.
    Crowded,
    /// The name was used before.
    Exists,
    /// The job fails.
    FailedJob,
    /// The end of the job is never told.
    Silence,
    /// The scope is dead at once, its process is not (systemd issue 36781).
    Dead,
    /// The process is not in it.
    Elsewhere,
    /// The limit is not set.
    Unlimited,
    /// The connection breaks before the job's end.
    HangUp,
}

#[derive(Debug, Default)]
struct World {
    root: PathBuf,
    turns: VecDeque<Turn>,
    /// What was asked: method, unit, names of properties.
    asked: Vec<(String, String, Vec<String>)>,
    connections: u32,
    client: Option<zbus::Connection>,
    /// Nobody answers any more.
    gone: bool,
    /// `Result` of a unit that is asked for.
    result: String,
    /// `SystemState`.
    state: String,
    server: Option<zbus::Connection>,
    /// `TimeoutStopUSec` of the last scope.
    stop_within: Option<OwnedVariant>,
}

type Shared = Arc<Mutex<World>>;

#[derive(Debug, zbus::DBusError)]
#[zbus(prefix = "org.freedesktop")]
enum Refusal {
    #[zbus(error)]
    ZBus(zbus::Error),
    #[zbus(name = "systemd1.UnitExists")]
    UnitExists(String),
    #[zbus(name = "systemd1.NoSuchUnit")]
    NoSuchUnit(String),
    #[zbus(name = "DBus.Error.PropertyReadOnly")]
    PropertyReadOnly(String),
    #[zbus(name = "DBus.Error.LimitsExceeded")]
    LimitsExceeded(String),
}

struct Manager(Shared);
struct Unit(String);
struct Scope(Shared);

#[zbus::interface(name = "org.freedesktop.systemd1.Unit")]
impl Unit {
    #[zbus(property)]
    fn active_state(&self) -> String {
        self.0.clone()
    }
}

#[zbus::interface(name = "org.freedesktop.systemd1.Scope")]
impl Scope {
    #[zbus(property)]
    fn result(&self) -> String {
        self.0.lock().unwrap().result.clone()
    }
}

#[zbus::interface(name = "org.freedesktop.systemd1.Manager")]
impl Manager {
    async fn start_transient_unit(
        &self,
        name: String,
        mode: String,
        properties: Vec<(String, OwnedVariant)>,
        aux: Vec<(String, Vec<(String, OwnedVariant)>)>,
        #[zbus(connection)] connection: &zbus::Connection,
    ) -> Result<OwnedObjectPath, Refusal> {
        assert_eq!(mode, "fail");
        assert!(aux.is_empty());
        let names = properties.iter().map(|(name, _)| name.clone()).collect();
        let (turn, root) = {
            let mut world = self.0.lock().unwrap();
            world.server = Some(connection.clone());
            let stop = properties.iter().find(|(name, _)| name == "TimeoutStopUSec");
            world.stop_within = stop.map(|(_, value)| value.clone());
            world.asked.push(("StartTransientUnit".into(), name.clone(), names));
            (world.turns.pop_front().unwrap_or(Turn::Well), world.root.clone())
        };
        match turn {
            Turn::Refuse(property) if properties.iter().any(|(name, _)| name == property) => {
                return Err(Refusal::PropertyReadOnly(format!("Cannot set property {property}, or unknown property.")));
            }
            Turn::Crowded => return Err(Refusal::LimitsExceeded("too many replies".into())),
            Turn::Exists => return Err(Refusal::UnitExists("it exists".into())),
            _ => {}
        }
        let path = format!("/paddock.slice/paddock-my.slice/{name}");
        let group = root.join("cgroup").join(&path[1..]);
        std::fs::create_dir_all(&group).unwrap();
        let max = if turn == Turn::Unlimited { "max".to_owned() } else { (64 << 20).to_string() };
        let group_kill = properties.iter().any(|(name, _)| name == "OOMPolicy");
        for (file, text) in [
            ("memory.max", max.as_str()),
            ("memory.swap.max", "0"),
            ("memory.oom.group", if group_kill { "1" } else { "0" }),
            ("memory.events", "high 0\noom_kill 0\n"),
        ] {
            std::fs::write(group.join(file), text).unwrap();
        }
        let member = root.join("proc").join(std::process::id().to_string());
        std::fs::create_dir_all(&member).unwrap();
        let mut inside = path;
        if turn == Turn::Elsewhere {
            // In the very same limits, but not ours.
            inside.push_str(".other");
            std::fs::rename(&group, group.with_extension("scope.other")).unwrap();
        }
        std::fs::write(member.join("cgroup"), format!("0::{inside}\n")).unwrap();
        let state = if turn == Turn::Dead { "inactive" } else { "active" };
        let object = crate::systemd::dbus::unit_path(&name);
        connection.object_server().at(object.as_str(), Unit(state.into())).await?;
        connection.object_server().at(object.as_str(), Scope(Arc::clone(&self.0))).await?;

        let job = OwnedObjectPath::try_from("/org/freedesktop/systemd1/job/7").unwrap();
        let other = OwnedObjectPath::try_from("/org/freedesktop/systemd1/job/6").unwrap();
        let say = |job: OwnedObjectPath, result: &'static str| {
            let (connection, name) = (connection.clone(), name.clone());
            async move {
                let path = "/org/freedesktop/systemd1";
                let body = (7_u32, job, name.as_str(), result);
                let interface = "org.freedesktop.systemd1.Manager";
                connection.emit_signal(None::<&str>, path, interface, "JobRemoved", &body).await.unwrap();
            }
        };
        let (early, late) = match turn {
            Turn::EarlySignal => (Some((job.clone(), "done")), None),
            Turn::OtherJobsFirst => (Some((other, "failed")), Some("done")),
            Turn::FailedJob => (None, Some("failed")),
            Turn::Silence | Turn::HangUp => (None, None),
            _ => (None, Some("done")),
        };
        if let Some((job, result)) = early {
            say(job, result).await;
        }
        if let Some(result) = late {
            tokio::spawn(say(job.clone(), result));
        }
        if turn == Turn::HangUp {
            let connection = connection.clone();
            tokio::spawn(async move { connection.close().await });
        }
        Ok(job)
    }

    fn stop_unit(&self, name: String, mode: String) -> Result<OwnedObjectPath, Refusal> {
        assert_eq!(mode, "replace");
        self.0.lock().unwrap().asked.push(("StopUnit".into(), name.clone(), Vec::new()));
        Err(Refusal::NoSuchUnit(name))
    }

    fn abandon_scope(&self, name: String) {
        self.0.lock().unwrap().asked.push(("AbandonScope".into(), name, Vec::new()));
    }

    fn reset_failed_unit(&self, name: String) {
        self.0.lock().unwrap().asked.push(("ResetFailedUnit".into(), name, Vec::new()));
    }

    fn set_unit_properties(&self, name: String, runtime: bool, properties: Vec<(String, OwnedVariant)>) {
        assert!(runtime);
        let text = properties.iter().map(|(name, value)| format!("{name}={}", &**value)).collect();
        self.0.lock().unwrap().asked.push(("SetUnitProperties".into(), name, text));
    }

    #[zbus(property)]
    fn system_state(&self) -> String {
        self.0.lock().unwrap().state.clone()
    }

    #[zbus(property)]
    fn version(&self) -> String {
        "257.13-1".into()
    }
}

struct Fake {
    world: Shared,
    isolation: ScopeIsolation,
}

impl Fake {
    fn new(test: &str, version: &str, turns: &[Turn]) -> Self {
        let root = std::env::temp_dir().join(format!("paddock-scope-{}-{test}", std::process::id()));
        std::fs::create_dir_all(root.join("proc")).unwrap();
        let mounts = Mounts { proc: root.join("proc"), cgroup: root.join("cgroup") };
        let world = Shared::new(Mutex::new(World { root, turns: turns.iter().copied().collect(), ..World::default() }));
        let shared = Arc::clone(&world);
        let bus = Bus::connecting_with(move || {
            let shared = Arc::clone(&shared);
            Box::pin(async move {
                {
                    let mut world = shared.lock().unwrap();
                    world.connections += 1;
                    if world.gone {
                        return Err(zbus::Error::Handshake("gone".into()));
                    }
                }
                let world = Arc::clone(&shared);
                let (ours, theirs) = UnixStream::pair()?;
                let server = zbus::connection::Builder::unix_stream(theirs)
                    .server(zbus::Guid::generate())
                    .p2p()
                    .serve_at("/org/freedesktop/systemd1", Manager(shared))
                    .build();
                let client = zbus::connection::Builder::unix_stream(ours).p2p().build();
                let (server, client) = tokio::join!(server, client);
                let (server, client) = (server?, client?);
                // It lives until the client is gone.
                let gone = client.clone();
                tokio::spawn(async move {
                    gone.closed().await;
                    drop(server);
                });
                world.lock().unwrap().client = Some(client.clone());
                Ok(client)
            })
        })
        .with_job_limit(Duration::from_millis(300));
        let isolation = ScopeIsolation::new(bus, mounts, Which::System, version.to_owned(), "", "my", DRAIN);
        Self { world, isolation }
    }

    async fn enclose(&self) -> Result<Rc<dyn Fence>, String> {
        let name = FenceName { app: "my".into(), slot: 3, unique: "1f".into() };
        let enclosed = self.isolation.enclose(&name, getpid(), &LIMITS);
        tokio::time::timeout(Duration::from_mins(1), enclosed)
            .await
            .expect("it never ends")
            .map_err(|error| error.to_string())
    }

    fn asked(&self, method: &str) -> Vec<(String, Vec<String>)> {
        let world = self.world.lock().unwrap();
        world
            .asked
            .iter()
            .filter(|asked| asked.0 == method)
            .map(|(_, unit, what)| (unit.clone(), what.clone()))
            .collect()
    }

    fn tried(&self) -> Vec<String> {
        self.asked("StartTransientUnit").into_iter().map(|(unit, _)| unit).collect()
    }

    /// The scope is in this state, and its controller is asked to end it.
    async fn request_stop(&self, unit: &str, state: &str) {
        let server = self.world.lock().unwrap().server.clone().unwrap();
        let path = crate::systemd::dbus::unit_path(unit);
        let object = server.object_server().interface::<_, Unit>(path.as_str()).await.unwrap();
        object.get_mut().await.0 = state.to_owned();
        let interface = "org.freedesktop.systemd1.Scope";
        server.emit_signal(None::<&str>, path.as_str(), interface, "RequestStop", &()).await.unwrap();
    }

    async fn until_reset(&self, unit: &str) {
        let reset = async {
            while !self.asked("ResetFailedUnit").iter().any(|(asked, _)| asked == unit) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(Duration::from_mins(1), reset).await.expect("the failed unit stays loaded");
    }
}

impl Drop for Fake {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.world.lock().unwrap().root);
    }
}

const DRAIN: Drain = Drain { signal: crate::config::model::Signal(15), graceful: Duration::from_secs(30) };
const FIRST: &str = "paddock-my-3-1f.scope";
const SECOND: &str = "paddock-my-3-1f.1.scope";

#[tokio::test]
async fn a_scope_is_made_whenever_its_job_s_end_is_told() {
    for (test, turn) in [("well", Turn::Well), ("early", Turn::EarlySignal), ("others", Turn::OtherJobsFirst)] {
        let fake = Fake::new(test, "257.13-1", &[turn]);
        let fence = fake.enclose().await.unwrap();
        assert_eq!(fence.describe(), FIRST, "{turn:?}");
        assert!(fence.contains(getpid()));
        assert_eq!(fake.tried(), [FIRST]);
    }
}

#[tokio::test]
async fn an_older_systemd_gets_what_it_knows() {
    let fake = Fake::new("older", "252.4-1", &[Turn::Refuse("OOMPolicy")]);
    assert_eq!(fake.enclose().await.unwrap().describe(), SECOND);
    let asked = fake.asked("StartTransientUnit");
    assert!(asked.iter().all(|(_, names)| names.contains(&"PIDs".to_owned())));
    assert!(asked[0].1.contains(&"OOMPolicy".to_owned()));
    assert!(!asked[1].1.contains(&"OOMPolicy".to_owned()));
    // It is not asked again.
    fake.enclose().await.unwrap();
    assert!(!fake.asked("StartTransientUnit")[2].1.contains(&"OOMPolicy".to_owned()));
}

#[tokio::test]
async fn a_systemd_that_refuses_pidfds_gets_numbers() {
    let fake = Fake::new("pidfds", "255", &[Turn::Refuse("PIDFDs")]);
    assert_eq!(fake.enclose().await.unwrap().describe(), SECOND);
    assert!(fake.asked("StartTransientUnit")[1].1.contains(&"PIDs".to_owned()));
}

#[tokio::test]
async fn a_limit_that_is_refused_is_an_error_not_left_out() {
    let fake = Fake::new("refused", "257", &[Turn::Refuse("MemoryMax")]);
    let error = fake.enclose().await.map(|_| ()).unwrap_err();
    assert_eq!(error, format!("making {FIRST}: Cannot set property MemoryMax, or unknown property."));
    assert_eq!(fake.tried(), [FIRST]);
}

#[tokio::test]
async fn what_may_be_better_next_time_is_tried_under_a_fresh_name() {
    for (test, turn) in [
        ("exists", Turn::Exists),
        ("crowded", Turn::Crowded),
        ("dead", Turn::Dead),
        ("elsewhere", Turn::Elsewhere),
        ("unlimited", Turn::Unlimited),
    ] {
        let fake = Fake::new(test, "257", &[turn]);
        assert_eq!(fake.enclose().await.unwrap().describe(), SECOND, "{turn:?}");
        assert_eq!(fake.tried(), [FIRST, SECOND], "{turn:?}");
    }
}

#[tokio::test]
async fn a_scope_that_is_dead_every_time_is_an_error() {
    let fake = Fake::new("always", "257", &[Turn::Dead; 9]);
    let error = fake.enclose().await.map(|_| ()).unwrap_err();
    assert!(error.ends_with("the scope is inactive while its process lives"), "{error}");
    assert_eq!(fake.tried().len(), usize::try_from(ATTEMPTS).unwrap());
}

#[tokio::test]
async fn a_failed_or_forgotten_job_is_an_error_and_no_unit_stays_loaded() {
    let fake = Fake::new("failed", "257", &[Turn::FailedJob]);
    let error = fake.enclose().await.map(|_| ()).unwrap_err();
    assert_eq!(error, format!("making {FIRST}: the job ended as \"failed\""));
    fake.until_reset(FIRST).await;

    let fake = Fake::new("silence", "257", &[Turn::Silence]);
    let error = fake.enclose().await.map(|_| ()).unwrap_err();
    assert!(error.contains("did not answer"), "{error}");
    fake.until_reset(FIRST).await;
}

#[tokio::test]
async fn a_start_that_is_given_up_leaves_no_unit_loaded() {
    let fake = Fake::new("given-up", "257", &[Turn::Silence]);
    let name = FenceName { app: "my".into(), slot: 3, unique: "1f".into() };
    let given_up = fake.isolation.enclose(&name, getpid(), &LIMITS);
    assert!(tokio::time::timeout(Duration::from_millis(100), given_up).await.is_err());
    assert_eq!(fake.tried(), [FIRST]);
    fake.until_reset(FIRST).await;
}

#[tokio::test]
async fn a_process_that_has_ended_is_not_tried_again_and_its_unit_is_stopped() {
    let fake = Fake::new("ended", "257", &[]);
    let mut child = std::process::Command::new("true").spawn().unwrap();
    let pid = Pid::from_raw(i32::try_from(child.id()).unwrap()).unwrap();
    rustix::process::waitid(WaitId::Pid(pid), WaitIdOptions::EXITED | WaitIdOptions::NOWAIT).unwrap();
    let name = FenceName { app: "my".into(), slot: 3, unique: "1f".into() };
    assert!(fake.isolation.enclose(&name, pid, &LIMITS).await.is_err());
    assert_eq!(fake.tried(), [FIRST]);
    assert_eq!(fake.asked("StopUnit").len(), 1);
    fake.until_reset(FIRST).await;
    child.wait().unwrap();
}

#[tokio::test]
async fn a_lost_connection_is_made_again() {
    let fake = Fake::new("lost", "257", &[Turn::HangUp]);
    assert_eq!(fake.enclose().await.unwrap().describe(), SECOND);
    assert_eq!(fake.world.lock().unwrap().connections, 2);
}

#[tokio::test]
async fn the_verdict_comes_from_the_file_or_else_from_systemd() {
    let fake = Fake::new("verdict", "257", &[]);
    let fence = fake.enclose().await.unwrap();
    assert_eq!(fence.death_facts().await, DeathFacts { oom_killed: Some(false), peak: None });
    let group = fake.world.lock().unwrap().root.join("cgroup/paddock.slice/paddock-my.slice").join(FIRST);
    std::fs::write(group.join("memory.events"), "high 0\noom 1\noom_kill 1\n").unwrap();
    let killed = DeathFacts { oom_killed: Some(true), peak: LIMITS.memory_max };
    assert_eq!(fence.death_facts().await, killed);

    // systemd is about to remove the cgroup: its counters are zero, and its own look at them was before.
    std::fs::write(group.join("memory.events"), "high 0\noom 0\noom_kill 0\n").unwrap();
    std::fs::write(group.join("memory.peak"), "0\n").unwrap();
    fake.world.lock().unwrap().result = "oom-kill".into();
    assert_eq!(fence.death_facts().await, killed);

    // What was charged for a worker counts for it as well.
    std::fs::write(group.join("memory.peak"), "4096\n").unwrap();
    assert_eq!(fence.death_facts().await, DeathFacts { oom_killed: Some(false), peak: Some(4096) });

    // systemd was faster and has removed the cgroup.
    std::fs::remove_dir_all(&group).unwrap();
    for (result, oom_killed) in [("oom-kill", true), ("success", false), ("timeout", false)] {
        fake.world.lock().unwrap().result = result.into();
        assert_eq!(fence.death_facts().await.oom_killed, Some(oom_killed), "{result}");
    }
    // Another cgroup at the same path, made because somebody changed a property at that moment, knows nothing.
    std::fs::create_dir(&group).unwrap();
    std::fs::write(group.join("memory.events"), "high 0\noom 0\noom_kill 0\n").unwrap();
    fake.world.lock().unwrap().result = "oom-kill".into();
    assert_eq!(fence.death_facts().await, killed);
    std::fs::remove_dir_all(&group).unwrap();
    fence.sweep().await.unwrap();
    let asked: Vec<String> = fake.world.lock().unwrap().asked.iter().map(|asked| asked.0.clone()).collect();
    // With a controller, a stop would wait for it.
    assert!(asked.ends_with(&["AbandonScope", "StopUnit", "ResetFailedUnit"].map(str::to_owned)), "{asked:?}");
}

#[tokio::test]
async fn whoever_has_the_scope_stopped_is_heard_and_liars_are_not() {
    let fake = Fake::new("stops", "257", &[]);
    let fence = fake.enclose().await.unwrap();
    for liar in ["paddock-my-3-2f.scope", FIRST] {
        if liar != FIRST {
            let path = crate::systemd::dbus::unit_path(liar);
            let server = fake.world.lock().unwrap().server.clone().unwrap();
            server.object_server().at(path.as_str(), Unit("deactivating".into())).await.unwrap();
        }
        fake.request_stop(liar, if liar == FIRST { "active" } else { "deactivating" }).await;
        let event = tokio::time::timeout(Duration::from_millis(200), fence.next_event()).await;
        assert!(event.is_err(), "{event:?} after {liar}");
    }
    fake.request_stop(FIRST, "deactivating").await;
    let event = tokio::time::timeout(Duration::from_mins(1), fence.next_event()).await.unwrap();
    assert_eq!(event, FenceEvent::StopRequested);
    // Said once.
    assert!(tokio::time::timeout(Duration::from_millis(200), fence.next_event()).await.is_err());
}

#[tokio::test]
async fn a_scope_has_the_time_of_its_own_generation_to_drain() {
    let fake = Fake::new("drain", "257", &[]);
    for (graceful, micros) in [(30, 40_000_000_u64), (300, 310_000_000)] {
        fake.isolation.set_drain(Drain { graceful: Duration::from_secs(graceful), ..DRAIN });
        fake.enclose().await.unwrap();
        let stop = fake.world.lock().unwrap().stop_within.take().unwrap();
        assert_eq!(u64::try_from(stop).unwrap(), micros);
    }
}

#[tokio::test]
async fn whether_the_system_stops_is_systemd_s_to_say() {
    let fake = Fake::new("system", "257", &[]);
    fake.enclose().await.unwrap();
    for (state, stops) in [("running", false), ("degraded", false), ("stopping", true)] {
        fake.world.lock().unwrap().state = state.into();
        assert_eq!(fake.isolation.system_stops().await, stops, "{state}");
    }
    let client = fake.world.lock().unwrap().client.take().unwrap();
    client.close().await.unwrap();
    fake.world.lock().unwrap().gone = true;
    let stops = tokio::time::timeout(Duration::from_mins(1), fake.isolation.system_stops()).await.unwrap();
    assert!(!stops, "nobody says so");
}

#[tokio::test]
async fn without_systemd_a_verdict_is_not_guessed() {
    let fake = Fake::new("unknown", "257", &[]);
    let fence = fake.enclose().await.unwrap();
    std::fs::remove_dir_all(fake.world.lock().unwrap().root.join("cgroup")).unwrap();
    let client = fake.world.lock().unwrap().client.take().unwrap();
    client.close().await.unwrap();
    fake.world.lock().unwrap().gone = true;
    let facts = tokio::time::timeout(Duration::from_mins(1), fence.death_facts()).await.unwrap();
    assert_eq!(facts, DeathFacts { oom_killed: None, peak: None });
}

#[test]
fn versions_are_read() {
    assert_eq!(version_number("257.13-1~deb13u1"), 257);
    assert_eq!(version_number("252"), 252);
    assert_eq!(version_number("v256"), 0);
    assert_eq!(version_number(""), 0);
}
