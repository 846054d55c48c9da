//! journald: our own entries by its native protocol, and streams for the workers' output.
//!
//! Source: systemd's "Native Journal Protocol" page, `systemd-journald.service(8)`, `sd_journal_stream_fd(3)`.

mod entry;
mod message_id;
pub(crate) mod read;
mod stream;

pub use entry::{Entry, JournalSocket};
pub use message_id::{MessageId, message_id};
pub use read::last_lines;
pub use stream::{open_worker_stream, stderr_is_journal, stream_id};
