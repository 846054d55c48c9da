//! A manager's end of the control socket, in this process, for tests of what talks to it.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::Duration;

use paddock::control::directory::RuntimeDirectory;
use paddock::control::status::{StatusReport, WorkerReport};
use paddock::control::{Call, ControlReply, ControlRequest, Server};

/// Longer than anything here may take; reaching it is a failure.
pub(crate) const BOUND: Duration = Duration::from_secs(30);

/// A fresh directory that nobody else uses.
pub(crate) fn scratch() -> PathBuf {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let number = COUNT.fetch_add(1, Ordering::Relaxed);
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("control-{}-{number}", std::process::id()));
    let _ = std::fs::remove_dir_all(&path);
    std::fs::create_dir_all(&path).unwrap();
    path
}

/// A manager's end on a thread of its own, with `answer` for a loop: what it returns is sent, what it keeps waits.
pub(crate) struct Manager {
    pub(crate) path: PathBuf,
    end: Option<tokio::sync::oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
    pub(crate) progress: tokio::sync::mpsc::UnboundedSender<String>,
}

impl Manager {
    /// In a directory of its own.
    pub(crate) fn start(answer: impl FnMut(Call) + Send + 'static) -> Self {
        Self::start_at(&scratch().join("shop"), None, answer)
    }

    /// In this directory, for this group.
    pub(crate) fn start_at(path: &Path, group: Option<String>, mut answer: impl FnMut(Call) + Send + 'static) -> Self {
        let (end, ended) = tokio::sync::oneshot::channel();
        let (progress, mut lines) = tokio::sync::mpsc::unbounded_channel::<String>();
        let (bound, is_bound) = mpsc::channel();
        let at = path.to_path_buf();
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            tokio::task::LocalSet::new().block_on(&runtime, async move {
                let directory = RuntimeDirectory::create(&at).unwrap();
                let lock = directory.lock("shop").unwrap();
                let (server, mut calls) = Server::bind(&directory, "shop", group.as_deref()).unwrap();
                bound.send(()).unwrap();
                let mut ended = std::pin::pin!(ended);
                loop {
                    tokio::select! {
                        biased;
                        line = lines.recv() => server.progress(&line.unwrap()),
                        call = calls.recv() => answer(call.unwrap()),
                        _ = &mut ended => break,
                    }
                }
                drop(calls);
                drop(answer);
                server.finish().await;
                drop(lock);
            });
        });
        is_bound.recv_timeout(BOUND).expect("the server binds");
        Self { path: path.to_path_buf(), end: Some(end), thread: Some(thread), progress }
    }

    /// As a manager ends.
    pub(crate) fn finish(&mut self) {
        self.end.take().unwrap().send(()).unwrap();
        self.thread.take().unwrap().join().unwrap();
    }
}

/// A status with one worker.
pub(crate) fn report() -> StatusReport {
    StatusReport {
        app: "shop".to_owned(),
        workers_wanted: 1,
        workers: vec![WorkerReport { pid: Some(7), state: "ready".to_owned(), ..Default::default() }],
        ..Default::default()
    }
}

/// Answers everything with what was asked.
pub(crate) fn echo(call: Call) {
    let reply = match call.request {
        ControlRequest::Status => ControlReply::Status(Box::new(report())),
        other => ControlReply::Done { message: format!("{other:?}") },
    };
    let _ = call.reply.send(reply);
}
