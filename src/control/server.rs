//! The manager's end of the control socket.
//!
//! Every client is a task of its own, so one that never reads, sends half a message or none, or garbage, keeps nobody
//! waiting and loses nothing but its own connection. Requests go to the loop one by one through a channel; nothing here
//! wakes up unless a client does something.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd, RawFd};
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags};
use rustix::fs::{AtFlags, Gid, Mode};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketFlags, SocketType};
use serde::{Deserialize, Serialize};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Notify, broadcast, mpsc, oneshot};
use tokio::task::AbortHandle;

use crate::supervisor::id::RequestId;

use super::directory::{RuntimeDirectory, SOCKET, socket_address};
use super::frame::Frames;
use super::line::Line;
use super::protocol::{Answer, Asked, ControlReply, ControlRequest, Envelope, MAX_REQUEST, Peer, understand};

/// How many clients are served at a time. A further one takes the place of the one that has been idle longest.
pub const MAX_CLIENTS: usize = 64;
/// How long a message may take from its first byte to its last, and an answer to be taken.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long [`Server::finish`] waits for answers to be taken.
const LAST_WORDS: Duration = Duration::from_secs(1);

/// A client's request, for the loop.
#[derive(Debug)]
pub struct Call {
    /// What it wants.
    pub request: ControlRequest,
    /// Who it is.
    pub peer: Peer,
    /// Where the answer goes.
    pub reply: Reply,
}

/// Where an answer goes. The client may have gone; that cancels nothing. Dropped unanswered, the client is told that the
/// manager ended.
#[derive(Debug)]
pub struct Reply {
    sender: oneshot::Sender<ControlReply>,
    client: u64,
}

impl Reply {
    /// Answer.
    ///
    /// # Errors
    /// The client has left.
    pub fn send(self, answer: ControlReply) -> Result<(), ControlReply> {
        self.sender.send(answer)
    }

    /// Wait until the client has left.
    pub async fn closed(&mut self) {
        self.sender.closed().await;
    }
}

/// Where the answers to requests go that an earlier image of this process had taken.
pub type Waiting = Vec<(RequestId, Reply)>;

/// A client that waits for an answer, on its way into the next image of this process.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HandedClient {
    /// What it waits for.
    pub request: RequestId,
    /// Its connection.
    pub fd: RawFd,
    /// Whether it wants to know how far it is.
    pub more: bool,
}

/// The bound control socket and its clients.
#[derive(Debug)]
pub struct Server {
    shared: Rc<Shared>,
    accepting: AbortHandle,
    directory: OwnedFd,
    /// The listening socket once more, for [`Server::descriptor`].
    listener: OwnedFd,
}

#[derive(Debug)]
struct Shared {
    app: String,
    calls: mpsc::Sender<Call>,
    progress: broadcast::Sender<Arc<str>>,
    clients: RefCell<BTreeMap<u64, Client>>,
    /// Numbers clients, and orders them by when they last did something.
    counter: Cell<u64>,
    /// Somebody's call has been answered, or somebody has left.
    freed: Notify,
    /// Who besides root may talk to us; none: everybody whom the socket's mode lets in, which is its group.
    only: Option<u32>,
}

#[derive(Debug)]
struct Client {
    task: Option<AbortHandle>,
    busy: bool,
    last_active: u64,
    connection: RawFd,
    /// Whether it wants to know how far its request is.
    more: bool,
}

impl Server {
    /// Bind the socket in the app's runtime directory and serve it on this thread's [`tokio::task::LocalSet`]. The app's
    /// lock must be held: a stale socket is removed. With `group`, a name or number, members of that group may do
    /// everything; without, only root and this user.
    ///
    /// The mode is the socket's before it has a name, so there is no moment at which more may connect than shall.
    pub fn bind(
        directory: &RuntimeDirectory,
        app: &str,
        group: Option<&str>,
    ) -> Result<(Self, mpsc::Receiver<Call>), BindError> {
        let io = |what| {
            let path = directory.path().join(SOCKET);
            move |errno: Errno| BindError::Io { what, path, source: errno.into() }
        };
        let group = group.map(find_group).transpose()?;
        let only = group.is_none().then(|| rustix::process::geteuid().as_raw());
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)
            .map_err(io("cannot make"))?;
        // Linux takes the mode of the file that bind(2) makes from the socket's own.
        rustix::fs::fchmod(&socket, Mode::from_raw_mode(0o600)).map_err(io("cannot protect"))?;
        match rustix::fs::unlinkat(directory, SOCKET, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => {}
            Err(errno) => return Err(io("cannot remove the stale")(errno)),
        }
        let address = socket_address(directory.path(), directory.as_fd()).map_err(io("cannot name"))?;
        rustix::net::bind(&socket, &address).map_err(io("cannot bind"))?;
        if let Some((name, gid)) = group {
            rustix::fs::chownat(directory, SOCKET, None, Some(gid), AtFlags::SYMLINK_NOFOLLOW)
                .map_err(|errno| BindError::Group { name, source: errno.into() })?;
            rustix::fs::chmodat(directory, SOCKET, Mode::from_raw_mode(0o660), AtFlags::empty())
                .map_err(io("cannot set the mode of"))?;
        }
        rustix::net::listen(&socket, 128).map_err(io("cannot listen on"))?;
        Self::serve(socket, directory, app, only)
    }

    /// Serve a socket that an earlier image of this process had bound, and the clients that wait there for answers: where
    /// those go comes with them.
    pub fn resume(
        socket: OwnedFd,
        directory: &RuntimeDirectory,
        app: &str,
        group: Option<&str>,
        clients: Vec<(HandedClient, OwnedFd)>,
    ) -> Result<(Self, mpsc::Receiver<Call>, Waiting), BindError> {
        let only = group.is_none().then(|| rustix::process::geteuid().as_raw());
        let (server, calls) = Self::serve(socket, directory, app, only)?;
        let waiting = clients.into_iter().filter_map(|(client, fd)| {
            // One that has gone meanwhile is let go.
            let stream = UnixStream::from_std(fd.into()).ok()?;
            Some((client.request, server.shared.go_on(Line::new(stream), client.more)))
        });
        let waiting = waiting.collect();
        Ok((server, calls, waiting))
    }

    fn serve(
        socket: OwnedFd,
        directory: &RuntimeDirectory,
        app: &str,
        only: Option<u32>,
    ) -> Result<(Self, mpsc::Receiver<Call>), BindError> {
        let std = |what, source| BindError::Io { what, path: directory.path().join(SOCKET), source };
        let again =
            |what, fd: BorrowedFd<'_>| rustix::io::fcntl_dupfd_cloexec(fd, 0).map_err(|errno| std(what, errno.into()));
        let own = again("cannot keep", socket.as_fd())?;
        let listener = UnixListener::from_std(socket.into()).map_err(|source| std("cannot watch", source))?;
        let directory = again("cannot keep the directory of", directory.as_fd())?;

        let (calls, receiver) = mpsc::channel(MAX_CLIENTS);
        let shared = Rc::new(Shared {
            app: app.to_owned(),
            calls,
            progress: broadcast::channel(64).0,
            clients: RefCell::default(),
            counter: Cell::new(0),
            freed: Notify::new(),
            only,
        });
        let accepting = tokio::task::spawn_local(accept(listener, Rc::clone(&shared))).abort_handle();
        Ok((Self { shared, accepting, directory, listener: own }, receiver))
    }

    /// The listening socket: clients wait in its backlog while nobody accepts.
    pub fn descriptor(&self) -> BorrowedFd<'_> {
        self.listener.as_fd()
    }

    /// Whether an answer is on its way to somebody: all that are busy, but for `waiting` ones.
    pub fn is_answering(&self, waiting: usize) -> bool {
        self.shared.clients.borrow().values().filter(|client| client.busy).count() > waiting
    }

    /// The connection of the client that waits for this answer; none: it has left.
    pub fn handed(&self, request: RequestId, reply: &Reply) -> Option<HandedClient> {
        let clients = self.shared.clients.borrow();
        let client = clients.get(&reply.client)?;
        Some(HandedClient { request, fd: client.connection, more: client.more })
    }

    /// Tell the clients that wait for the end of a reload, and want to know, how far it is.
    pub fn progress(&self, sentence: &str) {
        // Nobody listening is no error.
        let _ = self.shared.progress.send(Arc::from(sentence));
    }

    /// End: take no more clients, remove the socket, and give those that were just answered a second to take it. Every
    /// [`Call::reply`] must have been used or dropped before.
    pub async fn finish(self) {
        self.accepting.abort();
        let _ = rustix::fs::unlinkat(&self.directory, SOCKET, AtFlags::empty());
        let answered = async {
            while self.shared.clients.borrow().values().any(|client| client.busy) {
                self.shared.freed.notified().await;
            }
        };
        // Who has not taken the answer by then does not want it.
        let _ = tokio::time::timeout(LAST_WORDS, answered).await;
        for client in self.shared.clients.borrow_mut().values_mut() {
            if let Some(task) = client.task.take() {
                task.abort();
            }
        }
    }
}

/// Why there is no control socket.
#[derive(Debug, thiserror::Error)]
pub enum BindError {
    /// `[control] group` names nobody.
    #[error("[control] group: there is no group {0:?}")]
    NoGroup(String),
    /// The socket cannot be given to the group.
    #[error(
        "[control] group: cannot give the control socket to {name:?}, which takes root or being its member: {source}"
    )]
    Group {
        /// Which.
        name: String,
        /// What the kernel said.
        source: io::Error,
    },
    /// The kernel refused.
    #[error("control socket: {what} {}: {source}", path.display())]
    Io {
        /// What was tried.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
}

fn find_group(name: &str) -> Result<(String, Gid), BindError> {
    let missing = || BindError::NoGroup(name.to_owned());
    let found = match nix::unistd::Group::from_name(name) {
        Ok(Some(group)) => group.gid.as_raw(),
        Ok(None) | Err(_) => name.parse().map_err(|_| missing())?,
    };
    // All ones means "leave it" to chown(2).
    if found == u32::MAX { Err(missing()) } else { Ok((name.to_owned(), Gid::from_raw(found))) }
}

async fn accept(listener: UnixListener, shared: Rc<Shared>) {
    loop {
        match listener.accept().await {
            Ok((stream, _)) => shared.welcome(Line::new(stream)),
            Err(error) => {
                // No descriptors left, most likely: the client stays in the backlog meanwhile.
                tracing::warn!("control socket: cannot accept a client: {error}");
                tokio::time::sleep(Duration::from_millis(200)).await;
            }
        }
    }
}

impl Shared {
    fn welcome(self: &Rc<Self>, stream: Line) {
        let peer = match stream.peer_cred() {
            Ok(found) => Peer { uid: found.uid(), pid: found.pid().and_then(rustix::process::Pid::from_raw) },
            Err(error) => {
                tracing::warn!("control socket: a client without credentials: {error}");
                return;
            }
        };
        if self.only.is_some_and(|only| peer.uid != 0 && peer.uid != only) {
            tracing::warn!("control socket: refused a client of user {}", peer.uid);
            return;
        }
        if !self.make_room() {
            let full = Answer::failed("the manager is serving as many clients as it can");
            // A new connection's buffer is empty; if it is not, the client finds out by the end of the connection.
            let _ = stream.try_write(&full.encode(false));
            return;
        }
        let place = self.place(&stream);
        let number = place.number;
        let task = tokio::task::spawn_local(async move {
            if let Err(why) = serve(&stream, &mut Frames::new(MAX_REQUEST), peer, &place).await {
                tracing::debug!("control socket: dropped a client of user {}: {why}", peer.uid);
            }
        });
        self.runs(number, task.abort_handle());
    }

    /// A client whose request an earlier image of this process had taken: it gets its answer, and is served on.
    fn go_on(self: &Rc<Self>, stream: Line, more: bool) -> Reply {
        let place = self.place(&stream);
        let number = place.number;
        let (sender, answer) = oneshot::channel();
        place.set_busy(true);
        place.set_more(more);
        let task = tokio::task::spawn_local(async move {
            let peer = Peer {
                uid: stream.peer_cred().map_or(u32::MAX, |found| found.uid()),
                pid: stream.peer_cred().ok().and_then(|found| found.pid()).and_then(rustix::process::Pid::from_raw),
            };
            let mut frames = Frames::new(MAX_REQUEST);
            let progress = more.then(|| place.shared.progress.subscribe());
            let served = async {
                let answer = answered(&stream, &mut frames, progress, answer).await?;
                write(&stream, &answer.encode(false)).await?;
                place.set_busy(false);
                serve(&stream, &mut frames, peer, &place).await
            };
            if let Err(why) = served.await {
                tracing::debug!("control socket: dropped a client: {why}");
            }
        });
        self.runs(number, task.abort_handle());
        Reply { sender, client: number }
    }

    fn place(self: &Rc<Self>, stream: &UnixStream) -> Place {
        let number = self.tick();
        let connection = stream.as_raw_fd();
        let client = Client { task: None, busy: false, last_active: number, connection, more: false };
        self.clients.borrow_mut().insert(number, client);
        Place { shared: Rc::clone(self), number }
    }

    fn runs(&self, number: u64, task: AbortHandle) {
        if let Some(client) = self.clients.borrow_mut().get_mut(&number) {
            client.task = Some(task);
        }
    }

    /// Let go of the client that has been idle longest if there are too many; false: all are waiting for answers.
    fn make_room(&self) -> bool {
        let mut clients = self.clients.borrow_mut();
        if clients.len() < MAX_CLIENTS {
            return true;
        }
        let idle = clients
            .iter()
            .filter(|(_, client)| !client.busy)
            .min_by_key(|(_, client)| client.last_active)
            .map(|(number, _)| *number);
        let Some(gone) = idle.and_then(|number| clients.remove(&number)) else { return false };
        if let Some(task) = gone.task {
            task.abort();
        }
        true
    }

    fn tick(&self) -> u64 {
        let number = self.counter.get().wrapping_add(1);
        self.counter.set(number);
        number
    }
}

/// A client's entry among the others, gone when its task is.
struct Place {
    shared: Rc<Shared>,
    number: u64,
}

impl Place {
    fn set_busy(&self, busy: bool) {
        let now = self.shared.tick();
        if let Some(client) = self.shared.clients.borrow_mut().get_mut(&self.number) {
            client.busy = busy;
            client.last_active = now;
        }
        if !busy {
            self.shared.freed.notify_one();
        }
    }
}

impl Place {
    fn set_more(&self, more: bool) {
        if let Some(client) = self.shared.clients.borrow_mut().get_mut(&self.number) {
            client.more = more;
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // The map may be borrowed by whoever ends this task; then the entry has already been taken out.
        if let Ok(mut clients) = self.shared.clients.try_borrow_mut() {
            clients.remove(&self.number);
        }
        self.shared.freed.notify_one();
    }
}

/// Why a connection was given up.
#[derive(Debug, thiserror::Error)]
enum Dropped {
    #[error("its message is longer than {MAX_REQUEST} bytes")]
    TooLong,
    #[error("it sent half a message and no more")]
    HalfMessage,
    #[error("it sent something that is no Varlink message: {0}")]
    Garbage(serde_json::Error),
    #[error("it does not read")]
    NeverReads,
    #[error("it left before the answer")]
    Left,
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// One client, until it leaves.
async fn serve(stream: &Line, frames: &mut Frames, peer: Peer, place: &Place) -> Result<(), Dropped> {
    while let Some(message) = read_message(stream, frames).await? {
        let envelope: Envelope = serde_json::from_slice(&message).map_err(Dropped::Garbage)?;
        place.set_busy(true);
        let (oneway, more) = (envelope.oneway, envelope.more);
        let answer = match understand(envelope, &place.shared.app) {
            Asked::Known(answer) => answer,
            Asked::Loop(request) => {
                call(stream, frames, place, Question { request, peer, more: more && !oneway }).await?
            }
        };
        if !oneway {
            write(stream, &answer.encode(false)).await?;
        }
        place.set_busy(false);
        // Others first: a client may have sent many messages at once.
        tokio::task::yield_now().await;
    }
    Ok(())
}

/// A call on its way to the loop.
struct Question {
    request: ControlRequest,
    peer: Peer,
    more: bool,
}

/// Have the loop answer.
async fn call(
    stream: &Line,
    frames: &mut Frames,
    place: &Place,
    Question { request, peer, more }: Question,
) -> Result<Answer, Dropped> {
    let progress = more.then(|| place.shared.progress.subscribe());
    place.set_more(more);
    let (sender, answer) = oneshot::channel();
    let reply = Reply { sender, client: place.number };
    if place.shared.calls.send(Call { request, peer, reply }).await.is_err() {
        return Ok(unanswered());
    }
    answered(stream, frames, progress, answer).await
}

fn unanswered() -> Answer {
    Answer::failed("the manager is ending and did not answer")
}

/// The loop's answer, with the steps on the way to it if they are wanted.
async fn answered(
    stream: &Line,
    frames: &mut Frames,
    mut progress: Option<broadcast::Receiver<Arc<str>>>,
    mut answer: oneshot::Receiver<ControlReply>,
) -> Result<Answer, Dropped> {
    let mut watching = true;
    loop {
        tokio::select! {
            biased;
            line = next_line(&mut progress) => {
                let answer = Answer::Parameters(serde_json::json!({ "message": &*line }));
                write(stream, &answer.encode(true)).await?;
            }
            answer = &mut answer => return Ok(answer.map_or_else(|_| unanswered(), Answer::from)),
            end = watch(stream, frames), if watching => {
                if end? && hung_up(stream)? {
                    return Err(Dropped::Left);
                }
                // It only closed its own direction, or sent all that we keep: it is not looked at until it is answered.
                watching = false;
            }
        }
    }
}

/// The next step of a reload; pending for ever if there is none.
async fn next_line(progress: &mut Option<broadcast::Receiver<Arc<str>>>) -> Arc<str> {
    loop {
        let Some(receiver) = progress else { return std::future::pending().await };
        match receiver.recv().await {
            Ok(line) => return line,
            Err(broadcast::error::RecvError::Lagged(_)) => {}
            Err(broadcast::error::RecvError::Closed) => *progress = None,
        }
    }
}

/// Read ahead while the client waits. True: it will send nothing more; false: it has sent as much as is kept.
async fn watch(stream: &Line, frames: &mut Frames) -> io::Result<bool> {
    while !frames.is_full() {
        if stream.read_some(frames).await? == 0 {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Whether the other end is closed altogether, not only for sending (poll(2), `POLLHUP`).
fn hung_up(stream: &UnixStream) -> io::Result<bool> {
    let mut fds = [PollFd::new(stream, PollFlags::empty())];
    rustix::event::poll(&mut fds, Some(&rustix::event::Timespec::default()))?;
    let [fd] = fds;
    Ok(fd.revents().contains(PollFlags::HUP))
}

/// The next message; none: the client has left.
async fn read_message(stream: &Line, frames: &mut Frames) -> Result<Option<Vec<u8>>, Dropped> {
    // Between messages a client may be idle for as long as it likes.
    if frames.is_empty() && stream.read_some(frames).await? == 0 {
        return Ok(None);
    }
    let rest = async {
        loop {
            if let Some(message) = frames.next().map_err(|_| Dropped::TooLong)? {
                return Ok(Some(message));
            }
            if stream.read_some(frames).await? == 0 {
                return Err(Dropped::HalfMessage);
            }
        }
    };
    tokio::time::timeout(PATIENCE, rest).await.unwrap_or(Err(Dropped::HalfMessage))
}

async fn write(stream: &UnixStream, mut bytes: &[u8]) -> Result<(), Dropped> {
    let all = async {
        while !bytes.is_empty() {
            stream.writable().await?;
            match stream.try_write(bytes) {
                Ok(written) => bytes = bytes.get(written..).unwrap_or_default(),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    };
    tokio::time::timeout(PATIENCE, all).await.map_err(|_| Dropped::NeverReads)?.map_err(Dropped::Io)
}
