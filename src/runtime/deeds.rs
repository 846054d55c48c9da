//! What is under way outside the loop, and would be lost with this image of the process: starts, a death whose facts are
//! being gathered, orders to fences. While anything is, the binary is not replaced.

use std::cell::Cell;
use std::rc::Rc;

use tokio::sync::Notify;

/// All that is under way.
#[derive(Debug, Clone, Default)]
pub struct Deeds(Rc<Shared>);

#[derive(Debug, Default)]
struct Shared {
    count: Cell<usize>,
    idle: Notify,
}

/// One thing that is under way, until this is dropped.
#[derive(Debug)]
pub struct Deed(Rc<Shared>);

impl Deeds {
    /// Something begins.
    pub fn begin(&self) -> Deed {
        self.0.count.set(self.0.count.get() + 1);
        Deed(Rc::clone(&self.0))
    }

    /// Whether nothing is under way.
    pub fn are_done(&self) -> bool {
        self.0.count.get() == 0
    }

    /// Wait until the last one ends, or return at once if one has since the last call. Cancel-safe.
    pub async fn end(&self) {
        self.0.idle.notified().await;
    }
}

impl Drop for Deed {
    fn drop(&mut self) {
        self.0.count.set(self.0.count.get().saturating_sub(1));
        if self.0.count.get() == 0 {
            self.0.idle.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_last_end_wakes_who_waits_also_if_it_came_before() {
        let deeds = Deeds::default();
        let (one, two) = (deeds.begin(), deeds.begin());
        drop(one);
        assert!(!deeds.are_done());
        drop(two);
        assert!(deeds.are_done());
        deeds.end().await;
        let again = deeds.begin();
        let waiting = tokio::time::timeout(std::time::Duration::from_millis(10), deeds.end());
        assert!(waiting.await.is_err(), "one is under way");
        drop(again);
        deeds.end().await;
    }
}
