//! An instance: constructs, wires, starts and stops every component.

#![warn(missing_docs)]

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::auth::{Authenticator, OriginPolicy, Revocations, Verifier};
use crate::backplane::{Backplane, BackplaneError, BackplaneEvent};
use crate::config::{Config, ConfigError, TlsError};
use crate::connection::{self, Context};
use crate::delivery::{Backlog, Registry};
use crate::history::{Acks, History, HistoryStore};
use crate::limits::Limiter;
use crate::metrics::Metrics;
use crate::outbox;
use crate::presence::{self, Presence, PresenceStore};
use crate::protocol::InstanceId;
use crate::revocation::RevocationList;
use crate::router::{Control, Router};
use crate::server::{self, App, Listener, Tls};
use crate::sessions::Sessions;
use crate::shutdown::Shutdown;

/// How long a stop may exceed the drain window, to finish close handshakes and to release presence.
const GRACE: Duration = Duration::from_secs(3);

/// From the last close to the release of presence: the last clients reconnect elsewhere meanwhile, so that none flaps.
const SETTLE: Duration = Duration::from_secs(1);

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
}

impl Gateway {
    /// Binds both listeners and starts every component. Accepts connections on return, even before it is ready. After
    /// an error nothing is left running.
    pub fn start(config: Config) -> Result<Self, StartError> {
        let verifier = Verifier::new(&config.auth)?;
        // Before any socket is bound: the last errors of the configuration are found here.
        let app = Arc::new(App::new(config, verifier)?);
        let configured = &app.config.server;
        let listen = |address, key| Listener::bind(address).map_err(|error| StartError::Listen { address, key, error });
        let public = listen(configured.listen, "server.listen")?.public(configured.proxy_protocol);
        let admin = listen(configured.admin_listen, "server.admin_listen")?;
        start_routing(&app);
        start_keys(&app);
        start_presence(&app);
        start_outbox(&app);
        start_reloading(&app);
        app.context.limiter.start(&app.context.instance, app.config.presence.lease, &app.context.shutdown);
        start_sessions(&app);
        start_history(&app);

        let gateway = Self { public: public.address, admin: admin.address, app: Arc::clone(&app) };
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

    /// Reloads the TLS certificate, if one is configured.
    pub fn reload(&self) {
        if let Some(tls) = &self.app.tls {
            tls.reload();
        }
    }

    pub(crate) fn context(&self) -> &Arc<Context> {
        &self.app.context
    }

    /// Drains the clients over `drain.window`, releases presence, and ends every task.
    pub async fn stop(self) {
        let Context { registry, shutdown, .. } = &*self.app.context;
        shutdown.draining().cancel();
        let had_clients = registry.connections() > 0;
        connection::drain(registry, self.app.config.drain_window).await;
        shutdown.connections_ended(GRACE).await;
        if had_clients {
            // The last clients are still reconnecting to another instance, which takes over their presence.
            tokio::time::sleep(SETTLE).await;
        }
        shutdown.stop(GRACE * 2).await;
    }
}

impl App {
    fn new(config: Config, verifier: Verifier) -> Result<Self, StartError> {
        let tls = config.server.tls.clone().map(Tls::new).transpose()?.map(Arc::new);
        let (instance, metrics) = (InstanceId::random(), Arc::new(Metrics::new()));
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
        let sessions = Sessions::new(&config, &backplane, Arc::clone(&registry), Arc::clone(&metrics)).map(Arc::new);
        let context = Arc::new(Context {
            instance,
            server: config.server.clone(),
            send_queue: config.send_queue,
            limits: config.limits.clone(),
            limiter: Limiter::new(&config, &backplane, &metrics),
            backlog: Backlog::new(&metrics, config.send_queue.max_total_bytes),
            authenticator: Authenticator::new(verifier, in_force),
            registry,
            history: Arc::new(catch_up),
            acks: Arc::new(Acks::new(Arc::clone(&history), Arc::clone(&metrics))),
            metrics,
            shutdown: Shutdown::default(),
        });
        let origins = OriginPolicy::new(&config.server.allowed_origins, config.dev);
        let revocations = Arc::new(revocations);
        let started = Instant::now();
        Ok(Self { config, context, backplane, history, presence, tls, origins, sessions, revocations, started })
    }
}

/// The router receives events of the backplane first, then the components that only observe them.
fn start_routing(app: &App) {
    let Context { registry, metrics, send_queue, limits, shutdown, .. } = &*app.context;
    let (registry, metrics) = (|| Arc::clone(registry), || Arc::clone(metrics));
    let router = Router::new(registry(), metrics(), *send_queue, limits.max_payload_bytes, shutdown.clone());
    let control = Control::new(registry(), Arc::clone(&app.revocations), metrics());
    let (history, presence) = (Arc::clone(&app.history), Arc::clone(&app.presence));
    let sink = Arc::new(move |event: BackplaneEvent<'_>| match event {
        BackplaneEvent::Control { payload } => control.take(payload),
        BackplaneEvent::Presence { .. } => presence.observe(&event),
        _ => {
            router.take(event);
            history.observe(&event);
        }
    });
    app.backplane.subscribe(sink, shutdown);
    let subscriptions = app.backplane.subscriptions();
    app.history.watch_gaps(app.config.redis.probe_interval, subscriptions, shutdown);

    let revocations = Arc::clone(&app.revocations);
    shutdown.spawn_until_stop(async move { revocations.run().await });
}

fn start_outbox(app: &App) {
    if let Some(redis) = app.backplane.redis() {
        outbox::start(redis, &app.config, &app.context.instance, &app.context.shutdown);
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
    shutdown.spawn_until_stop(async move { history.run_catch_up().await });
}

fn start_keys(app: &App) {
    let Context { authenticator, metrics, shutdown, .. } = &*app.context;
    let Some(jwks) = authenticator.jwks() else { return };
    shutdown.spawn_until_stop(Arc::clone(jwks).run_refresh(Arc::clone(metrics)));
}

fn start_presence(app: &App) {
    let Context { instance, registry, metrics, shutdown, .. } = &*app.context;
    let (store, registry) = (Arc::clone(&app.presence), Arc::clone(registry));
    let presence = Presence::new(&app.config.presence, instance.clone(), store, registry, Arc::clone(metrics));
    shutdown.spawn_service(presence.run(shutdown.stopping().clone().cancelled_owned(), GRACE));

    let (store, metrics) = (Arc::clone(&app.presence), Arc::clone(metrics));
    shutdown.spawn_until_stop(async move { presence::run_reaper(&store, &metrics).await });
}
