//! Records as journal entries.

use super::record::{Record, priority};
use crate::supervisor::note::Level;
use crate::systemd::journal::{Entry, JournalSocket, message_id};

/// Send a record; what could not be sent is counted and told when there is room again.
pub(super) fn write(socket: &mut JournalSocket, app: &str, record: &Record<'_>) {
    if socket.has_lost() {
        let lost = socket.take_lost();
        let message = format!("{lost} log entries were lost because journald took none");
        let entry = entry(app, &Record::of_message(Level::Warning, &message));
        if socket.try_send(&entry).is_err() {
            socket.count_lost(lost);
        }
    }
    socket.send(&entry(app, record));
}

fn entry(app: &str, record: &Record<'_>) -> Entry {
    let identifier = if record.is_output { app } else { "paddock" };
    let mut entry = Entry::default()
        .field("MESSAGE", record.message)
        .field("PRIORITY", priority(record.level()))
        .field("SYSLOG_IDENTIFIER", identifier)
        .field("PADDOCK_APP", app)
        .maybe("MESSAGE_ID", record.event.map(message_id))
        .maybe("PADDOCK_EVENT", record.event)
        .maybe("PADDOCK_SLOT", record.slot)
        .maybe("PADDOCK_GENERATION", record.generation)
        .maybe("PADDOCK_WORKER", record.worker)
        .maybe("PADDOCK_WORKER_PID", record.pid)
        .maybe("PADDOCK_REASON", record.reason)
        .maybe("PADDOCK_MEMORY_BYTES", record.memory)
        .maybe("PADDOCK_MEMORY_LIMIT_BYTES", record.limit)
        .maybe("PADDOCK_UNIT", record.unit)
        // What `journalctl -u` looks for in the entries of root's daemons (systemd.journal-fields(7)).
        .maybe("OBJECT_SYSTEMD_UNIT", record.unit.filter(|unit| is_scope(unit)));
    for (name, value) in &record.fields {
        entry = entry.field(&format!("PADDOCK_{}", name.to_ascii_uppercase()), value);
    }
    entry
}

/// Other fences are described by a path.
fn is_scope(fence: &str) -> bool {
    !fence.contains('/') && fence.strip_suffix(".scope").is_some()
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixDatagram;

    use super::super::Log;
    use super::*;
    use crate::supervisor::id::{Generation, SlotId, WorkerId};
    use crate::supervisor::note::{Note, NoteKind};

    fn hear(journald: &UnixDatagram) -> Option<String> {
        journald.set_nonblocking(true).unwrap();
        let mut buffer = vec![0; 64 * 1024];
        let length = journald.recv(&mut buffer).ok()?;
        Some(String::from_utf8_lossy(&buffer[..length]).into_owned())
    }

    #[test]
    fn a_note_becomes_an_entry_with_every_field() {
        let note = Note {
            level: Level::Warning,
            kind: NoteKind::WorkerDied,
            slot: Some(SlotId(2)),
            worker: Some(WorkerId(17)),
            generation: Some(Generation(3)),
            pid: Some(4711),
            reason: Some("oom-kill".into()),
            memory: Some(536_870_912),
            limit: Some(536_870_913),
            message: "slot 2: worker 4711 died: oom-kill".into(),
        };
        let entry = entry("shop", &Record::of_note(&note, Some("paddock-shop-2-1.scope")));
        assert_eq!(
            String::from_utf8(entry.as_bytes().to_vec()).unwrap(),
            "MESSAGE=slot 2: worker 4711 died: oom-kill\n\
             PRIORITY=4\n\
             SYSLOG_IDENTIFIER=paddock\n\
             PADDOCK_APP=shop\n\
             MESSAGE_ID=eaa86105499f4ae09522d2c4a2011e9e\n\
             PADDOCK_EVENT=worker-died\n\
             PADDOCK_SLOT=2\n\
             PADDOCK_GENERATION=3\n\
             PADDOCK_WORKER=17\n\
             PADDOCK_WORKER_PID=4711\n\
             PADDOCK_REASON=oom-kill\n\
             PADDOCK_MEMORY_BYTES=536870912\n\
             PADDOCK_MEMORY_LIMIT_BYTES=536870913\n\
             PADDOCK_UNIT=paddock-shop-2-1.scope\n\
             OBJECT_SYSTEMD_UNIT=paddock-shop-2-1.scope\n"
        );
    }

    #[test]
    fn lost_entries_are_counted_in_the_log() {
        let directory = std::env::temp_dir().join(format!("paddock-lost-{}", std::process::id()));
        std::fs::create_dir_all(&directory).unwrap();
        let path = directory.join("socket");
        let journald = UnixDatagram::bind(&path).unwrap();
        let log = Log::journald_to("shop", JournalSocket::open_at(&path).unwrap());
        for _ in 0..100_000 {
            log.say(Level::Info, "again");
        }
        let kept = std::iter::from_fn(|| hear(&journald)).count();
        assert!(kept < 100_000, "the queue never filled");
        log.say(Level::Info, "after");
        let told = hear(&journald).unwrap();
        let expected = format!("MESSAGE={} log entries were lost", 100_000 - kept);
        assert!(told.starts_with(&expected), "{told}");
        assert!(hear(&journald).unwrap().starts_with("MESSAGE=after\n"));
        assert_eq!(hear(&journald), None);
        std::fs::remove_dir_all(&directory).unwrap();
    }
}
