//! The control socket: how `paddock status`, `reload` and the others talk to a manager.
//!
//! * [`directory`]: where the socket lives, and the lock that makes a manager the only one;
//! * [`protocol`]: what can be said, as Varlink;
//! * [`server`]: the manager's end, one task for each client;
//! * [`client`]: the other end, plain blocking calls;
//! * [`status`]: the report that `Status` answers with.

pub mod client;
pub mod directory;
pub(crate) mod frame;
mod line;
pub mod protocol;
pub mod server;
pub mod status;

pub use protocol::{ControlReply, ControlRequest, Peer};
pub use server::{Call, Server};
