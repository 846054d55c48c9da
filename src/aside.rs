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
    if std::thread::Builder::new().name("aside".to_owned()).spawn(move || once(&theirs)).is_err() {
        once(&work);
    }
}

fn once(work: &Mutex<Option<impl FnOnce()>>) {
    let work = work.lock().unwrap_or_else(PoisonError::into_inner).take();
    if let Some(work) = work {
        work();
    }
}
