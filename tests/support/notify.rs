//! Stands for systemd at the other end of `NOTIFY_SOCKET`.

use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::pace;

/// Datagrams, each with the time of its arrival.
type Messages = (Mutex<Vec<(Instant, String)>>, Condvar);

/// Receives what the manager tells systemd.
#[derive(Clone)]
pub(crate) struct Receiver {
    path: PathBuf,
    shared: Arc<Messages>,
}

impl Receiver {
    /// Listens at a path.
    pub(crate) fn bind(path: &Path) -> Self {
        let socket = UnixDatagram::bind(path).expect("a notify socket");
        let receiver = Self { path: path.to_owned(), shared: Arc::default() };
        let shared = Arc::clone(&receiver.shared);
        std::thread::spawn(move || {
            let mut buffer = [0; 8192];
            while let Ok(length) = socket.recv(&mut buffer) {
                let text = String::from_utf8_lossy(&buffer[..length]).into_owned();
                let ends = text == END;
                shared.0.lock().unwrap_or_else(PoisonError::into_inner).push((Instant::now(), text));
                shared.1.notify_all();
                if ends {
                    break;
                }
            }
        });
        receiver
    }

    /// Value of `NOTIFY_SOCKET`.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Every assignment so far, with the time of its datagram.
    pub(crate) fn assignments(&self) -> Vec<(Instant, String)> {
        let messages = self.shared.0.lock().unwrap_or_else(PoisonError::into_inner);
        messages.iter().flat_map(|(at, text)| text.lines().map(|line| (*at, line.to_owned()))).collect()
    }

    /// How often that was said.
    pub(crate) fn count(&self, assignment: &str) -> usize {
        self.assignments().iter().filter(|(_, each)| each == assignment).count()
    }

    /// Waits until the assignment was said `times` times; when it was the last of these.
    pub(crate) fn try_wait(&self, assignment: &str, times: usize, bound: Duration) -> Option<Instant> {
        let until = Instant::now() + pace::patient(bound);
        loop {
            let said: Vec<Instant> =
                self.assignments().iter().filter(|(_, each)| each == assignment).map(|(at, _)| *at).collect();
            if let Some(at) = times.checked_sub(1).and_then(|index| said.get(index)) {
                return Some(*at);
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return None;
            }
            let messages = self.shared.0.lock().unwrap_or_else(PoisonError::into_inner);
            let _woken = self.shared.1.wait_timeout(messages, left.min(Duration::from_millis(50)));
        }
    }
}

/// What ends the receiver's thread.
const END: &str = "PADDOCK_TEST_END=1";

impl Drop for Receiver {
    fn drop(&mut self) {
        if Arc::strong_count(&self.shared) <= 2
            && let Ok(socket) = UnixDatagram::unbound()
        {
            let _ = socket.send_to(END.as_bytes(), &self.path);
        }
    }
}
