//! Listening sockets that an earlier manager had bound itself, out of the workers that still hold them.

use std::os::fd::OwnedFd;
use std::rc::Rc;

use rustix::process::{PidfdFlags, PidfdGetfdFlags};

use crate::config::model::Listen;
use crate::systemd::activation::InheritedSocket;

use super::listeners::is_bound_to;
use super::worker::Worker;

/// The most descriptors of one worker that are looked at.
const DESCRIPTORS_MAX: usize = 4096;

/// One socket for each configured address, as far as a worker has it (`pidfd_getfd(2)`; needs the right to trace it,
/// which root has).
pub fn listeners<'a>(workers: impl Iterator<Item = &'a Rc<Worker>>, listen: &Listen) -> Vec<OwnedFd> {
    let mut missing: Vec<_> = listen.bind.iter().map(|bind| &bind.address).collect();
    let mut found = Vec::new();
    for worker in workers {
        if missing.is_empty() {
            break;
        }
        let Some(process) = worker.process.borrow().clone() else { continue };
        let Ok(entries) = std::fs::read_dir(format!("/proc/{}/fd", process.id())) else { continue };
        let Ok(pidfd) = rustix::process::pidfd_open(process.pid(), PidfdFlags::empty()) else { continue };
        for entry in entries.flatten().take(DESCRIPTORS_MAX) {
            let Some(number) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
            let is_socket = std::fs::read_link(entry.path())
                .is_ok_and(|target| target.to_str().is_some_and(|target| target.starts_with("socket:")));
            if !is_socket {
                continue;
            }
            let Ok(fd) = rustix::process::pidfd_getfd(&pidfd, number, PidfdGetfdFlags::empty()) else { continue };
            let socket = InheritedSocket::describe(String::new(), fd);
            if let Some(index) = missing.iter().position(|address| socket.listening && is_bound_to(&socket, address)) {
                missing.swap_remove(index);
                found.push(socket.fd);
            }
        }
    }
    found
}
