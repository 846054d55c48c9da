//! What adapters say with `tracing`, as records.

use std::fmt::{Debug, Write};

use tracing::field::{Field, Visit};
use tracing::level_filters::LevelFilter;
use tracing::{Event, Subscriber};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt};
use tracing_subscriber::registry::Registry;

use super::{Log, Record};
use crate::supervisor::note::{Level, NoteKind};

pub(super) fn install(log: Log) -> bool {
    tracing::subscriber::set_global_default(Registry::default().with(LogLayer { log })).is_ok()
}

struct LogLayer {
    log: Log,
}

impl<S: Subscriber> Layer<S> for LogLayer {
    fn max_level_hint(&self) -> Option<LevelFilter> {
        Some(LevelFilter::INFO)
    }

    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let level = match *event.metadata().level() {
            tracing::Level::ERROR => Level::Error,
            tracing::Level::WARN => Level::Warning,
            tracing::Level::INFO => Level::Info,
            // Libraries say how they do things here; nobody asked.
            _ => return,
        };
        // Libraries' own news is not the operator's; their troubles are.
        if level == Level::Info && !event.metadata().target().starts_with("paddock") {
            return;
        }
        let mut facts = Facts::default();
        event.record(&mut facts);
        self.log.record(&Record {
            level: Some(level),
            message: &facts.message,
            event: Some(NoteKind::Notice),
            fields: facts.fields,
            ..Record::default()
        });
    }
}

#[derive(Default)]
struct Facts {
    message: String,
    fields: Vec<super::Field>,
}

impl Visit for Facts {
    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == "message" {
            self.message.push_str(value);
        } else {
            self.fields.push((field.name().to_owned(), value.to_owned()));
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn Debug) {
        if field.name() == "message" {
            let _ = write!(self.message, "{value:?}");
        } else {
            self.fields.push((field.name().to_owned(), format!("{value:?}")));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::unix::net::UnixStream;

    use super::super::Stderr;
    use super::*;

    #[test]
    fn adapters_are_heard_and_libraries_only_in_trouble() {
        let (mut reader, writer) = UnixStream::pair().unwrap();
        let log = Log::json_to("shop", Stderr::new(writer.into()));
        let subscriber = Registry::default().with(LogLayer { log });
        tracing::subscriber::with_default(subscriber, || {
            tracing::info!(unit = "x.scope", tries = 2, "made a {}", "scope");
            tracing::debug!("how it is done");
            tracing::info!(target: "zbus", "chatter");
            tracing::warn!(target: "zbus", "trouble");
        });
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        let lines: Vec<serde_json::Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let messages: Vec<_> = lines.iter().map(|line| line["message"].as_str().unwrap()).collect();
        assert_eq!(messages, ["made a scope", "trouble"]);
        assert_eq!(lines[0]["fields"], serde_json::json!({"tries": "2", "unit": "x.scope"}));
        assert_eq!(lines[1]["level"], "warning");
    }
}
