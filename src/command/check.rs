//! `paddock check`: validate, then try one worker out where nobody notices.

use std::cell::{Cell, RefCell};
use std::io::Write as _;
use std::path::PathBuf;
use std::rc::Rc;

use crate::config::{Invocation, Loaded};
use crate::observe::log::Log;
use crate::runtime::generation::Source;
use crate::runtime::listeners::Listeners;
use crate::runtime::manager::{self, NoteListener, Parts};
use crate::runtime::setup::{self, Refusal};
use crate::supervisor::event::{Event, Request};
use crate::supervisor::note::{Note, NoteKind};
use crate::supervisor::policy::Policy;
use crate::systemd::activation::Inherited;
use crate::worker::birth::Nursery;
use crate::worker::open_files::OpenFiles;

/// Check the file alone, or also start one worker on stand-in sockets, with the environment, user, limits and isolation
/// of `run`; what there is to say if all is well.
///
/// # Errors
/// What is wrong.
pub fn check(invocation: Invocation, start: bool, colour: bool) -> Result<String, Refusal> {
    let inherited = setup::inherited()?;
    let loaded = setup::load(&invocation, colour)?;
    if !loaded.warnings.is_empty() {
        let _ = writeln!(std::io::stderr(), "{}\n", loaded.warnings.render_warnings(colour));
    }
    let name = loaded.config.name.clone();
    if !start {
        return Ok(format!("{name}: the configuration is right"));
    }
    let log = Log::open(&name, loaded.config.log.format, |variable| std::env::var_os(variable));
    log.install();
    let result = setup::on_the_loop(try_out(invocation, loaded, inherited, &log))?;
    log.flush();
    let took = result?;
    Ok(format!("{name}: the configuration is right; a worker got ready and drained within {took}"))
}

/// What the trial showed.
#[derive(Default)]
struct Outcome {
    became_ready: Cell<bool>,
    died: RefCell<Option<(String, String)>>,
}

async fn try_out(invocation: Invocation, loaded: Loaded, inherited: Inherited, log: &Log) -> Result<String, Refusal> {
    let config = loaded.config.clone();
    let directory = temporary_directory().map_err(Refusal::of_machine)?;
    let result = async {
        // A group of its own, so that nothing of the living app is counted, stopped or adopted by mistake.
        let mut fenced = setup::fence(&loaded, &format!("{}.check", config.name), log).await?;
        fenced.prepared.policy = alone(&fenced.prepared.policy);
        fenced.prepared.group = format!("{}.check", config.name);
        let listeners = Listeners::stand_ins(&inherited, &config.listen, &directory).map_err(Refusal::of_machine)?;
        let outcome = Rc::new(Outcome::default());
        let begun = crate::runtime::clock::now();
        let code = Box::pin(manager::run(Parts {
            log: log.clone(),
            directory: directory.clone(),
            isolation: fenced.isolation,
            listeners,
            notifier: None,
            ping_interval: None,
            control: None,
            prepared: fenced.prepared,
            source: Source { invocation, above: fenced.above, running: config },
            seed: setup::seed()?,
            changes: None,
            listener: Some(listener(Rc::clone(&outcome))),
            state_file: None,
            inherited: None,
            strays: Vec::new(),
            open_files: OpenFiles::raise_own().map_err(Refusal::of_machine)?,
            nursery: Nursery::new().map_err(Refusal::of_machine)?,
            taken: None,
            lock: None,
            image: None,
        }))
        .await
        .map_err(Refusal::of_machine)?;
        let took = crate::runtime::clock::now() - begun;
        judge(code, &outcome, took)
    }
    .await;
    let _ = std::fs::remove_dir_all(&directory);
    result
}

/// One worker, never replaced, not bound by the app's budget.
fn alone(policy: &Policy) -> Policy {
    Policy { workers: 1, memory_budget: None, max_requests: 0, max_lifetime: None, ..policy.clone() }
}

fn listener(outcome: Rc<Outcome>) -> NoteListener {
    Box::new(move |note: &Note| {
        if note.kind == NoteKind::WorkerDied {
            let verdict = note.reason.clone().unwrap_or_default();
            *outcome.died.borrow_mut() = Some((verdict, note.message.clone()));
        }
        (note.kind == NoteKind::ServiceReady).then(|| {
            outcome.became_ready.set(true);
            Event::Request { id: None, request: Request::Stop { fast: false } }
        })
    })
}

fn judge(code: u8, outcome: &Outcome, took: std::time::Duration) -> Result<String, Refusal> {
    if code != 0 || !outcome.became_ready.get() {
        return Err(Refusal { code: 1, message: "paddock: check: the worker did not get ready; see above".to_owned() });
    }
    match &*outcome.died.borrow() {
        Some((verdict, message)) if verdict != "drained" => Err(Refusal {
            code: 1,
            message: format!("paddock: check: the worker got ready but did not drain as it should: {message}"),
        }),
        _ => Ok(format!("{:.1} s", took.as_secs_f64())),
    }
}

/// A directory that only we can write to.
fn temporary_directory() -> std::io::Result<PathBuf> {
    use std::os::unix::fs::DirBuilderExt;
    let mut bytes = [0_u8; 8];
    rustix::rand::getrandom(&mut bytes[..], rustix::rand::GetRandomFlags::empty())?;
    let path = std::env::temp_dir().join(format!("paddock-check-{:016x}", u64::from_ne_bytes(bytes)));
    // Not 0700: the worker, as another user, must reach its sockets in it.
    std::fs::DirBuilder::new().mode(0o711).create(&path)?;
    Ok(path)
}
