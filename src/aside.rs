//! Work that may block, away from the loop.
//!
//! Not tokio's threads for such work: where the kernel gives no further thread, their pool panics.

use std::io;
use std::sync::{Arc, Mutex, PoisonError};

/// Do it on a thread of its own and wait for what comes out. Where the kernel gives no thread it is done here and now: a
/// loop that stands still for a moment is better than a deed that is never done.
///
/// # Errors
/// The work has panicked.
pub async fn aside<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> io::Result<T> {
    let (tell, told) = tokio::sync::oneshot::channel();
    begin_aside(move || drop(tell.send(work())));
    told.await.map_err(|_| io::Error::other("it was begun on another thread, which panicked"))
}

/// The same for whoever does not wait for it.
pub fn begin_aside(work: impl FnOnce() + Send + 'static) {
    let work = Arc::new(Mutex::new(Some(work)));
    let theirs = Arc::clone(&work);
    if thread("aside", move || once(&theirs)).is_err() {
        once(&work);
    }
}

/// Begin a thread of this process that is not the loop. Signals are for the loop: one that a thread took while the program
/// is replaced in place would be lost.
///
/// # Errors
/// The kernel gives none (`pthread_create(3)`).
pub fn thread(name: &str, work: impl FnOnce() + Send + 'static) -> io::Result<()> {
    let work = move || {
        // It fails only for a set that the kernel cannot read.
        let _ = nix::sys::signal::SigSet::all().thread_block();
        work();
    };
    std::thread::Builder::new().name(name.to_owned()).spawn(work).map(drop)
}

fn once(work: &Mutex<Option<impl FnOnce()>>) {
    let work = work.lock().unwrap_or_else(PoisonError::into_inner).take();
    if let Some(work) = work {
        work();
    }
}
