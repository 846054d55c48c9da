//! Making a worker: gate, fence, verify, release. One task for each worker; the loop never waits for it.

use std::os::fd::OwnedFd;
use std::rc::Rc;

use crate::config::model::Signal;
use crate::isolation::{Drain, FenceName, Isolation, Mode, Place, none};
use crate::supervisor::policy::Policy;
use crate::sys::Birthplace;
use crate::systemd::journal;
use crate::worker::birth::Nursery;
use crate::worker::environment::{self, Facts};
use crate::worker::open_files::OpenFiles;
use crate::worker::order::Order;
use crate::worker::process::Gate;

use super::generation::Prepared;
use super::listeners::Listeners;
use super::worker::{InJournal, Worker};

/// What every worker of a manager has in common.
pub struct Common {
    /// The app's sockets.
    pub listeners: Rc<Listeners>,
    /// Whether journald believes whose lines they are, which it does of root only.
    pub to_journal: bool,
    /// What the manager was started with.
    pub open_files: OpenFiles,
    /// Where children come from.
    pub nursery: Rc<Nursery>,
}

/// Start the worker; its pid once its command has been exec'd.
///
/// # Errors
/// Why not, as a fragment; then nothing is left of it.
pub async fn launch(
    worker: &Worker,
    prepared: &Prepared,
    isolation: &dyn Isolation,
    common: &Common,
) -> Result<u32, String> {
    let name = FenceName { app: prepared.group.clone(), slot: worker.start.slot.0, unique: worker.unique.clone() };
    let place = isolation.prepare(&name, &prepared.limits).map_err(|error| error.to_string())?;
    let anywhere = Birthplace::default();
    let birthplace = place.as_ref().map_or(&anywhere, |place| place.birthplace());
    let gate = Gate::spawn((none::MARKER, &none::marker(&name)), birthplace, &common.nursery)
        .map_err(|error| format!("starting a process: {error}"))?;
    let process = Rc::clone(&gate.process);
    *worker.process.borrow_mut() = Some(Rc::clone(&process));
    let result = enclose_and_release(worker, prepared, &name, (isolation, place), common, &gate).await;
    match result {
        Ok(()) => {
            worker.started.set(true);
            Ok(process.id())
        }
        Err(reason) => {
            // Ends at once: nobody else knows this process, and a gate holds nothing.
            let _ = process.signal(Signal(nix::libc::SIGKILL));
            process.ended().await;
            let fence = worker.fence.borrow_mut().take();
            if let Some(fence) = fence
                && let Err(error) = fence.sweep().await
            {
                return Err(format!("{reason}; and removing its fence failed: {error}"));
            }
            Err(reason)
        }
    }
}

async fn enclose_and_release(
    worker: &Worker,
    prepared: &Prepared,
    name: &FenceName,
    (isolation, place): (&dyn Isolation, Option<Box<dyn Place + '_>>),
    common: &Common,
    gate: &Gate,
) -> Result<(), String> {
    let given_up = || "given up before its command was executed".to_owned();
    let pid = gate.process.pid();
    let enclosed = if let Some(place) = place {
        place.enclose(pid)
    } else {
        // A reload may have changed it.
        let Policy { drain_signal: signal, graceful, .. } = prepared.policy;
        isolation.set_drain(Drain { signal, graceful });
        isolation.enclose(name, pid, &prepared.limits).await
    };
    let fence = enclosed.map_err(|error| if worker.is_given_up() { given_up() } else { error.to_string() })?;
    let unit = fence.describe();
    *worker.fence.borrow_mut() = Some(fence);
    if worker.is_given_up() {
        return Err(given_up());
    }
    let Common { listeners, to_journal, open_files, .. } = common;
    let stream =
        if *to_journal && isolation.mode() == Mode::Scope { journal_stream(worker, prepared, unit) } else { None };
    let (output, stream_id) = match stream {
        Some((stream, id)) => (stream, Some(id)),
        None => (worker.output.worker_end().map_err(|error| format!("opening its output: {error}"))?, None),
    };
    let order = order(worker, prepared, &listeners.names(), &none::marker(name), stream_id.as_deref(), *open_files);
    let output = std::os::fd::AsFd::as_fd(&output);
    gate.release(&order, output, output, &listeners.descriptors())
        .await
        .map_err(|error| if worker.is_given_up() { given_up() } else { error.to_string() })
}

/// A stream for the worker's lines, with its own name (`JOURNAL_STREAM`). None: journald takes no more streams now, and
/// the lines go the other way.
fn journal_stream(worker: &Worker, prepared: &Prepared, unit: String) -> Option<(OwnedFd, String)> {
    let opened = journal::open_worker_stream(&prepared.config.name, &unit).and_then(|stream| {
        let id = journal::stream_id(&stream)?;
        Ok((stream, id))
    });
    match opened {
        Ok(stream) => {
            let words_until = worker.begun.after(prepared.policy.start).after(prepared.policy.hold);
            *worker.journal.borrow_mut() = Some(InJournal { unit, words_until });
            Some(stream)
        }
        Err(error) => {
            tracing::warn!(unit, "no stream into the journal, its lines go through the manager: {error}");
            None
        }
    }
}

fn order(
    worker: &Worker,
    prepared: &Prepared,
    names: &[String],
    marker: &str,
    journal_stream: Option<&str>,
    started_with: OpenFiles,
) -> Order {
    let config = &prepared.config;
    let facts = Facts {
        app: &config.name,
        slot: worker.start.slot.0,
        generation: worker.start.generation.0,
        marker,
        quota: worker.start.quota,
        socket_names: names,
        notify: worker.notify.path(),
        pressure: worker.pressure.path(),
        watchdog: config.timeouts.watchdog,
        journal_stream,
    };
    Order {
        command: config.command.clone(),
        environment: environment::complete(&prepared.environment, &facts),
        working_directory: config.working_directory.clone(),
        account: prepared.account.clone(),
        umask: config.umask,
        open_files: config.limits.nofile.map_or(started_with, OpenFiles::exactly),
    }
}
