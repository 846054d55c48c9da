//! Hearing of units that somebody has stopped while we are their controller: the signal `RequestStop` of
//! `org.freedesktop.systemd1.Scope`. systemd sends it to us alone and no signal to the processes, and gives the unit the
//! time of `TimeoutStopUSec` from then on.

use std::collections::BTreeMap;
use std::future::poll_fn;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use futures_core::Stream;
use tokio::sync::Notify;
use tokio::task::AbortHandle;
use zbus::message::Type;
use zbus::{Connection, MatchRule, MessageStream};

use super::dbus::{SCOPE, SYSTEMD, unit_path};

/// Units whose stop is waited for, by the paths of their objects.
#[derive(Debug, Clone, Default)]
pub(super) struct Stops(Arc<Mutex<BTreeMap<String, Weak<StopAsked>>>>);

/// Whether a unit's stop was asked for. It is a hint only: anybody on the bus can send us such a signal.
#[derive(Debug)]
pub struct StopAsked {
    path: String,
    asked: AtomicBool,
    news: Notify,
    all: Stops,
}

impl Stops {
    /// Wait for the stop of a unit, from now on and until what is returned is dropped.
    pub(super) fn of(&self, unit: &str) -> Arc<StopAsked> {
        let path = unit_path(unit);
        let asked = Arc::new(StopAsked {
            path: path.clone(),
            asked: AtomicBool::new(false),
            news: Notify::new(),
            all: self.clone(),
        });
        self.with(|all| all.insert(path, Arc::downgrade(&asked)));
        asked
    }

    fn with<T>(&self, deed: impl FnOnce(&mut BTreeMap<String, Weak<StopAsked>>) -> T) -> T {
        // Nothing in there can be half done.
        deed(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Listen on a connection for as long as it lives and this is wanted.
    pub(super) async fn listen(&self, connection: &Connection) -> zbus::Result<Hearing> {
        let rule = MatchRule::builder().msg_type(Type::Signal).sender(SYSTEMD).interface(SCOPE).member("RequestStop");
        let mut signals = MessageStream::for_match_rule(rule.build()?, connection, None).await?;
        let all = self.clone();
        let task = tokio::spawn(async move {
            while let Some(signal) = poll_fn(|cx| Pin::new(&mut signals).poll_next(cx)).await {
                let Ok(signal) = signal else { continue };
                let header = signal.header();
                let asked = header.path().and_then(|path| all.with(|all| all.get(path.as_str())?.upgrade()));
                if let Some(asked) = asked {
                    asked.asked.store(true, Ordering::Relaxed);
                    asked.news.notify_one();
                }
            }
        });
        Ok(Hearing(task.abort_handle()))
    }
}

/// Somebody listens until this is dropped; it would keep the connection open.
#[derive(Debug)]
pub(super) struct Hearing(AbortHandle);

impl Drop for Hearing {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl StopAsked {
    /// Wait until it is asked for. One caller at a time; cancel-safe: it returns again at once until [`Self::answered`].
    pub async fn asked(&self) {
        while !self.asked.load(Ordering::Relaxed) {
            self.news.notified().await;
        }
    }

    /// It has been looked into.
    pub fn answered(&self) {
        self.asked.store(false, Ordering::Relaxed);
    }
}

impl Drop for StopAsked {
    fn drop(&mut self) {
        self.all.with(|all| all.remove(&self.path));
    }
}
