//! What the next manager needs if this one ends without a clean stop: the supervisor as it is, the deeds that were
//! about to be done, and by which names workers are found again.
//!
//! Written before deeds are done (`state`), and marked done after (`performed`): a manager that dies in between leaves
//! the list of what it may not have done. Both live in the app's runtime directory, so they do not outlast a boot.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::num::NonZeroU32;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, OFlags};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::isolation::Mode;
use crate::supervisor::Supervisor;
use crate::supervisor::action::{Action, Start};
use crate::supervisor::id::{ConfigId, RequestId};
use crate::supervisor::shelf::put_on_shelf;
use crate::supervisor::time::Time;

use super::generation::Prepared;

/// The form that this version writes. It reads this one and every older one.
const VERSION: u32 = 3;

/// From each older version to the next; the first is that of version 1.
const STEPS: [fn(&mut serde_json::Map<String, Value>); VERSION as usize - 1] = [say_who_wrote, put_releases_on_shelf];

/// More than ten thousand workers need.
const STATE_MAX: u64 = 64 << 20;

const STATE: &str = "state";
const NEW_STATE: &str = "state.new";
const PERFORMED: &str = "performed";

/// Everything, as it is read back.
#[derive(Debug, Serialize, Deserialize)]
pub struct State {
    version: u32,
    /// Which version of paddock wrote it, for people.
    pub paddock: String,
    /// `/proc/sys/kernel/random/boot_id` (`random(4)`): the clock and the processes are those of one boot.
    boot: String,
    sequence: u64,
    /// How workers are fenced; the next manager must do likewise, or it would not find them.
    pub isolation: Mode,
    /// The decisions.
    pub supervisor: Supervisor,
    /// What was about to be done.
    pub pending: Vec<Action>,
    /// By which names workers are found.
    pub workers: Vec<Record>,
    /// Configurations in use.
    pub configs: BTreeMap<ConfigId, Prepared>,
    /// The last number given to a configuration.
    pub last_config: ConfigId,
    /// The last number given to a request: its clients are gone, nobody else must get their answers.
    pub last_request: RequestId,
}

/// The same, as it is written.
#[derive(Serialize)]
struct StateView<'a> {
    version: u32,
    paddock: &'a str,
    boot: &'a str,
    sequence: u64,
    isolation: Mode,
    supervisor: &'a Supervisor,
    pending: &'a [Action],
    workers: Vec<RecordView<'a>>,
    configs: BTreeMap<ConfigId, &'a Prepared>,
    last_config: ConfigId,
    last_request: RequestId,
}

/// One worker, as far as only the runtime knows it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// What it was started as.
    pub start: Start,
    /// When.
    pub begun: Time,
    /// What makes its fence's name unlike every other.
    pub unique: String,
    /// Its first process; none: not known yet.
    pub pid: Option<u32>,
}

/// The same, as it is written: a replacement waits for that, so nothing is copied.
#[derive(Serialize)]
pub struct RecordView<'a> {
    /// See [`Record::start`].
    pub start: &'a Start,
    /// See [`Record::begun`].
    pub begun: Time,
    /// See [`Record::unique`].
    pub unique: Cow<'a, str>,
    /// See [`Record::pid`].
    pub pid: Option<u32>,
}

impl<'a> From<&'a Record> for RecordView<'a> {
    fn from(record: &'a Record) -> Self {
        let Record { start, begun, unique, pid } = record;
        Self { start, begun: *begun, unique: Cow::Borrowed(unique), pid: *pid }
    }
}

/// What to write down besides the supervisor.
pub struct Books<'a> {
    /// How workers are fenced.
    pub isolation: Mode,
    /// What is about to be done.
    pub pending: &'a [Action],
    /// All workers.
    pub workers: Vec<RecordView<'a>>,
    /// Configurations in use.
    pub configs: BTreeMap<ConfigId, &'a Prepared>,
    /// See [`State::last_config`].
    pub last_config: ConfigId,
    /// See [`State::last_request`].
    pub last_request: RequestId,
}

/// Why a state cannot be taken over.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// Reading failed.
    #[error("reading {}: {source}", path.display())]
    Read {
        /// Which file.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// It makes no sense.
    #[error("{} is damaged: {source}", path.display())]
    Damaged {
        /// Which file.
        path: PathBuf,
        /// Where.
        source: serde_json::Error,
    },
    /// A newer paddock wrote it.
    #[error("{} is of version {version}, and this paddock reads up to {VERSION}", path.display())]
    Newer {
        /// Which file.
        path: PathBuf,
        /// Which version.
        version: u32,
    },
    /// It belongs to somebody who should not have been able to write it.
    #[error("{} does not belong to this user", path.display())]
    Foreign {
        /// Which file.
        path: PathBuf,
    },
}

/// The two files.
#[derive(Debug)]
pub struct StateFile {
    directory: PathBuf,
    boot: String,
    sequence: u64,
    performed: Option<File>,
    /// Whether the last write failed: said once, not at every turn.
    failing: bool,
    /// What was written last: its room is used again, for a replacement waits for every write.
    text: Vec<u8>,
}

impl State {
    /// Whether it is of this boot: processes and clock readings of another one mean nothing.
    pub fn is_of_this_boot(&self) -> bool {
        self.boot == boot_id()
    }
}

impl StateFile {
    /// In the app's runtime directory; nothing is written yet.
    pub fn new(directory: &Path) -> Self {
        Self {
            directory: directory.to_owned(),
            boot: boot_id(),
            sequence: 0,
            performed: None,
            failing: false,
            text: Vec::new(),
        }
    }

    /// Go on where an earlier image of this process had written.
    pub fn continued(directory: &Path, state: &State) -> Self {
        Self { sequence: state.sequence, ..Self::new(directory) }
    }

    /// What an earlier manager of this boot left; none: nothing, or a clean stop.
    ///
    /// # Errors
    /// See [`StateError`].
    pub fn load(&mut self) -> Result<Option<State>, StateError> {
        let performed = read_own(&self.directory.join(PERFORMED))?.unwrap_or_default();
        let performed = <[u8; 8]>::try_from(performed).map_or(0, u64::from_le_bytes);
        // Whatever becomes of the state itself: what is written from here on is later than all that was done.
        self.sequence = performed;
        let path = self.directory.join(STATE);
        let Some(text) = read_own(&path)? else { return Ok(None) };
        let mut state = parse(&text, &path)?;
        if state.boot != self.boot {
            return Ok(None);
        }
        self.sequence = performed.max(state.sequence);
        // Later than this state: the states in between could not be written, what they stood for was done all the same.
        if performed >= state.sequence {
            state.pending.clear();
        }
        Ok(Some(state))
    }

    /// Write all down. An error is returned the first time of a series.
    ///
    /// # Errors
    /// What the kernel says: no space, read-only.
    pub fn save(&mut self, supervisor: &Supervisor, books: Books<'_>) -> Result<(), io::Error> {
        let mut text = std::mem::take(&mut self.text);
        text.clear();
        let result = self.write(&mut text, supervisor, books).and_then(|()| self.replace(&text));
        self.text = text;
        match result {
            Ok(()) => {
                self.failing = false;
                Ok(())
            }
            Err(_) if std::mem::replace(&mut self.failing, true) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// How things stand now, as it is written down.
    ///
    /// # Errors
    /// It has no form: no state is known of which that is so.
    pub fn text(&mut self, supervisor: &Supervisor, books: Books<'_>) -> io::Result<Vec<u8>> {
        let mut text = Vec::new();
        self.write(&mut text, supervisor, books)?;
        Ok(text)
    }

    fn write(&mut self, text: &mut Vec<u8>, supervisor: &Supervisor, books: Books<'_>) -> io::Result<()> {
        self.sequence += 1;
        let view = StateView {
            version: VERSION,
            paddock: env!("CARGO_PKG_VERSION"),
            boot: &self.boot,
            sequence: self.sequence,
            isolation: books.isolation,
            supervisor,
            pending: books.pending,
            workers: books.workers,
            configs: books.configs,
            last_config: books.last_config,
            last_request: books.last_request,
        };
        serde_json::to_writer(text, &view).map_err(io::Error::other)
    }

    /// What was pending has been done.
    pub fn mark_performed(&self) {
        if let Some(file) = &self.performed {
            // At worst the next manager does it again.
            let _ = file.write_all_at(&self.sequence.to_le_bytes(), 0);
        }
    }

    /// Nothing is left to take over.
    pub fn remove(&self) {
        for name in [STATE, NEW_STATE, PERFORMED] {
            let _ = std::fs::remove_file(self.directory.join(name));
        }
    }

    fn replace(&mut self, text: &[u8]) -> io::Result<()> {
        if self.performed.is_none() {
            let file = File::from(open(&self.directory.join(PERFORMED), OFlags::CREATE)?);
            if file.metadata()?.len() == 0 {
                // So that there is room for the number however full the disk gets.
                file.write_all_at(&0_u64.to_le_bytes(), 0)?;
            }
            self.performed = Some(file);
        }
        let new = self.directory.join(NEW_STATE);
        // What is there was left by a crash, or planted: it is not written into, whatever it is.
        match std::fs::remove_file(&new) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let written = open(&new, OFlags::CREATE | OFlags::EXCL)
            .and_then(|file| File::from(file).write_all_at(text, 0))
            .and_then(|()| std::fs::rename(&new, self.directory.join(STATE)));
        // Half a state is of no use, and takes room from what is.
        written.inspect_err(|_| drop(std::fs::remove_file(&new)))
    }
}

/// A state that was written down, by this version or an older one; `path` is for messages.
///
/// # Errors
/// See [`StateError`].
pub fn parse(text: &[u8], path: &Path) -> Result<State, StateError> {
    #[derive(Deserialize)]
    struct Head {
        version: NonZeroU32,
    }
    let damaged = |source| StateError::Damaged { path: path.to_owned(), source };
    let Head { version } = serde_json::from_slice(text).map_err(damaged)?;
    let version = version.get();
    if version > VERSION {
        return Err(StateError::Newer { path: path.to_owned(), version });
    }
    if version == VERSION {
        return serde_json::from_slice(text).map_err(damaged);
    }
    let mut fields: serde_json::Map<String, Value> = serde_json::from_slice(text).map_err(damaged)?;
    for step in STEPS.iter().skip(version as usize - 1) {
        step(&mut fields);
    }
    fields.insert("version".to_owned(), VERSION.into());
    State::deserialize(Value::Object(fields)).map_err(damaged)
}

/// From version 1 to 2.
fn say_who_wrote(fields: &mut serde_json::Map<String, Value>) {
    fields.insert("paddock".to_owned(), "0.1.0".into());
}

/// From version 2 to 3.
fn put_releases_on_shelf(fields: &mut serde_json::Map<String, Value>) {
    if let Some(workers) = fields.get_mut("supervisor").and_then(|supervisor| supervisor.get_mut("workers")) {
        put_on_shelf(workers);
    }
}

fn open(path: &Path, how: OFlags) -> io::Result<OwnedFd> {
    let flags = OFlags::WRONLY | how | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(rustix::fs::openat(CWD, path, flags, rustix::fs::Mode::from_raw_mode(0o600))?)
}

/// A file of ours; none: it is not there.
fn read_own(path: &Path) -> Result<Option<Vec<u8>>, StateError> {
    let failed = |source| StateError::Read { path: path.to_owned(), source };
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = match rustix::fs::openat(CWD, path, flags, rustix::fs::Mode::empty()) {
        Err(rustix::io::Errno::NOENT) => return Ok(None),
        other => other.map_err(|errno| failed(errno.into()))?,
    };
    let owner = rustix::fs::fstat(&file).map_err(|errno| failed(errno.into()))?.st_uid;
    if owner != rustix::process::geteuid().as_raw() {
        return Err(StateError::Foreign { path: path.to_owned() });
    }
    let mut text = Vec::new();
    File::from(file).take(STATE_MAX).read_to_end(&mut text).map_err(failed)?;
    Ok(Some(text))
}

fn boot_id() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id").map(|id| id.trim().to_owned()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::supervisor::fixture::policy;
    use crate::worker::files::test_directory;
    use std::time::Duration;

    fn save(file: &mut StateFile, pending: &[Action]) -> Supervisor {
        let mut supervisor = Supervisor::new(policy(), ConfigId(1), 7);
        let mut actions = Vec::new();
        supervisor.start(Time::from_boot(Duration::from_secs(1)), &mut actions);
        file.save(&supervisor, books(pending)).unwrap();
        supervisor
    }

    fn books(pending: &[Action]) -> Books<'_> {
        Books {
            isolation: Mode::None,
            pending,
            workers: Vec::new(),
            configs: BTreeMap::new(),
            last_config: ConfigId(1),
            last_request: RequestId(3),
        }
    }

    fn deed() -> [Action; 1] {
        [Action::Exit { code: 0 }]
    }

    #[test]
    fn the_next_manager_reads_what_this_one_wrote() {
        let directory = test_directory("state");
        let supervisor = save(&mut StateFile::new(&directory), &deed());
        let state = StateFile::new(&directory).load().unwrap().unwrap();
        assert_eq!(state.supervisor.snapshot(), supervisor.snapshot());
        assert_eq!(state.supervisor.next_deadline(), supervisor.next_deadline());
        assert_eq!(state.pending, deed());
        assert_eq!(state.last_request, RequestId(3));
        std::fs::remove_dir_all(directory).unwrap();
    }

    #[test]
    fn what_has_been_done_is_not_done_again() {
        let directory = test_directory("state-done");
        let mut file = StateFile::new(&directory);
        save(&mut file, &deed());
        file.mark_performed();
        assert!(StateFile::new(&directory).load().unwrap().unwrap().pending.is_empty());
        // A later list is pending again until it is marked, too.
        save(&mut file, &deed());
        assert_eq!(StateFile::new(&directory).load().unwrap().unwrap().pending, deed());
        std::fs::remove_dir_all(directory).unwrap();
    }

    #[test]
    fn what_was_done_while_nothing_could_be_written_makes_older_deeds_done_too() {
        let directory = test_directory("state-full");
        let mut file = StateFile::new(&directory);
        save(&mut file, &deed());
        std::fs::create_dir(directory.join(NEW_STATE)).unwrap();
        let supervisor = Supervisor::new(policy(), ConfigId(1), 7);
        file.save(&supervisor, books(&[])).unwrap_err();
        file.mark_performed();
        std::fs::remove_dir(directory.join(NEW_STATE)).unwrap();
        let mut next = StateFile::new(&directory);
        assert!(next.load().unwrap().unwrap().pending.is_empty());
        // What the next manager writes is later than all of that.
        save(&mut next, &deed());
        assert_eq!(StateFile::new(&directory).load().unwrap().unwrap().pending, deed());
        std::fs::remove_dir_all(directory).unwrap();
    }

    #[test]
    fn damage_a_newer_version_and_another_boot_are_told_apart() {
        let directory = test_directory("state-damaged");
        let path = directory.join(STATE);
        assert!(StateFile::new(&directory).load().unwrap().is_none());
        save(&mut StateFile::new(&directory), &[]);
        let good = std::fs::read_to_string(&path).unwrap();
        std::fs::write(&path, good.get(..good.len() / 2).unwrap()).unwrap();
        assert!(matches!(StateFile::new(&directory).load(), Err(StateError::Damaged { .. })));
        std::fs::write(&path, good.replacen("\"version\":3", "\"version\":4", 1)).unwrap();
        assert!(matches!(StateFile::new(&directory).load(), Err(StateError::Newer { version: 4, .. })));
        std::fs::write(&path, good.replacen(&boot_id(), "another", 1)).unwrap();
        assert!(StateFile::new(&directory).load().unwrap().is_none());
        std::fs::remove_dir_all(directory).unwrap();
    }

    #[test]
    fn a_full_disk_is_said_once() {
        let directory = test_directory("state-gone");
        let mut file = StateFile::new(&directory.join("not-there"));
        let supervisor = Supervisor::new(policy(), ConfigId(1), 7);
        assert!(file.save(&supervisor, books(&[])).is_err());
        assert!(file.save(&supervisor, books(&[])).is_ok());
        std::fs::remove_dir_all(directory).unwrap();
    }

    const VERSION_1: &str = include_str!("../../tests/golden/state/version-1.json");
    const VERSION_2: &str = include_str!("../../tests/golden/state/version-2.json");

    /// Each was written in the middle of a roll. Whatever is added to a state, they stay readable.
    #[test]
    fn states_of_older_versions_are_read() {
        for (old, pending, pids, command) in [
            (VERSION_1, 1, &[24508, 24509, 24527][..], ["sleep", "1000"]),
            (VERSION_2, 3, &[18136, 18138, 18140, 19217], ["sleep", "2000"]),
        ] {
            let directory = test_directory("state-old");
            std::fs::write(directory.join(STATE), old.replacen("00000000-0000-4000-8000-000000000000", &boot_id(), 1))
                .unwrap();
            let mut file = StateFile::new(&directory);
            let state = file.load().unwrap().unwrap();
            assert_eq!((state.version, state.paddock.as_str()), (VERSION, "0.1.0"));
            assert_eq!((state.isolation, state.pending.len()), (Mode::None, pending));
            let found: Vec<_> = state.workers.iter().filter_map(|worker| worker.pid).collect();
            assert_eq!(found, pids);
            let snapshot = state.supervisor.snapshot();
            let of_workers: Vec<_> = snapshot.workers.iter().filter_map(|worker| worker.pid).collect();
            assert_eq!(of_workers, pids);
            assert_eq!((snapshot.generation.0, snapshot.roll.map(|roll| roll.to.0)), (1, Some(2)));
            assert_eq!(state.configs.len(), 2);
            let newest = state.configs.values().next_back().unwrap();
            assert_eq!(newest.config.command, command);
            assert_eq!(newest.environment.len(), 2);

            // What it is written as next is of this version, and says the same.
            let books = Books {
                isolation: state.isolation,
                pending: &state.pending,
                workers: state.workers.iter().map(RecordView::from).collect(),
                configs: state.configs.iter().map(|(id, prepared)| (*id, prepared)).collect(),
                last_config: state.last_config,
                last_request: state.last_request,
            };
            file.save(&state.supervisor, books).unwrap();
            let again = StateFile::new(&directory).load().unwrap().unwrap();
            assert_eq!(again.supervisor.snapshot(), state.supervisor.snapshot());
            assert_eq!(again.paddock, env!("CARGO_PKG_VERSION"));
            let text = std::fs::read_to_string(directory.join(STATE)).unwrap();
            assert!(text.starts_with(&format!("{{\"version\":{VERSION},")));
            std::fs::remove_dir_all(directory).unwrap();
        }
    }
}
