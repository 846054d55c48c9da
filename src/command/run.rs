//! `paddock run`: the manager of one app, in the foreground.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::rc::Rc;

use tokio::sync::mpsc::UnboundedReceiver;

use crate::config::model::{Config, LogFormat};
use crate::config::{Invocation, Loaded};
use crate::control::directory::{RuntimeDirectory, Surroundings, is_app_name};
use crate::control::server::Server;
use crate::isolation::Isolation;
use crate::observe::log::Log;
use crate::runtime::adopt::{self, Found};
use crate::runtime::changes::{self, News};
use crate::runtime::generation::{Prepared, Source};
use crate::runtime::listeners::{ListenError, Listeners};
use crate::runtime::manager::{self, Parts};
use crate::runtime::recover;
use crate::runtime::setup::{self, Fenced, Refusal};
use crate::runtime::state::{State, StateFile};
use crate::runtime::upgrade::handover::Handover;
use crate::runtime::upgrade::image::Image;
use crate::runtime::upgrade::take::Baton;
use crate::supervisor::id::WorkerId;
use crate::supervisor::note::Level;
use crate::sys;
use crate::systemd::activation::Inherited;
use crate::systemd::notify::{ServiceNotifier, watchdog_interval};
use crate::worker::birth::Nursery;
use crate::worker::files;
use crate::worker::open_files::OpenFiles;

/// Run until stopped; the exit code. A change of anything `watched` is a reload.
///
/// # Errors
/// Why nothing was started.
pub fn run(
    invocation: Invocation,
    watched: Vec<PathBuf>,
    directory: Option<&Path>,
    colour: bool,
) -> Result<u8, Refusal> {
    sys::share_one_heap();
    // What an earlier image of this process left has the numbers that it names: nothing may be opened before.
    let handed = Handover::take(|variable| std::env::var_os(variable)).map_err(Refusal::of_machine)?;
    let baton = handed.map(Baton::grasp).transpose().map_err(Refusal::of_machine)?;
    let image = match &baton {
        Some(baton) => baton.handover().image.clone().map(Image::at),
        None => Image::of_process(),
    };
    if let Some(name) = baton.as_ref().and_then(|_| image.as_ref()?.short_name()) {
        // The kernel took the descriptor's number for the program's name; only people care.
        let _ = rustix::thread::set_name(&name);
    }
    if baton.is_none() {
        Image::check_own(image.as_ref()).map_err(Refusal::of_machine)?;
    }
    let inherited = if baton.is_some() { Inherited::default() } else { setup::inherited()? };
    let loaded = setup::load(&invocation, colour);
    let (name, format) = match &loaded {
        Ok(loaded) => (loaded.config.name.clone(), loaded.config.log.format),
        // Workers of an earlier manager may serve on: a file that was broken meanwhile must not abandon them.
        Err(refusal) => (name_of_file(&invocation).ok_or_else(|| refusal.clone())?, LogFormat::Auto),
    };
    let log = Log::open(&name, format, |variable| std::env::var_os(variable));
    log.install();
    // The image before this one has said them.
    let news = loaded.iter().filter(|_| baton.is_none());
    for warning in news.flat_map(|loaded| loaded.warnings.list()) {
        let remedy = warning.remedy.as_ref().map(|remedy| format!("; {remedy}")).unwrap_or_default();
        log.say(Level::Warning, &format!("{}: {}{remedy}", warning.key, warning.message));
    }
    let wanted = Wanted { invocation, loaded, name, watched, image };
    let result = match baton {
        Some(baton) => setup::on_the_loop(take_over(wanted, baton, &log)),
        None => setup::on_the_loop(manage(wanted, inherited, directory, &log)),
    }?;
    log.flush();
    result
}

/// What was asked for.
struct Wanted {
    invocation: Invocation,
    loaded: Result<Loaded, Refusal>,
    name: String,
    watched: Vec<PathBuf>,
    image: Option<Image>,
}

fn name_of_file(invocation: &Invocation) -> Option<String> {
    let stem = invocation.file.as_ref()?.file_stem()?.to_str()?;
    is_app_name(stem).then(|| stem.to_owned())
}

async fn manage(wanted: Wanted, mut inherited: Inherited, directory: Option<&Path>, log: &Log) -> Result<u8, Refusal> {
    let open_files = OpenFiles::raise_own().map_err(Refusal::of_machine)?;
    let nursery = Nursery::new().map_err(Refusal::of_machine)?;
    let name = &wanted.name;
    let path = Surroundings::of_process(directory).of_manager(name).map_err(Refusal::of_machine)?;
    if wanted.loaded.is_err() && !path.exists() {
        return Err(wanted.loaded.err().unwrap_or_else(|| Refusal::of_machine("no configuration")));
    }
    let directory = RuntimeDirectory::create(&path).map_err(Refusal::of_machine)?;
    let lock = directory.lock(name).map_err(Refusal::of_machine)?;
    let (state_file, state) = earlier(&path, log);
    let Start { config, isolation, above, prepared } = start(&wanted, state.as_ref(), log).await?;
    let (notify_sockets, mut kept) = sort_stored(std::mem::take(&mut inherited.stored));
    let mut found = adopt::find(name, state.as_ref(), &*isolation, &path, notify_sockets, log)
        .await
        .map_err(Refusal::of_machine)?;
    remove_leftover_files(&path, &found);
    kept.extend(recover::listeners(found.workers.values(), &config.listen));
    let adopting = !found.workers.is_empty();
    let listeners = Listeners::open(inherited, &config.listen, kept).map_err(|error| {
        if adopting && matches!(error, ListenError::Bind { .. } | ListenError::InUse { .. }) {
            return Refusal::of_machine(format!(
                "{error}; workers of an earlier manager serve on there, and the socket could not be taken from them \
                 (that takes root, or FileDescriptorStoreMax= in the service): paddock reap {name} stops them"
            ));
        }
        Refusal::of_machine(error)
    })?;
    let notifier =
        ServiceNotifier::from_environment(|variable| std::env::var_os(variable)).map_err(Refusal::of_machine)?;
    let control = Server::bind(&directory, name, config.control.group.as_deref()).map_err(Refusal::of_machine)?;
    let strays = std::mem::take(&mut found.strays);
    let changes = changes(wanted.watched, &wanted.invocation, &path)?;
    manager::run(Parts {
        log: log.clone(),
        directory: path,
        isolation,
        listeners,
        notifier,
        ping_interval: watchdog_interval(),
        control: Some(control),
        prepared,
        source: Source { invocation: wanted.invocation, above, running: config },
        seed: setup::seed()?,
        listener: None,
        state_file: Some(state_file),
        inherited: state.map(|state| (state, found)),
        strays,
        open_files,
        nursery,
        changes,
        taken: None,
        lock: Some(lock),
        image: wanted.image,
    })
    .await
    .map_err(Refusal::of_machine)
}

/// In the place of an earlier image of this process, which has been replaced.
async fn take_over(wanted: Wanted, baton: Baton, log: &Log) -> Result<u8, Refusal> {
    let open_files = OpenFiles::raise_own().map_err(Refusal::of_machine)?;
    let nursery = Nursery::new().map_err(Refusal::of_machine)?;
    let path = baton.handover().directory.clone();
    let directory = RuntimeDirectory::create(&path).map_err(Refusal::of_machine)?;
    let state_file = StateFile::continued(&path, baton.state());
    let Start { config, isolation, above, prepared } = start(&wanted, Some(baton.state()), log).await?;
    let notifier =
        ServiceNotifier::from_environment(|variable| std::env::var_os(variable)).map_err(Refusal::of_machine)?;
    let changes = changes(wanted.watched, &wanted.invocation, &path)?;
    let parts = baton.raise(&directory, &*isolation, config.control.group.as_deref(), log)?;
    manager::run(Parts {
        log: log.clone(),
        directory: path,
        isolation,
        listeners: parts.listeners,
        notifier,
        ping_interval: watchdog_interval(),
        control: Some(parts.control),
        prepared,
        source: Source { invocation: wanted.invocation, above, running: config },
        seed: setup::seed()?,
        listener: None,
        state_file: Some(state_file),
        inherited: None,
        strays: Vec::new(),
        open_files,
        nursery,
        changes,
        taken: Some(parts.taken),
        lock: Some(parts.lock),
        image: wanted.image,
    })
    .await
    .map_err(Refusal::of_machine)
}

/// Watches what was asked for, and the configuration with it; nothing, if nothing was.
fn changes(
    mut watched: Vec<PathBuf>,
    invocation: &Invocation,
    directory: &Path,
) -> Result<Option<UnboundedReceiver<News>>, Refusal> {
    if watched.is_empty() {
        return Ok(None);
    }
    watched.extend(invocation.file.clone());
    changes::watch(&watched, directory).map(Some).map_err(Refusal::of_machine)
}

/// With what a manager begins.
struct Start {
    config: Config,
    isolation: Rc<dyn Isolation>,
    above: Option<String>,
    prepared: Prepared,
}

/// From the state of an earlier manager if there is one, whatever the file says now: a crash is no reload.
async fn start(wanted: &Wanted, state: Option<&State>, log: &Log) -> Result<Start, Refusal> {
    let running = state.and_then(|state| state.configs.values().next_back());
    if let (Some(prepared), Some(state)) = (running, state) {
        let config = prepared.config.clone();
        match &wanted.loaded {
            Err(refusal) => log.say(
                Level::Error,
                &format!("the configuration in force stays; the one on disk is wrong: {}", refusal.message),
            ),
            Ok(loaded) if loaded.config != config => {
                log.say(Level::Info, "the configuration on disk differs from the one in force; reload to apply it");
            }
            Ok(_) => {}
        }
        let (isolation, above) = setup::fence_again(state.isolation, &config, log).await?;
        return Ok(Start { config, isolation, above, prepared: prepared.clone() });
    }
    let loaded = wanted.loaded.as_ref().map_err(Clone::clone)?;
    let Fenced { isolation, above, prepared } = setup::fence(loaded, &wanted.name, log).await?;
    Ok(Start { config: loaded.config.clone(), isolation, above, prepared })
}

fn earlier(directory: &Path, log: &Log) -> (StateFile, Option<State>) {
    let mut file = StateFile::new(directory);
    let state = file.load().unwrap_or_else(|error| {
        log.say(
            Level::Error,
            &format!("{error}: workers of an earlier manager serve until new ones are ready, and are drained then"),
        );
        None
    });
    (file, state)
}

/// What was kept for us: workers' notify sockets, and listening sockets that an earlier manager had bound.
fn sort_stored(stored: Vec<(String, OwnedFd)>) -> (BTreeMap<WorkerId, OwnedFd>, Vec<OwnedFd>) {
    let mut notify = BTreeMap::new();
    let mut listening = Vec::new();
    for (name, fd) in stored {
        match name.strip_prefix("notify.").map(str::parse) {
            Some(Ok(worker)) => {
                notify.insert(WorkerId(worker), fd);
            }
            _ if name == "listen" => listening.push(fd),
            _ => {}
        }
    }
    (notify, listening)
}

/// What workers that are gone had in the runtime directory; we hold its lock.
fn remove_leftover_files(directory: &Path, found: &Found) {
    let Ok(entries) = std::fs::read_dir(directory) else { return };
    let leftover = |path: &PathBuf| {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        files::worker_of(name).is_some_and(|worker| !found.workers.contains_key(&worker))
    };
    for path in entries.flatten().map(|entry| entry.path()).filter(leftover) {
        let _ = std::fs::remove_file(path);
    }
}
