//! The counters of a server as text, for whoever connects to see them.
//!
//! It owns the sockets of those who read, a few at a time and each for a short time, so that no reader can
//! hold anything up but other readers. It must never know what the counters mean.

use std::fmt::Write as _;
use std::io;
use std::os::fd::AsFd;
use std::rc::Rc;
use std::time::{Duration, Instant};

use introduction::Server;
use ring::{Reactor, Socket, Spawner};
use rustix::io::Errno;
use rustix::net::Shutdown;

use super::signals::read_now;
use crate::census::Census;
use crate::permits::Permits;
use crate::reactor::{descriptors_max, within};

/// Readers at a time. The next wait in the listener's backlog.
pub const READERS_MAX: usize = 4;

/// How long a reader may take. The text fits into the socket's buffer, so an honest one takes no time.
pub const READING_TIME: Duration = Duration::from_secs(2);

/// After a connection could not be accepted for want of descriptors: the peers come first.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What is counted, and for how long.
pub struct Counters {
    pub server: Rc<Server>,
    pub driver: String,
    pub started: Instant,
    /// Opened before nothing could be opened any more.
    pub census: Census,
}

/// Shows the counters to everybody who connects, for as long as it is polled.
pub async fn show(
    mut counters: Counters,
    listener: &Socket,
    reactor: &Reactor,
    spawner: &Spawner,
) -> io::Result<()> {
    let readers = Permits::new(READERS_MAX);
    loop {
        let permit = readers.take().await;
        match listener.accept().await {
            Ok(socket) => {
                let text = counters.text();
                let reactor = reactor.clone();
                spawner.spawn(async move {
                    within(&reactor, READING_TIME, answer(socket, text)).await;
                    drop(permit);
                });
            }
            Err(error) => match Errno::from_io_error(&error) {
                Some(Errno::MFILE | Errno::NFILE | Errno::NOMEM | Errno::NOBUFS) => {
                    reactor.sleep(ACCEPT_PAUSE).await;
                }
                Some(Errno::CONNABORTED) => {}
                _ => return Err(error),
            },
        }
    }
}

/// Says all of it, then the end; and waits for the reader to go. Closed with something unread (the request of
/// an HTTP client) the socket would be reset, and the reader might see that instead of the text.
async fn answer(socket: Socket, text: String) {
    if socket.send(text.into_bytes()).await.is_err()
        || rustix::net::shutdown(socket.as_fd(), Shutdown::Write).is_err()
    {
        return;
    }
    while socket.readable().await.is_ok() {
        if let Ok(0) | Err(_) = read_now(&socket) {
            return;
        }
    }
}

impl Counters {
    /// Everything there is to count, as Prometheus reads it.
    pub fn text(&mut self) -> String {
        let mut text = Text::default();
        for counter in self.server.stats().counters() {
            text.metric(&format!("{}_total", counter.name), "counter", counter.meaning, counter.count);
        }
        let count = |count: usize| u64::try_from(count).unwrap_or(u64::MAX);
        let server = &self.server;
        let (connections, registered) = (count(server.connections()), count(server.registered()));
        text.metric("connections", "gauge", "connections there are now, registered or not", connections);
        text.metric("registered", "gauge", "peers registered now", registered);
        let under_way = count(server.introductions());
        text.metric("introductions_under_way", "gauge", "introductions under way now", under_way);
        let stats = server.stats();
        text.metric(
            "most_reads_in_a_turn",
            "gauge",
            "the most reads one connection has had in one turn",
            stats.most_reads_in_a_turn,
        );
        text.metric(
            "most_records_in_a_turn",
            "gauge",
            "the most records of one connection looked at in one turn",
            stats.most_records_in_a_turn,
        );
        if let Ok(Some(open)) = self.census.count() {
            text.metric("open_descriptors", "gauge", "descriptors open now", open.unsigned_abs());
        }
        text.metric("descriptors_max", "gauge", "soft limit of descriptors", count(descriptors_max()));
        text.metric(
            "uptime_seconds",
            "gauge",
            "how long the server has run",
            self.started.elapsed().as_secs(),
        );
        let labels = format!(
            "{{version=\"{}\",driver=\"{}\",key=\"{}\"}}",
            env!("CARGO_PKG_VERSION"),
            self.driver,
            server.key()
        );
        text.labelled("info", "gauge", "which server this is", &labels, 1);
        text.0
    }
}

/// Lines in the text form of Prometheus.
#[derive(Default)]
struct Text(String);

impl Text {
    fn metric(&mut self, name: &str, kind: &str, help: &str, value: u64) {
        self.labelled(name, kind, help, "", value);
    }

    fn labelled(&mut self, name: &str, kind: &str, help: &str, labels: &str, value: u64) {
        let name = format!("sendright_introduce_{name}");
        // Writing into memory cannot fail.
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}\n{name}{labels} {value}");
    }
}
