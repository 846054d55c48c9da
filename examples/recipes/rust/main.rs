//! `/` answers the worker's pid, `/grow` takes memory until the fence ends it. Any framework that can serve a listener
//! it is handed (axum, actix-web, hyper) does as well.

use std::io;
use std::time::{Duration, Instant};

use listenfd::ListenFd;
use sd_notify::NotifyState;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::JoinSet;

#[tokio::main(flavor = "current_thread")]
async fn main() -> io::Result<()> {
    // The first of the sockets that paddock holds. No worker binds anything.
    let listener = ListenFd::from_env().take_tcp_listener(0)?.ok_or(io::ErrorKind::NotConnected)?;
    // A flag of the socket, so of all workers: set by each, cleared by none.
    listener.set_nonblocking(true)?;
    let listener = TcpListener::from_std(listener)?;
    let mut drain = signal(SignalKind::terminate())?;
    let mut count = Count::new();
    let mut connections = JoinSet::new();
    sd_notify::notify(&[NotifyState::Ready])?;
    loop {
        tokio::select! {
            _ = drain.recv() => break,
            // A client that left before it was accepted is no reason to end.
            Ok((connection, _)) = listener.accept() => {
                connections.spawn(answer(connection));
            }
            Some(_) = connections.join_next() => count.one_more(),
        }
    }
    drop(listener);
    // Also those that were accepted and have not sent their request yet.
    while connections.join_next().await.is_some() {
        count.one_more();
    }
    count.tell();
    Ok(())
}

/// How many requests were served.
struct Count {
    served: u64,
    quota: Option<u64>,
    told: Instant,
}

impl Count {
    #[expect(clippy::disallowed_methods, reason = "a program of its own, with a clock of its own")]
    fn new() -> Self {
        let quota = std::env::var("PADDOCK_MAX_REQUESTS").ok().and_then(|quota| quota.parse().ok());
        Self { served: 0, quota, told: Instant::now() }
    }

    /// Said on reaching the quota, else at most ten times a second.
    fn one_more(&mut self) {
        self.served += 1;
        if Some(self.served) == self.quota || self.told.elapsed() >= Duration::from_millis(100) {
            self.tell();
        }
    }

    #[expect(clippy::disallowed_methods, reason = "a program of its own, with a clock of its own")]
    fn tell(&mut self) {
        self.told = Instant::now();
        // Whoever runs it without paddock does not count.
        let _ = sd_notify::notify(&[NotifyState::Custom(&format!("X_PADDOCK_REQUESTS={}", self.served))]);
    }
}

/// One request, one answer, one connection.
async fn answer(mut connection: TcpStream) -> io::Result<()> {
    let mut request = Vec::new();
    while !request.windows(4).any(|end| end == b"\r\n\r\n") {
        if request.len() > 16 << 10 || connection.read_buf(&mut request).await? == 0 {
            return Ok(());
        }
    }
    if request.starts_with(b"GET /grow ") {
        // Given back when it is answered; it is not, where [memory] max is enforced.
        std::hint::black_box(vec![b'x'; 256 << 20]);
    }
    let pid = std::process::id().to_string();
    let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n", pid.len());
    connection.write_all((head + &pid).as_bytes()).await?;
    connection.shutdown().await
}
