//! An instance: constructs, wires, starts and stops every component.

#![warn(missing_docs)]

mod reload;

use std::net::SocketAddr;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use parking_lot::Mutex;

use crate::auth::{Authenticator, OriginPolicy, Revocations, Verifier};
use crate::backplane::{Backplane, BackplaneError, BackplaneEvent};
use crate::config::{Config, ConfigError, TlsError};
use crate::connection::{self, Context, GapNotice, Refusals};
use crate::delivery::{Backlog, Registry};
use crate::escalation;
use crate::history::{Acks, History, HistoryStore};
use crate::limits::Limiter;
use crate::metrics::Metrics;
use crate::outbox;
use crate::presence::{self, Presence, PresenceStore};
use crate::protocol::InstanceId;
use crate::redis::Redis;
use crate::revocation::RevocationList;
use crate::roster::Roster;
use crate::router::{Control, Router};
use crate::server::{self, App, Listener, Tls};
use crate::sessions::Sessions;
use crate::shutdown::Shutdown;

/// How long the last writes to Redis may take: read positions, and the release of presence.
const GRACE: Duration = Duration::from_secs(3);

/// From the last close to the release of presence: the last clients reconnect elsewhere meanwhile, so that none flaps.
const SETTLE: Duration = Duration::from_secs(1);

/// At most this for [`SETTLE`] and the close handshakes before it: with the default `drain.window`, a stop then ends
/// before `docker stop` kills the process, 10 s after its signal.
const MAX_SETTLE: Duration = Duration::from_millis(1_500);

/// Probe intervals between two audits of the clients: 30 s by default.
const AUDIT_PROBES: u32 = 10;

/// Why an instance did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A listener cannot be bound.
    #[error("cannot listen on {address} ({key}): {error}")]
    Listen {
        /// The address as configured.
        address: SocketAddr,
        /// The key that configures it.
        key: &'static str,
        /// The system's error.
        error: std::io::Error,
    },
    /// The certificate cannot be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// A configured value proved wrong on use, such as a file without a key.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The backplane cannot be used.
    #[error(transparent)]
    Backplane(#[from] BackplaneError),
}

/// A running instance.
#[derive(Debug)]
pub struct Gateway {
    app: Arc<App>,
    public: SocketAddr,
    admin: SocketAddr,
    /// The configuration that was taken over last.
    current: Mutex<Config>,
}

impl Gateway {
    /// Binds both listeners and starts every component. Accepts connections on return, even before it is ready. After
    /// an error nothing is left running.
    pub fn start(mut config: Config) -> Result<Self, StartError> {
        // Another instance may have the same configuration.
        config.limits = config.limits.detached();
        let verifier = Verifier::new(&config.auth)?;
        // Before any socket is bound: the last errors of the configuration are found here.
        let app = Arc::new(App::new(config, verifier)?);
        let configured = &app.config.server;
        let listen = |address, key| Listener::bind(address).map_err(|error| StartError::Listen { address, key, error });
        let public = listen(configured.listen, "server.listen")?.public(configured.proxy_protocol);
        let admin = listen(configured.admin_listen, "server.admin_listen")?;
        app.admin.get_or_init(|| admin.address);
        start_routing(&app);
        start_keys(&app);
        start_presence(&app);
        start_outbox(&app);
        start_reloading(&app);
        app.context.limiter.start(&app.context.instance, app.config.presence.lease, &app.context.shutdown);
        start_sessions(&app);
        start_history(&app);

        let current = Mutex::new(app.config.clone());
        let gateway = Self { public: public.address, admin: admin.address, app: Arc::clone(&app), current };
        for (listener, router) in [(public, server::public(&app)), (admin, server::admin(&app))] {
            app.context.shutdown.spawn_service(server::serve(Arc::clone(&app), listener, router));
        }
        Ok(gateway)
    }

    /// The address of the public listener.
    #[must_use]
    pub fn public(&self) -> SocketAddr {
        self.public
    }

    /// The address of the admin listener.
    #[must_use]
    pub fn admin(&self) -> SocketAddr {
        self.admin
    }

    /// The id of this instance.
    #[must_use]
    pub fn instance(&self) -> &InstanceId {
        &self.app.context.instance
    }

    pub(crate) fn context(&self) -> &Arc<Context> {
        &self.app.context
    }

    /// `None` with the in-process backplane.
    pub(crate) fn redis(&self) -> Option<&Arc<Redis>> {
        self.app.backplane.redis()
    }

    /// Drains the clients over `drain.window`, releases presence, and ends every task.
    pub async fn stop(self) {
        let Context { registry, shutdown, .. } = &*self.app.context;
        shutdown.draining().cancel();
        let had_clients = registry.connections() > 0;
        connection::drain(registry, self.app.config.drain_window).await;
        settle(shutdown, had_clients).await;
        shutdown.stop(GRACE * 2).await;
    }
}

/// Waits for the close handshakes; then, if there were clients, until the last of them have reconnected to another
/// instance, which takes over their presence. Takes at most [`MAX_SETTLE`].
async fn settle(shutdown: &Shutdown, had_clients: bool) {
    let latest = tokio::time::Instant::now() + MAX_SETTLE;
    shutdown.connections_ended(MAX_SETTLE).await;
    if had_clients {
        tokio::time::sleep_until(latest.min(tokio::time::Instant::now() + SETTLE)).await;
    }
}

impl App {
    fn new(config: Config, verifier: Verifier) -> Result<Self, StartError> {
        let secret = config.server.tls_ticket_secret.as_ref();
        let tls = config.server.tls.clone().map(|files| Tls::new(files, secret)).transpose()?.map(Arc::new);
        let (instance, metrics) = (InstanceId::random(), Arc::new(Metrics::new()));
        if let Some(tls) = &tls {
            tls.report_expiry(&metrics);
        }
        let backplane = Backplane::new(&config, &instance, &metrics)?;
        let (history, presence) =
            (HistoryStore::new(&config, &backplane, &metrics), PresenceStore::new(&config.presence, &backplane));
        let registry = Arc::<Registry>::default();
        let catch_up = History::new(
            Arc::clone(&history),
            backplane.clone(),
            Arc::clone(&registry),
            Arc::clone(&metrics),
            &config.send_queue,
        );
        let in_force = Arc::new(Revocations::new(config.auth.leeway));
        let revocations = RevocationList::new(
            Arc::clone(&registry),
            Arc::clone(&in_force),
            &config.redis.prefix,
            &backplane,
            Arc::clone(&metrics),
        );
        let roster = Roster::new(&backplane, Arc::clone(&registry), Arc::clone(&metrics), instance.clone());
        let sessions = Sessions::new(&config, &backplane, Arc::clone(&registry), Arc::clone(&metrics)).map(Arc::new);
        let context = Arc::new(Context {
            instance,
            server: config.server.clone(),
            send_queue: config.send_queue,
            limits: config.limits.clone(),
            limiter: Limiter::new(&config, &backplane, &registry, &metrics),
            backlog: Backlog::new(&metrics, config.send_queue.max_total_bytes),
            authenticator: Authenticator::new(verifier, in_force),
            registry,
            history: Arc::new(catch_up),
            acks: Arc::new(Acks::new(Arc::clone(&history), Arc::clone(&metrics))),
            polling: Arc::default(),
            refusals: Refusals::new(Arc::clone(&metrics)),
            channels: backplane.user_channels().cloned(),
            metrics,
            shutdown: Shutdown::default(),
        });
        let origins = ArcSwap::from_pointee(OriginPolicy::new(&config.server.allowed_origins, config.dev));
        let (revocations, roster) = (Arc::new(revocations), Arc::new(roster));
        let started = Instant::now();
        let admin = OnceLock::new();
        Ok(Self {
            config,
            context,
            backplane,
            history,
            presence,
            tls,
            origins,
            sessions,
            revocations,
            roster,
            started,
            admin,
        })
    }
}

/// The router receives events of the backplane first, then the components that only observe them.
fn start_routing(app: &App) {
    let Context { registry, acks, metrics, send_queue, limits, limiter, shutdown, .. } = &*app.context;
    let (registry, metrics) = (|| Arc::clone(registry), || Arc::clone(metrics));
    let (user_channel, limits) = (app.backplane.user_channel(), limits.clone());
    let acks = Arc::clone(acks.pending());
    let router = Router::new(registry(), acks, metrics(), *send_queue, user_channel, limits, shutdown.clone());
    let (router, roster) = (Arc::new(router), Arc::clone(&app.roster));
    let (revocations, room) = (Arc::clone(&app.revocations), Arc::clone(limiter.room()));
    let control = Control::new(registry(), revocations, room, Arc::clone(&roster), metrics());
    let (broadcasting, answering) = (Arc::clone(&router), Arc::clone(&roster));
    shutdown.spawn_until_stop(async move { broadcasting.run_broadcasts().await });
    shutdown.spawn_until_stop(async move { answering.run().await });
    let (history, presence) = (Arc::clone(&app.history), Arc::clone(&app.presence));
    let (gaps, outdated, clients) = (start_gap_notice(app), metrics(), registry());
    let sink = Arc::new(move |event: BackplaneEvent<'_>| match event {
        BackplaneEvent::Control { payload } => control.take(payload),
        BackplaneEvent::Answer { payload } => roster.receive(payload),
        BackplaneEvent::Presence { .. } => presence.observe(&event),
        BackplaneEvent::Read { .. } => router.take(event),
        _ if history.is_outdated(&event) => outdated.messages_dropped.with_label_values(&["outdated"]).inc(),
        _ => {
            if let BackplaneEvent::Subscribed { lost_since: Some(since) } = event {
                gaps.report(since);
            }
            if let BackplaneEvent::UserMissed { user, since } = event {
                connection::tell_user(&clients, user, since);
            }
            router.take(event);
            history.observe(&event);
        }
    });
    app.backplane.subscribe(sink, shutdown);
    app.history.watch_gaps(app.config.redis.probe_interval, shutdown);

    let revocations = Arc::clone(&app.revocations);
    shutdown.spawn_until_stop(async move { revocations.run().await });
}

fn start_gap_notice(app: &App) -> Arc<GapNotice> {
    let (gaps, context) = (Arc::<GapNotice>::default(), Arc::clone(&app.context));
    let running = Arc::clone(&gaps);
    app.context.shutdown.spawn_until_stop(async move { running.run(&context).await });
    gaps
}

fn start_outbox(app: &App) {
    let Context { instance, shutdown, .. } = &*app.context;
    if let Some(redis) = app.backplane.redis() {
        let is_holder = outbox::start(redis, &app.config, instance, shutdown);
        escalation::start(redis, &app.config, is_holder, shutdown);
    }
}

fn start_sessions(app: &App) {
    let Some(sessions) = app.sessions.clone() else { return };
    app.context.shutdown.spawn_until_stop(async move { sessions.run_recheck().await });
}

fn start_reloading(app: &App) {
    let Some(tls) = app.tls.clone() else { return };
    let metrics = Arc::clone(&app.context.metrics);
    app.context.shutdown.spawn_until_stop(async move { tls.run_reload(&metrics).await });
}

fn start_history(app: &App) {
    let Context { history, acks, shutdown, .. } = &*app.context;
    shutdown.spawn_service(Arc::clone(acks).run(shutdown.stopping().clone().cancelled_owned(), GRACE));
    let history = Arc::clone(history);
    let auditing = Arc::clone(&history);
    shutdown.spawn_until_stop(async move { history.run_catch_up().await });
    if app.backplane.user_channels().is_some() {
        let every = app.config.redis.probe_interval * AUDIT_PROBES;
        shutdown.spawn_until_stop(async move { auditing.run_audit(every).await });
    }
}

fn start_keys(app: &App) {
    let context = Arc::clone(&app.context);
    app.context.shutdown.spawn_until_stop(async move { context.authenticator.run_refresh(&context.metrics).await });
}

fn start_presence(app: &App) {
    let Context { instance, registry, metrics, shutdown, .. } = &*app.context;
    let (store, registry) = (Arc::clone(&app.presence), Arc::clone(registry));
    let presence = Presence::new(&app.config.presence, instance.clone(), store, registry, Arc::clone(metrics));
    shutdown.spawn_service(presence.run(shutdown.stopping().clone().cancelled_owned(), GRACE));

    let (store, metrics, lease) = (Arc::clone(&app.presence), Arc::clone(metrics), app.config.presence.lease);
    shutdown.spawn_until_stop(async move { presence::run_reaper(&store, lease, &metrics).await });
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Layers;

    /// `docker stop` kills the process this long after its signal.
    const DOCKER_STOP: Duration = Duration::from_secs(10);

    /// For the last writes to Redis and the exit, which take a few milliseconds.
    const MARGIN: Duration = Duration::from_millis(500);

    #[tokio::test(start_paused = true)]
    async fn a_stop_with_the_default_window_ends_before_docker_kills_it() {
        let window = Config::load(Layers::default()).unwrap().drain_window;
        for silent in [false, true] {
            let shutdown = Shutdown::default();
            if silent {
                // A client that never answers its close.
                shutdown.spawn_connection(std::future::pending());
            }
            let last_close = tokio::time::Instant::now();
            settle(&shutdown, true).await;
            let settled = last_close.elapsed();
            assert!(settled >= SETTLE, "presence is released before the last clients are elsewhere: {settled:?}");
            assert!(window + settled + MARGIN <= DOCKER_STOP, "silent: {silent}, {window:?} + {settled:?}");
        }
    }
}
