//! What a peer's memory limits become, and the rule for the room above them.

use serde_json::json;

use super::draft::Draft;
use crate::config::key::Key;
use crate::config::units::render_size;

/// The rule, as every imported file tells it.
const HEADROOM: &str = "The room between recycle_at and max must exceed what the requests (or tasks) in flight can allocate \
until the replacement is ready: beyond max the kernel kills the worker and all it holds. `paddock status` shows each \
worker's peak: raise max if your requests are large.";

/// A soft limit, and a hard one where the peer had one above it, in bytes.
pub(super) fn limits(draft: &mut Draft, soft: Option<u64>, hard: Option<u64>, soft_was: &str, hard_was: &str) {
    match (soft, hard) {
        (None, None) => {}
        (None, Some(hard)) => {
            draft.set(Key::MemoryMax, json!(render_size(hard)), hard_was);
            draft.remark(Key::MemoryMax, "recycle_at is 80% of it unless you write another.");
            draft.remark(Key::MemoryMax, HEADROOM);
        }
        (Some(soft), hard) => {
            let (max, was) = match hard.filter(|hard| *hard > soft) {
                Some(hard) => (hard, hard_was.to_owned()),
                // A quarter more, so that the soft limit is paddock's usual 80 %.
                None => (
                    whole_megabytes(soft.saturating_add(soft / 4)),
                    "recycle_at and a quarter: what the kernel enforces must lie above what recycles.".to_owned(),
                ),
            };
            draft.set(Key::MemoryMax, json!(render_size(max)), was);
            draft.remark(Key::MemoryMax, HEADROOM);
            draft.set(Key::MemoryRecycleAt, json!(render_size(soft)), soft_was);
        }
    }
    draft.suggest(
        Key::MemoryBudget,
        json!("75%"),
        "What all workers may hold together, replacements included: (workers + surge) x max must fit.",
    );
}

/// For peers that knew no limit.
pub(super) fn none(draft: &mut Draft, peer: &str) {
    let comment = format!("{peer} had no limit. With one, a worker that leaks is replaced before it hurts the others.");
    draft.suggest(Key::MemoryMax, json!("512M"), comment);
    draft.suggest(Key::MemoryRecycleAt, json!("80%"), HEADROOM);
}

fn whole_megabytes(bytes: u64) -> u64 {
    bytes.checked_next_multiple_of(1 << 20).unwrap_or(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    fn written(soft: Option<u64>, hard: Option<u64>) -> (Option<String>, Option<String>) {
        let mut draft = Draft::new("peer");
        limits(&mut draft, soft, hard, "", "");
        let text = |key| draft.value(key).and_then(|value| value.as_str()).map(str::to_owned);
        (text(Key::MemoryMax), text(Key::MemoryRecycleAt))
    }

    #[test]
    fn max_lies_a_quarter_above_the_soft_limit_unless_the_peer_said_where() {
        let text = |text: &str| Some(text.to_owned());
        assert_eq!(written(Some(512 * MIB), None), (text("640M"), text("512M")));
        assert_eq!(written(Some(512 * MIB), Some(1024 * MIB)), (text("1G"), text("512M")));
        assert_eq!(written(Some(512 * MIB), Some(100 * MIB)), (text("640M"), text("512M")));
        assert_eq!(written(None, Some(2048 * MIB)), (text("2G"), None));
        assert_eq!(written(None, None), (None, None));
        assert_eq!(written(Some(200_000 << 10), None), (text("245M"), text("200000K")));
    }
}
