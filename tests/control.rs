//! The control socket from outside: the protocol, clients that mean harm, and who may connect.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::wildcard_enum_match_arm,
    reason = "a test ends at the first surprise"
)]

#[path = "control/manager.rs"]
mod manager;

use std::io::{Read as _, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::mpsc;
use std::time::Duration;

use paddock::config::model::Signal;
use paddock::control::client::{ClientError, Connection, wait_for_end};
use paddock::control::directory::{RuntimeDirectory, Surroundings};
use paddock::control::server::MAX_CLIENTS;
use paddock::control::{Call, ControlReply, ControlRequest};
use serde_json::{Value, json};

use manager::{BOUND, Manager, echo, report, scratch};

/// What only these tests do with a manager.
trait Harm {
    fn raw(&self) -> UnixStream;
    fn client(&self) -> Connection;
}

impl Harm for Manager {
    fn raw(&self) -> UnixStream {
        connect(&self.path)
    }

    fn client(&self) -> Connection {
        Connection::open_directory(&self.path).unwrap()
    }
}

/// Connect through the directory, whose path may be longer than an address may be.
fn connect(directory: &Path) -> UnixStream {
    use std::os::fd::AsRawFd as _;
    let fd = std::fs::File::open(directory).unwrap();
    let stream = UnixStream::connect(format!("/proc/self/fd/{}/control", fd.as_raw_fd())).unwrap();
    stream.set_read_timeout(Some(BOUND)).unwrap();
    stream.set_write_timeout(Some(BOUND)).unwrap();
    stream
}

/// Everything until the other end closes.
fn rest(stream: &mut UnixStream) -> Vec<u8> {
    let mut all = Vec::new();
    match stream.read_to_end(&mut all) {
        Ok(_) => all,
        Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => all,
        Err(error) => panic!("not closed: {error}"),
    }
}

/// Send one message, get one answer.
fn ask(stream: &mut UnixStream, message: &Value) -> Value {
    stream.write_all(format!("{message}\0").as_bytes()).unwrap();
    next(stream)
}

fn next(stream: &mut UnixStream) -> Value {
    let mut bytes = Vec::new();
    loop {
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap();
        if byte == [0] {
            return serde_json::from_slice(&bytes).unwrap();
        }
        bytes.push(byte[0]);
    }
}

fn method(name: &str, parameters: &Value) -> Value {
    json!({ "method": format!("io.paddock.Control.{name}"), "parameters": parameters })
}

#[test]
fn every_request_arrives_as_it_was_made() {
    let manager = Manager::start(echo);
    let mut client = manager.client();
    assert_eq!(client.status().unwrap(), report());
    for request in [
        ControlRequest::Reload { wait: false },
        ControlRequest::Reload { wait: true },
        ControlRequest::Recycle { slot: 3 },
        ControlRequest::Scale { workers: 0 },
        ControlRequest::Signal { signal: Signal(10), slot: None },
        ControlRequest::Signal { signal: Signal(64), slot: Some(2) },
        ControlRequest::Stop { fast: true },
    ] {
        let message = client.perform(&request, |_| {}).unwrap();
        assert_eq!(message, format!("{request:?}"));
    }
}

#[test]
fn failure_and_wrong_text_keep_their_words_and_exit_codes() {
    let manager = Manager::start(|call| {
        let reply = match call.request {
            ControlRequest::Reload { .. } => ControlReply::Failed {
                reason: "undone".to_owned(),
                last_words: vec!["ImportError: é".to_owned(), "\u{0}".to_owned()],
            },
            _ => ControlReply::Invalid { reason: "line 3,\ncolumn 4".to_owned() },
        };
        let _ = call.reply.send(reply);
    });
    let mut client = manager.client();
    let error = client.perform(&ControlRequest::Reload { wait: true }, |_| {}).unwrap_err();
    assert_eq!(error.exit_code(), 1);
    let ClientError::Failed { reason, last_words } = error else { panic!("{error:?}") };
    assert_eq!((reason.as_str(), last_words), ("undone", vec!["ImportError: é".to_owned(), "\u{0}".to_owned()]));
    let error = client.perform(&ControlRequest::Scale { workers: 0 }, |_| {}).unwrap_err();
    assert_eq!((error.exit_code(), error.to_string().as_str()), (2, "line 3,\ncolumn 4"));
}

#[test]
fn the_service_describes_itself() {
    let manager = Manager::start(echo);
    let mut stream = manager.raw();
    let info = ask(&mut stream, &json!({"method": "org.varlink.service.GetInfo"}));
    let interfaces = info["parameters"]["interfaces"].as_array().unwrap().clone();
    assert_eq!(interfaces, [json!("org.varlink.service"), json!("io.paddock.Control")]);
    for interface in interfaces {
        let answer = ask(
            &mut stream,
            &json!({"method": "org.varlink.service.GetInterfaceDescription", "parameters": {"interface": interface}}),
        );
        let text = answer["parameters"]["description"].as_str().unwrap();
        assert!(text.contains(&format!("interface {}\n", interface.as_str().unwrap())));
    }
}

#[test]
fn what_is_wrong_with_a_call_is_named() {
    let manager = Manager::start(echo);
    let mut stream = manager.raw();
    let service = |error: &str, key: &str, value: &str| json!({"error": format!("org.varlink.service.{error}"), "parameters": {key: value}});
    let nope = json!({"method": "org.varlink.service.GetInterfaceDescription", "parameters": {"interface": "a.b"}});
    for (call, answer) in [
        (method("Nope", &json!({})), service("MethodNotFound", "method", "io.paddock.Control.Nope")),
        (json!({"method": "a.b.C"}), service("InterfaceNotFound", "interface", "a.b")),
        (json!({"method": ""}), service("InterfaceNotFound", "interface", "")),
        (nope, service("InterfaceNotFound", "interface", "a.b")),
        (method("Scale", &json!({})), service("InvalidParameter", "parameter", "workers")),
        (method("Scale", &json!({"workers": -1})), service("InvalidParameter", "parameter", "workers")),
        (method("Scale", &json!({"workers": "3"})), service("InvalidParameter", "parameter", "workers")),
        (method("Scale", &json!({"workers": 1, "worker": 1})), service("InvalidParameter", "parameter", "worker")),
        (method("Signal", &json!({"signal": 65})), service("InvalidParameter", "parameter", "signal")),
        (method("Signal", &json!({"signal": 0})), service("InvalidParameter", "parameter", "signal")),
    ] {
        assert_eq!(ask(&mut stream, &call), answer, "{call}");
    }
    let reap = ask(&mut stream, &method("Reap", &json!({})));
    assert_eq!(reap["error"], "io.paddock.Control.Failed");
    assert!(reap["parameters"]["reason"].as_str().unwrap().contains("alive"));
}

#[test]
fn another_apps_manager_does_not_obey() {
    let manager = Manager::start(|call| panic!("{call:?} reached the loop"));
    let surroundings = Surroundings { flag: Some(manager.path.clone()), ..Default::default() };
    let mut client = Connection::open(&surroundings, "other").unwrap();
    let error = client.perform(&ControlRequest::Stop { fast: true }, |_| {}).unwrap_err();
    assert!(matches!(&error, ClientError::WrongApp { app } if app == "shop"), "{error:?}");
    assert_eq!(error.exit_code(), 3);
}

#[test]
fn a_oneway_call_gets_no_answer() {
    let (seen, heard) = mpsc::channel();
    let manager = Manager::start(move |call| {
        seen.send(call.request).unwrap();
        echo(call);
    });
    let mut stream = manager.raw();
    let mut call = method("Recycle", &json!({"slot": 9}));
    call["oneway"] = json!(true);
    stream.write_all(format!("{call}\0").as_bytes()).unwrap();
    assert_eq!(heard.recv_timeout(BOUND).unwrap(), ControlRequest::Recycle { slot: 9 });
    assert!(ask(&mut stream, &json!({"method": "org.varlink.service.GetInfo"}))["parameters"]["product"] == "paddock");
}

#[test]
fn many_messages_at_once_are_answered_in_order() {
    use std::fmt::Write as _;
    let manager = Manager::start(echo);
    let mut stream = manager.raw();
    let mut all = String::new();
    for slot in 0..500 {
        write!(all, "{}\0", method("Recycle", &json!({ "slot": slot }))).unwrap();
    }
    let mut writer = stream.try_clone().unwrap();
    let writing = std::thread::spawn(move || writer.write_all(all.as_bytes()).unwrap());
    for slot in 0..500 {
        assert_eq!(next(&mut stream)["parameters"]["message"], format!("Recycle {{ slot: {slot} }}"));
    }
    writing.join().unwrap();
}

#[test]
fn progress_reaches_whoever_waits_and_asked_for_it() {
    let (held, holding) = mpsc::channel();
    let manager = Manager::start(move |call| held.send(call).unwrap());
    let path = manager.path.clone();
    let waiting = std::thread::spawn(move || {
        let mut lines = Vec::new();
        let mut client = Connection::open_directory(&path).unwrap();
        let end = client.perform(&ControlRequest::Reload { wait: true }, |line| lines.push(line.to_owned()));
        (lines, end.unwrap())
    });
    let mut quiet = manager.raw();
    let call = holding.recv_timeout(BOUND).unwrap();
    quiet.write_all(format!("{}\0", method("Reload", &json!({}))).as_bytes()).unwrap();
    let other = holding.recv_timeout(BOUND).unwrap();
    manager.progress.send("slot 0 ready".to_owned()).unwrap();
    manager.progress.send("slot 1 ready".to_owned()).unwrap();
    // Progress goes through the loop, so an answer to a later request is behind it.
    let path = manager.path.clone();
    let behind = std::thread::spawn(move || Connection::open_directory(&path).unwrap().status().unwrap());
    let status = holding.recv_timeout(BOUND).unwrap();
    echo(status);
    behind.join().unwrap();
    call.reply.send(ControlReply::Done { message: "over".to_owned() }).unwrap();
    other.reply.send(ControlReply::Done { message: "over".to_owned() }).unwrap();
    let (lines, end) = waiting.join().unwrap();
    assert_eq!((lines, end.as_str()), (vec!["slot 0 ready".to_owned(), "slot 1 ready".to_owned()], "over"));
    assert_eq!(next(&mut quiet), json!({"parameters": {"message": "over"}}));
}

#[test]
fn clients_that_mean_harm_lose_their_own_connection_only() {
    let manager = Manager::start(echo);
    let mut half = manager.raw();
    half.write_all(b"{\"method\":\"io.paddock").unwrap();
    let mut garbage = Vec::new();
    for bytes in [
        &b"\0"[..],
        b"GET / HTTP/1.1\r\n\r\n\0",
        b"\xff\xfe\0",
        b"[]\0",
        b"{}\0",
        b"{\"method\":7}\0",
        b"{\"method\":\"io.paddock.Control.Status\",\"parameters\":[]}\0",
        &[b"[".repeat(60_000), vec![0]].concat(),
        &[b"{\"method\":\"a.b\",\"parameters\":{\"a\":".to_vec(), b"[".repeat(60_000), vec![0]].concat(),
    ] {
        let mut stream = manager.raw();
        stream.write_all(bytes).unwrap();
        garbage.push(stream);
    }
    let mut huge = manager.raw();
    let written = std::io::copy(&mut std::io::repeat(b'x').take(64 << 20), &mut huge);
    assert!(written.is_err(), "the manager took 64 MiB of one message: {written:?}");
    assert_eq!(manager.client().status().unwrap(), report());
    for mut stream in garbage {
        assert_eq!(rest(&mut stream), b"");
    }
    // Only time can tell that the other half will not come.
    assert_eq!(manager.client().status().unwrap(), report());
    assert_eq!(rest(&mut half), b"");
}

#[test]
fn a_client_that_drips_is_not_waited_for() {
    let manager = Manager::start(echo);
    let mut stream = manager.raw();
    let mut sent = 0;
    // Every byte comes in time, the message never does.
    while stream.write_all(b" ").is_ok() {
        sent += 1;
        assert!(sent < 300, "still served after 30 s of dripping");
        std::thread::sleep(Duration::from_millis(100));
    }
}

#[test]
fn a_client_that_never_reads_is_dropped_and_keeps_nobody_waiting() {
    let manager = Manager::start(|call| {
        let message = "x".repeat(1 << 20);
        let reply = match call.request {
            ControlRequest::Status => ControlReply::Status(Box::new(report())),
            _ => ControlReply::Done { message },
        };
        let _ = call.reply.send(reply);
    });
    let mut deaf: Vec<UnixStream> = (0..10).map(|_| manager.raw()).collect();
    for stream in &mut deaf {
        stream.write_all(format!("{}\0", method("Stop", &json!({}))).as_bytes()).unwrap();
    }
    assert_eq!(manager.client().status().unwrap(), report());
    for stream in &mut deaf {
        // A POLLHUP is the end of the connection, which is seen without reading.
        let mut fds = [rustix::event::PollFd::new(&*stream, rustix::event::PollFlags::empty())];
        let timeout = rustix::event::Timespec { tv_sec: 20, tv_nsec: 0 };
        assert_eq!(rustix::event::poll(&mut fds, Some(&timeout)), Ok(1), "never dropped");
        assert!(rest(stream).len() < 1 << 20);
    }
}

#[test]
fn a_thousand_connections_do_not_lock_anybody_out() {
    let manager = Manager::start(echo);
    let mut many: Vec<UnixStream> = (0..1000).map(|_| manager.raw()).collect();
    assert_eq!(manager.client().status().unwrap(), report());
    // Those dropped see it; the others are the youngest.
    let mut alive = 0;
    for stream in &mut many {
        stream.set_nonblocking(true).unwrap();
        match stream.read(&mut [0]) {
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => alive += 1,
            _ => assert_eq!(alive, 0, "an older one was kept, a younger one dropped"),
        }
    }
    assert!((1..=MAX_CLIENTS).contains(&alive), "{alive} are still served");
}

#[test]
fn when_all_places_wait_for_answers_the_next_client_is_told() {
    let (held, holding) = mpsc::channel();
    let manager = Manager::start(move |call| held.send(call).unwrap());
    let mut waiting: Vec<UnixStream> = Vec::new();
    let mut calls = Vec::new();
    for _ in 0..MAX_CLIENTS {
        let mut stream = manager.raw();
        stream.write_all(format!("{}\0", method("Reload", &json!({}))).as_bytes()).unwrap();
        calls.push(holding.recv_timeout(BOUND).unwrap());
        waiting.push(stream);
    }
    let error = manager.client().status().unwrap_err();
    assert!(matches!(&error, ClientError::Failed { reason, .. } if reason.contains("as many")), "{error:?}");
    // One that gives up makes room, although its reload goes on.
    drop(waiting.remove(0));
    let gone = calls.remove(0);
    let mut gone = gone.reply;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async { tokio::time::timeout(BOUND, gone.closed()).await.expect("noticed") });
    let path = manager.path.clone();
    let next = std::thread::spawn(move || Connection::open_directory(&path).unwrap().status().unwrap());
    echo(holding.recv_timeout(BOUND).unwrap());
    assert_eq!(next.join().unwrap(), report());
}

#[test]
fn a_client_that_closes_only_its_sending_side_is_answered() {
    let (held, holding) = mpsc::channel();
    let manager = Manager::start(move |call| held.send(call).unwrap());
    let mut stream = manager.raw();
    stream.write_all(format!("{}\0", method("Status", &json!({}))).as_bytes()).unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    let call = holding.recv_timeout(BOUND).unwrap();
    // A second client's answer is behind whatever the first one's end of input caused.
    manager.client().perform_in_background();
    echo(holding.recv_timeout(BOUND).unwrap());
    echo(call);
    assert_eq!(next(&mut stream)["parameters"]["app"], "shop");
    assert_eq!(rest(&mut stream), b"");
}

/// Ask without waiting for the answer.
trait Background {
    fn perform_in_background(self);
}

impl Background for Connection {
    fn perform_in_background(mut self) {
        std::thread::spawn(move || self.status());
    }
}

#[test]
fn descriptors_that_a_client_sends_are_closed() {
    use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};
    let manager = Manager::start(echo);
    let mut stream = manager.raw();
    let (reader, writer) = std::io::pipe().unwrap();
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    let fds = [writer.as_fd()];
    assert!(ancillary.push(SendAncillaryMessage::ScmRights(&fds)));
    let text = format!("{}\0", method("Status", &json!({})));
    let bytes = [std::io::IoSlice::new(text.as_bytes())];
    rustix::net::sendmsg(&stream, &bytes, &mut ancillary, SendFlags::empty()).unwrap();
    drop(writer);
    assert_eq!(next(&mut stream)["parameters"]["app"], "shop");
    let mut fds = [rustix::event::PollFd::new(&reader, rustix::event::PollFlags::empty())];
    let timeout = rustix::event::Timespec { tv_sec: 20, tv_nsec: 0 };
    assert_eq!(rustix::event::poll(&mut fds, Some(&timeout)), Ok(1), "somebody keeps the pipe open");
}

#[test]
fn the_end_delivers_answers_and_removes_the_socket() {
    let (held, holding) = mpsc::channel();
    let mut manager = Manager::start(move |call: Call| {
        let _ = held.send(call.request);
        let _ = call.reply.send(ControlReply::Done { message: "stopped".to_owned() });
    });
    let mut stream = manager.raw();
    stream.write_all(format!("{}\0", method("Stop", &json!({}))).as_bytes()).unwrap();
    holding.recv_timeout(BOUND).unwrap();
    manager.finish();
    assert_eq!(next(&mut stream)["parameters"]["message"], "stopped");
    assert_eq!(rest(&mut stream), b"");
    assert!(!manager.path.join("control").exists());
    let error = Connection::open_directory(&manager.path).unwrap_err();
    assert_eq!(error.exit_code(), 3);
}

#[test]
fn an_answer_that_never_comes_is_said_to_be_none() {
    let manager = Manager::start(drop);
    let error = manager.client().status().unwrap_err();
    assert!(matches!(&error, ClientError::Failed { reason, .. } if reason.contains("did not answer")), "{error:?}");
}

#[test]
fn nobody_but_the_owner_may_connect_unless_a_group_is_named() {
    let manager = Manager::start(echo);
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o7777;
    assert_eq!(mode(&manager.path.join("control")), 0o600);
    assert_eq!(mode(&manager.path.join("lock")), 0o600);
    assert_eq!(mode(&manager.path), 0o711);
    // A group that this user may give files to.
    let gid = if rustix::process::geteuid().is_root() { 4321 } else { rustix::process::getegid().as_raw() };
    let path = scratch().join("shop");
    let manager = Manager::start_at(&path, Some(gid.to_string()), echo);
    let metadata = std::fs::metadata(manager.path.join("control")).unwrap();
    assert_eq!((metadata.gid(), metadata.permissions().mode() & 0o7777), (gid, 0o660));
}

#[test]
fn a_stale_socket_is_replaced() {
    use std::os::fd::AsRawFd as _;
    let path = scratch().join("shop");
    RuntimeDirectory::create(&path).unwrap();
    let stale = {
        let directory = std::fs::File::open(&path).unwrap();
        std::os::unix::net::UnixListener::bind(format!("/proc/self/fd/{}/control", directory.as_raw_fd())).unwrap()
    };
    drop(stale);
    let error = Connection::open_directory(&path).unwrap_err();
    assert_eq!(error.exit_code(), 3, "{error}");
    let manager = Manager::start_at(&path, None, echo);
    assert_eq!(manager.client().status().unwrap(), report());
}

#[test]
fn a_path_longer_than_an_address_works() {
    let path = scratch().join("p".repeat(120)).join("q".repeat(120));
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    let manager = Manager::start_at(&path, None, echo);
    assert_eq!(manager.client().status().unwrap(), report());
}

#[test]
fn the_manager_at_the_other_end_can_be_waited_for() {
    let manager = Manager::start(echo);
    let pidfd = manager.client().manager().expect("a pidfd of this very process");
    let mut fds = [rustix::event::PollFd::new(&pidfd, rustix::event::PollFlags::IN)];
    assert_eq!(rustix::event::poll(&mut fds, Some(&rustix::event::Timespec::default())), Ok(0));
    let mut child = std::process::Command::new("true").spawn().unwrap();
    let pid = rustix::process::Pid::from_child(&child);
    let pidfd = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()).unwrap();
    wait_for_end(&pidfd).unwrap();
    child.wait().unwrap();
}

#[test]
fn a_manager_that_does_nothing_is_told_from_one_that_is_not_there() {
    let path = scratch().join("shop");
    let directory = RuntimeDirectory::create(&path).unwrap();
    // Connections wait in the queue of a listener that nobody looks at, as those of a stopped process do.
    let address = format!("/proc/self/fd/{}/control", std::os::fd::AsRawFd::as_raw_fd(&directory.as_fd()));
    let _listener = std::os::unix::net::UnixListener::bind(address).unwrap();
    let error = Connection::open_directory(&path).unwrap().status().unwrap_err();
    assert!(matches!(error, ClientError::Silent { .. }), "{error:?}");
    assert_eq!(error.exit_code(), 1);
}

/// Do something as a user that owns nothing; only root can become one.
fn as_nobody<T: Send + 'static>(what: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    if !rustix::process::geteuid().is_root() {
        return None;
    }
    let nobody = rustix::process::Uid::from_raw(65_534);
    let thread = std::thread::spawn(move || {
        // This thread only: the kernel keeps credentials for each.
        rustix::thread::set_thread_res_uid(nobody, nobody, nobody).unwrap();
        what()
    });
    Some(thread.join().unwrap())
}

#[test]
fn strangers_are_kept_out_by_the_mode_and_by_their_credentials() {
    let base = std::env::temp_dir().join(format!("paddock-strangers-{}", std::process::id()));
    let path = base.join("shop");
    std::fs::create_dir_all(&base).unwrap();
    std::fs::set_permissions(&base, std::fs::Permissions::from_mode(0o755)).unwrap();
    let manager = Manager::start_at(&path, None, echo);
    let at = path.clone();
    if let Some(error) = as_nobody(move || Connection::open_directory(&at).unwrap_err()) {
        assert!(matches!(error, ClientError::Denied { .. }), "{error:?}");
        assert_eq!(error.exit_code(), 1);
        // Whoever opens the door by hand still lets nobody in.
        std::fs::set_permissions(path.join("control"), std::fs::Permissions::from_mode(0o666)).unwrap();
        let at = path.clone();
        let error = as_nobody(move || Connection::open_directory(&at).unwrap().status().unwrap_err());
        assert!(matches!(error, Some(ClientError::Ended)), "{error:?}");
    }
    assert_eq!(manager.client().status().unwrap(), report());
    std::fs::remove_dir_all(&base).unwrap();
}
