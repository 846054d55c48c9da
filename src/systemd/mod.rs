//! What systemd and paddock say to each other: sockets in, notifications up, the journal, units over D-Bus.

pub mod activation;
pub mod dbus;
pub mod journal;
pub mod notify;
pub mod stops;
