//! Making a worker and hearing it.
//!
//! A worker starts as paddock itself in a hidden role, the [`gate`], blocked on a socket. It is put into its fence,
//! the fence is verified, then an [`order`] releases it: it drops privileges, sets up descriptors and environment and
//! becomes the app's command. So every page that the command ever touches is charged to its fence.

pub mod account;
pub mod birth;
pub mod environment;
pub mod files;
pub mod gate;
pub mod message;
pub mod notify;
pub mod open_files;
pub mod order;
pub mod output;
pub mod pressure;
pub mod process;
