//! The introduction server as a process of its own: it listens, introduces, and ends in good order.
//!
//! It owns the order in which the process gets ready (what it will need is opened, what it may do is given
//! up, and only then can anybody connect) and what ends it. It must never know what is said between a peer
//! and the server.

mod metrics;
mod place;
mod settings;
mod signals;
mod systemd;

use std::convert::Infallible;
use std::env;
use std::fs::DirBuilder;
use std::future::poll_fn;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::pin::pin;
use std::rc::Rc;
use std::task::Poll;
use std::time::Instant;

use introduction::{Form, Identity, Keyring, Server, ServerOptions};
use landlock::RulesetStatus;
use ring::{Reactor, Socket};
use rustix::process::{Resource, Signal};

use crate::census::Census;
use crate::log::{Format, Log};
use crate::options::Introduce;
use crate::output::{self, Failure, Outcome, printable};
use crate::reactor;
use crate::sandbox;
use metrics::Counters;
use place::Place;
use settings::{Allowed, Settings, SettingsFile};
use signals::Signals;
use systemd::{HandedOver, Supervisor};

/// Descriptors that belong to no peer: standard streams, the reactor and its reserve, listeners, locks,
/// signals, directories, readers of the counters.
pub const DESCRIPTORS_RESERVE: usize = 64;

/// Descriptors that a peer that does not read keeps in flight, which the kernel counts for the server's user.
const IN_FLIGHT_OF_PEER: usize = 5;

/// The name under which a supervisor hands over the socket of the counters.
const METRICS_NAME: &str = "metrics";

/// Introduces until it is told to end.
pub fn run(options: &Introduce) -> Result<Outcome, Failure> {
    let started = Instant::now();
    if options.with_parent {
        let _ = rustix::process::set_parent_process_death_signal(Some(Signal::KILL));
    }
    let file = SettingsSource::of(options)?;
    let settings = file.read().map_err(Failure::usage)?;
    let format = if options.log_format == "json" { Format::Json } else { Format::Text };
    let log = Log::start(format, &filter(options, &settings))?;
    let limits = server_options(options);
    enough_descriptors(&limits)?;
    // Before anything is made that a signal should not leave behind.
    let ending = signals::ask_for(&[Signal::TERM, Signal::INT]).map_err(no_signals)?;
    let reloading = signals::ask_for(&[Signal::HUP]).map_err(no_signals)?;
    let identity = identity(options)?;
    let sockets = Sockets::take(options)?;
    let supervisor = Supervisor::from_environment();
    let census = Census::open();
    let (reactor, executor) = reactor::start(options.driver.as_deref())?;
    let allowed = Allowed::new(options, settings);
    let server = Rc::new(Server::with_policy(&reactor, identity, limits, allowed.clone()));
    let driver = reactor.driver();
    tracing::info!(driver = %driver.kind(), reason = driver.reason(), key = %server.key(), "starting");
    confine(options, &sockets, &file)?;

    let Sockets { peers, counters } = sockets;
    let peers = peers.listen(&reactor)?;
    let counters = counters.map(|counters| counters.listen(&reactor)).transpose()?;
    output::say(&format!("{}\n", server.key()))?;
    supervisor.ready();
    tracing::info!(pid = std::process::id(), lists = allowed.names_somebody(), "ready");

    let ending = ending.on(&reactor).map_err(no_signals)?;
    let reloading = reloading.on(&reactor).map_err(no_signals)?;
    let service = Service { options, file, log, allowed, supervisor, server, ending, reloading };
    let spawner = executor.spawner();
    let end = executor.block_on(async {
        let counting = async {
            let Some((listener, _)) = &counters else { return std::future::pending().await };
            let server = Rc::clone(&service.server);
            let counters = Counters { server, driver: driver.kind().to_string(), started, census };
            metrics::show(counters, listener, &reactor, &spawner).await
        };
        service.until_told(&peers.0, counting).await
    });
    service.supervisor.stopping();
    // Nobody new, first of all; then nobody.
    drop((peers, counters));
    service.sum_up();
    drop(service);
    end.map(|()| Outcome::Good)
}

fn no_signals(error: io::Error) -> Failure {
    Failure::new(format_args!("signals: {error}"))
}

/// The server and everything that concerns it from outside.
struct Service<'a> {
    options: &'a Introduce,
    file: SettingsSource,
    log: Log,
    allowed: Allowed,
    supervisor: Supervisor,
    server: Rc<Server>,
    ending: Signals,
    reloading: Signals,
}

impl Service<'_> {
    /// Serves until a signal ends it, or the kernel.
    async fn until_told(
        &self,
        listener: &Socket,
        counting: impl Future<Output = io::Result<()>>,
    ) -> Result<(), Failure> {
        let mut serving = pin!(self.server.serve(listener));
        let mut ending = pin!(self.ending.come());
        let mut reloading = pin!(self.reload_when_told());
        let mut counting = pin!(counting);
        let mut has_counters = true;
        poll_fn(|context| {
            if let Poll::Ready(ended) = ending.as_mut().poll(context) {
                return Poll::Ready(ended.map_err(no_signals));
            }
            if let Poll::Ready(Err(error)) = serving.as_mut().poll(context) {
                return Poll::Ready(Err(Failure::new(format_args!("accepting connections: {error}"))));
            }
            if let Poll::Ready(Err(error)) = reloading.as_mut().poll(context) {
                return Poll::Ready(Err(no_signals(error)));
            }
            if has_counters && let Poll::Ready(ended) = counting.as_mut().poll(context) {
                // The peers are not to suffer from it.
                has_counters = false;
                tracing::error!(error = ended.err().map(tracing::field::display), "no counters any more");
            }
            Poll::Pending
        })
        .await
    }

    async fn reload_when_told(&self) -> io::Result<Infallible> {
        loop {
            self.reloading.come().await?;
            self.supervisor.reloading();
            self.reload();
            self.supervisor.ready();
        }
    }

    /// Reads the settings again. Those that make no sense change nothing.
    fn reload(&self) {
        let settings = match self.file.read() {
            Ok(settings) => settings,
            Err(error) => return tracing::error!(error, "the settings stay as they were"),
        };
        if let Err(error) = self.log.change(&filter(self.options, &settings)) {
            return tracing::error!(error, "the settings stay as they were");
        }
        self.allowed.change(settings);
        let disconnected = self.server.review();
        tracing::info!(disconnected, lists = self.allowed.names_somebody(), "settings read again");
    }

    /// The log's last line.
    fn sum_up(&self) {
        let stats = self.server.stats();
        tracing::info!(
            registrations = stats.registrations,
            introductions = stats.introductions,
            passed_on = stats.passed_on,
            violations = stats.violations,
            refused = stats.refused,
            turned_away = stats.turned_away,
            connections = self.server.connections(),
            under_way = self.server.introductions(),
            "ended"
        );
    }
}

/// Which log lines are written: the file knows best, since it can be changed.
fn filter(options: &Introduce, settings: &Settings) -> String {
    let said = settings.log.clone().or_else(|| options.log.clone());
    said.or_else(|| env::var("RUST_LOG").ok()).unwrap_or_else(|| "info".to_string())
}

/// The file of settings, if there is one.
struct SettingsSource {
    file: Option<(SettingsFile, String)>,
}

impl SettingsSource {
    fn of(options: &Introduce) -> Result<SettingsSource, Failure> {
        let Some(path) = &options.config else { return Ok(SettingsSource { file: None }) };
        let shown = shown(path);
        let file =
            SettingsFile::at(path).map_err(|error| Failure::usage(format_args!("{shown}: {error}")))?;
        Ok(SettingsSource { file: Some((file, shown)) })
    }

    fn read(&self) -> Result<Settings, String> {
        match &self.file {
            Some((file, shown)) => file.read().map_err(|error| format!("{shown}: {error}")),
            None => Ok(Settings::default()),
        }
    }
}

fn server_options(options: &Introduce) -> ServerOptions {
    let limits = &options.limits;
    let mut server = ServerOptions::default();
    let set = |place: &mut usize, limit: Option<usize>| *place = limit.unwrap_or(*place);
    set(&mut server.connections_max, limits.max_connections);
    let half = server.connections_max.div_ceil(2);
    server.user_connections_max = limits.max_connections_per_user.unwrap_or(half);
    set(&mut server.newcomers_max, limits.max_newcomers);
    set(&mut server.introductions_max, limits.max_introductions);
    set(&mut server.held_max, limits.max_introductions_per_peer);
    server.introduction_time = limits.introduction_time.unwrap_or(server.introduction_time);
    server.handshake_time = limits.handshake_time.unwrap_or(server.handshake_time);
    server.record_time = limits.record_time.unwrap_or(server.record_time);
    server.write_time = limits.write_time.unwrap_or(server.write_time);
    server.bound_registration_only = options.bound_only;
    server.form = if options.form == "draft" { Form::Draft } else { Form::Goblins };
    server
}

/// Raises the limit of descriptors as far as it goes, and compares it with what the other limits come to: a
/// server that promises what it cannot hold turns away peers that it has invited.
fn enough_descriptors(options: &ServerOptions) -> Result<(), Failure> {
    let mut limit = rustix::process::getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    // Without the privilege to go beyond it the hard limit itself is always allowed.
    let _ = rustix::process::setrlimit(Resource::Nofile, limit);
    let limit = reactor::descriptors_max();
    let (connections, introductions) = (options.connections_max, options.introductions_max);
    let needed = connections.saturating_add(introductions).saturating_add(DESCRIPTORS_RESERVE);
    if needed > limit {
        return Err(Failure::usage(format_args!(
            "{needed} descriptors may be needed ({connections} connections, {introductions} introductions, \
             and {DESCRIPTORS_RESERVE} besides), and RLIMIT_NOFILE allows {limit}: raise its hard limit, or \
             lower --max-connections and --max-introductions"
        )));
    }
    let in_flight = connections.saturating_mul(IN_FLIGHT_OF_PEER);
    if in_flight > limit {
        tracing::warn!(
            in_flight,
            limit,
            "peers that do not read could keep more descriptors in flight than RLIMIT_NOFILE allows this \
             user: raise its hard limit, or lower --max-connections"
        );
    }
    if rustix::process::geteuid().is_root() {
        tracing::warn!("running as root: a user of its own would do, and would have limits of its own");
    }
    Ok(())
}

fn identity(options: &Introduce) -> Result<Identity, Failure> {
    if options.fresh_key {
        return Identity::generate().map_err(|error| Failure::new(format_args!("a fresh key: {error}")));
    }
    let path = match &options.key {
        Some(path) => path.clone(),
        None => default_key()?,
    };
    let keyring = Keyring::open(&path);
    let keyring = keyring.map_err(|error| Failure::new(format_args!("{}: {error}", shown(&path))))?;
    Ok(keyring.identity().clone())
}

/// Where the key is kept if nobody says where. Its directory is made where there is none.
fn default_key() -> Result<PathBuf, Failure> {
    let place = |name: &str| env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
    // A supervisor has made this one, and there may be several, of which the first is the main one.
    let state = env::var("STATE_DIRECTORY").ok();
    let state = state.and_then(|all| all.split(':').next().map(PathBuf::from)).filter(|it| it.is_absolute());
    let directory = if let Some(state) = state {
        state
    } else if let Some(state) = place("XDG_STATE_HOME") {
        state.join("sendright")
    } else if rustix::process::geteuid().is_root() {
        PathBuf::from("/var/lib/sendright")
    } else if let Some(home) = place("HOME") {
        home.join(".local/state/sendright")
    } else {
        return Err(Failure::usage("no place for the private key: say --key FILE or --fresh-key"));
    };
    let made = DirBuilder::new().recursive(true).mode(0o700).create(&directory);
    made.map_err(|error| Failure::new(format_args!("{}: {error}", shown(&directory))))?;
    Ok(directory.join("introduce.key"))
}

/// A socket that will be listened on: of our making, or handed over.
struct Listening {
    socket: OwnedFd,
    place: Option<Place>,
}

impl Listening {
    /// From now on there can be connections. What is given back with the socket is its name, which it keeps
    /// as long as that is kept.
    fn listen(self, reactor: &Reactor) -> Result<(Socket, Option<Place>), Failure> {
        let failed = |error: io::Error| Failure::new(format_args!("cannot listen: {error}"));
        if self.place.is_some() {
            place::listen(&self.socket).map_err(failed)?;
        }
        let socket = Socket::wrap(reactor, self.socket).map_err(|error| failed(io::Error::other(error)))?;
        Ok((socket, self.place))
    }
}

struct Sockets {
    peers: Listening,
    counters: Option<Listening>,
}

impl Sockets {
    fn take(options: &Introduce) -> Result<Sockets, Failure> {
        let (counters, peers): (Vec<HandedOver>, Vec<HandedOver>) =
            systemd::handed_over()?.into_iter().partition(|handed| handed.name == METRICS_NAME);
        let Some(peers) = one(peers, options.socket.as_deref(), options.mode, "--socket")? else {
            return Err(Failure::usage(
                "where to listen is not said: --socket PATH, or a socket handed over",
            ));
        };
        let counters = one(counters, options.metrics.as_deref(), options.metrics_mode, "--metrics")?;
        Ok(Sockets { peers, counters })
    }

    fn places(&self) -> impl Iterator<Item = &Place> {
        let counters = self.counters.iter().filter_map(|counters| counters.place.as_ref());
        self.peers.place.iter().chain(counters)
    }
}

/// The socket that was handed over or the one that is to be made, and not both.
fn one(
    handed_over: Vec<HandedOver>,
    path: Option<&Path>,
    mode: u32,
    option: &str,
) -> Result<Option<Listening>, Failure> {
    let mut handed_over = handed_over.into_iter();
    match (handed_over.next(), path) {
        (None, None) => Ok(None),
        (None, Some(path)) => {
            let (place, socket) = Place::take(path, mode)?;
            Ok(Some(Listening { socket, place: Some(place) }))
        }
        (Some(_), Some(_)) => {
            Err(Failure::usage(format_args!("a socket was handed over, and {option} names another")))
        }
        (Some(_), None) if handed_over.next().is_some() => {
            Err(Failure::usage(format_args!("more than one socket was handed over in place of {option}")))
        }
        (Some(first), None) => Ok(Some(Listening { socket: first.socket, place: None })),
    }
}

/// Gives up what is not needed any more: from here on nothing can be opened, made, run or connected to.
fn confine(options: &Introduce, sockets: &Sockets, file: &SettingsSource) -> Result<(), Failure> {
    let failed =
        |error: &dyn std::fmt::Display| Failure::new(format_args!("cannot give up privileges: {error}"));
    rustix::thread::set_no_new_privs(true).map_err(|errno| failed(&io::Error::from(errno)))?;
    let removing = sockets.places().map(|place| sandbox::Allowed::Removing(place.directory()));
    let reading = file.file.iter().map(|(file, _)| sandbox::Allowed::Reading(file.directory()));
    let allowed: Vec<sandbox::Allowed<'_>> = removing.chain(reading).collect();
    let status = sandbox::restrict(&allowed).map_err(|error| failed(&error))?;
    let (abi, detail) = sandbox::describe(&status);
    match (abi, status.ruleset) {
        (Some(abi), RulesetStatus::FullyEnforced | RulesetStatus::PartiallyEnforced) => {
            tracing::info!(landlock = abi, detail, "confined");
            Ok(())
        }
        _ if options.require_sandbox => Err(failed(&detail)),
        _ => {
            tracing::warn!(detail, "not confined");
            Ok(())
        }
    }
}

fn shown(path: &Path) -> String {
    printable(path.as_os_str().as_encoded_bytes())
}
