//! TLS on both listeners: the same order, speed and limits as without, and a certificate that can be replaced.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::CertificateDer;
use tokio_rustls::rustls::pki_types::pem::PemObject;
use tokio_rustls::rustls::version::{TLS12, TLS13};
use tokio_rustls::rustls::{ClientConfig, HandshakeKind, SupportedProtocolVersion};
use tokio_tungstenite::tungstenite::Message;

use crate::slow_client::assert_newest_in_order;
use crate::support::{
    Authority, Client, Gateway, Options, RedisServer, SECRET, client_config, command, eventually, handshake_tls,
    output, served_certificate, within,
};

const TOO_SLOW: &str = "tidings_connections_closed_total{code=\"4203\"}";
const HANDSHAKES_FAILED: &str = "tidings_tls_handshakes_failed_total";
const TAKEN: &str = "tidings_tls_reloads_total{result=\"taken\"}";
const REFUSED: &str = "tidings_tls_reloads_total{result=\"refused\"}";

struct Place {
    authority: Authority,
    files: [PathBuf; 2],
    redis: RedisServer,
}

impl Place {
    async fn new() -> Self {
        let authority = Authority::new();
        let files = authority.certificate(&["127.0.0.1"]);
        Self { authority, files, redis: RedisServer::start().await }
    }

    fn options(&self) -> Options {
        Options::redis(&self.redis).tls(&self.authority, &self.files)
    }

    fn client(&self) -> Arc<ClientConfig> {
        client_config(&self.authority, &TLS13)
    }
}

async fn connect(gateway: &Gateway, user: &str, config: &Arc<ClientConfig>) -> Client {
    let tls = handshake_tls(TcpSocket::new_v4().unwrap(), gateway.public, config).await.unwrap();
    Client::connect_over(tls, user).await.0
}

/// A client with so little room for what it does not read that the server soon notices.
async fn connect_narrow(gateway: &Gateway, user: &str, config: &Arc<ClientConfig>) -> Client {
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4_096).unwrap();
    Client::connect_over(handshake_tls(socket, gateway.public, config).await.unwrap(), user).await.0
}

fn numbered(number: u32, bytes: usize) -> String {
    json!({"number": number, "filling": ".".repeat(bytes)}).to_string()
}

/// Small ones, and now and then one of a megabyte.
fn size_of(number: u32) -> usize {
    if number % 40 == 20 { 1_000_000 } else { 100 }
}

/// Reads events that must come in order, with a ping before each; every ping must be answered, too.
async fn in_order(client: &mut Client, count: u32) {
    let (mut next, mut pings, mut pongs) = (0, 0, 0);
    while next < count || pongs < pings {
        if next < count && pings == next {
            client.send_message(Message::Ping(next.to_be_bytes().to_vec().into())).await;
            pings += 1;
        }
        match client.message().await.expect("the connection lives") {
            Message::Pong(_) => pongs += 1,
            Message::Text(text) => {
                let frame: Value = serde_json::from_str(&text).unwrap();
                assert_eq!(frame["data"]["number"], next);
                assert_eq!(frame["data"]["filling"].as_str().unwrap().len(), size_of(next));
                next += 1;
            }
            other => panic!("{other:?}"),
        }
    }
}

async fn events_arrive_in_order(version: &'static SupportedProtocolVersion) {
    const COUNT: u32 = 200;
    let place = Place::new().await;
    let gateway = place.options().set("send_queue.max_bytes", "100000000").start().await;
    let mut client = connect(&gateway, "42", &client_config(&place.authority, version)).await;
    assert_eq!(client.tls().get_ref().1.protocol_version(), Some(version.version));
    if version == &TLS13 {
        // The server must answer these with new keys of its own, between the events.
        client.tls().get_mut().1.refresh_traffic_keys().unwrap();
    }
    let publishing = place.redis.publish_all("42", (0..COUNT).map(|number| numbered(number, size_of(number))));
    tokio::join!(publishing, in_order(&mut client, COUNT));
}

#[tokio::test]
async fn events_arrive_in_order_between_pongs_over_tls_1_3() {
    events_arrive_in_order(&TLS13).await;
}

#[tokio::test]
async fn events_arrive_in_order_between_pongs_over_tls_1_2() {
    events_arrive_in_order(&TLS12).await;
}

#[tokio::test]
async fn a_client_that_returns_resumes_its_session() {
    let place = Place::new().await;
    let gateway = place.options().start().await;
    for version in [&TLS12, &TLS13] {
        let config = client_config(&place.authority, version);
        let mut kinds = Vec::new();
        for _ in 0..2 {
            let mut client = connect(&gateway, "42", &config).await;
            kinds.push(client.tls().get_ref().1.handshake_kind().unwrap());
            client.close().await;
        }
        assert_eq!(kinds, [HandshakeKind::Full, HandshakeKind::Resumed], "{version:?}");
    }
}

#[tokio::test]
async fn a_client_resumes_its_session_on_every_instance_with_the_same_ticket_secret() {
    let place = Place::new().await;
    let start = |secret: &str| place.options().set("server.tls_ticket_secret", &secret.repeat(43)).start();
    let (first, second, other) = tokio::join!(start("a"), start("a"), start("b"));
    for version in [&TLS12, &TLS13] {
        let config = client_config(&place.authority, version);
        let mut kinds = Vec::new();
        for gateway in [&first, &second, &other] {
            let mut client = connect(gateway, "42", &config).await;
            kinds.push(client.tls().get_ref().1.handshake_kind().unwrap());
            client.close().await;
        }
        assert_eq!(kinds, [HandshakeKind::Full, HandshakeKind::Resumed, HandshakeKind::Full], "{version:?}");
    }
}

#[tokio::test]
async fn the_session_is_ended_behind_the_close() {
    let place = Place::new().await;
    let gateway = place.options().start().await;
    let mut client = connect(&gateway, "42", &place.client()).await;
    let disconnect = Message::Binary(vec![1].into());
    client.send_message(disconnect).await;
    assert_eq!(client.close_frame().await, 1003);
    // The library reports an end without close_notify, which an attacker could have made, as an error.
    let end = within("the end", client.tls().read(&mut [0; 1])).await;
    assert_eq!(end.expect("a clean end"), 0);
}

#[tokio::test]
async fn http_1_1_is_what_is_spoken() {
    let place = Place::new().await;
    let gateway = place.options().start().await;
    let offering = |protocols: &[&[u8]]| {
        let mut config = (*place.client()).clone();
        config.alpn_protocols = protocols.iter().map(|protocol| protocol.to_vec()).collect();
        Arc::new(config)
    };
    for listener in [gateway.public, gateway.admin] {
        let socket = || TcpSocket::new_v4().unwrap();
        let both = handshake_tls(socket(), listener, &offering(&[b"h2", b"http/1.1"])).await.unwrap();
        assert_eq!(both.get_ref().1.alpn_protocol(), Some(&b"http/1.1"[..]));
        let refused = handshake_tls(socket(), listener, &offering(&[b"h2"])).await.unwrap_err();
        assert!(refused.to_string().contains("NoApplicationProtocol"), "{refused}");
    }
}

/// Publishes 100 MB at a client that never reads, never faster than the instance takes them.
async fn memory_is_bounded(mode: &str) {
    let place = Place::new().await;
    let options = place.options().set("send_queue.slow_client", mode).set("send_queue.write_timeout", "1h");
    let gateway = options.start().await;
    let _slow = connect_narrow(&gateway, "42", &place.client()).await;
    let mut pace = connect(&gateway, "43", &place.client()).await;
    let before = gateway.resident_bytes();
    let mut most = before;
    for batch in 0..50 {
        place.redis.publish_all("42", (0..20).map(|number| numbered(number, 100_000))).await;
        place.redis.publish("43", &batch.to_string()).await;
        assert_eq!(pace.event().await, batch);
        most = most.max(gateway.resident_bytes());
    }
    assert!(gateway.metric("tidings_deliveries_dropped_total").await > 0.0);
    let grown = most - before;
    assert!(grown < 20_000_000, "{mode}: grew by {grown} bytes");
    if mode == "disconnect" {
        eventually("it is closed", async || gateway.metric(TOO_SLOW).await == 1.0).await;
    }
}

#[tokio::test]
async fn a_slow_client_is_closed_with_4203_and_costs_bounded_memory() {
    memory_is_bounded("disconnect").await;
}

#[tokio::test]
async fn a_slow_client_whose_oldest_are_dropped_costs_bounded_memory() {
    memory_is_bounded("drop_oldest").await;
}

#[tokio::test]
async fn dropping_the_oldest_tears_nothing_and_keeps_the_newest() {
    const COUNT: u32 = 1_000;
    let place = Place::new().await;
    let options = place.options().set("send_queue.slow_client", "drop_oldest").set("send_queue.write_timeout", "1h");
    let gateway = options.start().await;
    let mut slow = connect_narrow(&gateway, "42", &place.client()).await;
    let mut pace = connect(&gateway, "43", &place.client()).await;
    for number in 0..COUNT {
        place.redis.publish("42", &numbered(number, 10_000)).await;
        place.redis.publish("43", "1").await;
        pace.event().await;
    }
    assert_newest_in_order(&gateway, async || slow.event().await, COUNT).await;
}

#[tokio::test]
async fn a_write_that_makes_no_progress_times_out() {
    let place = Place::new().await;
    let gateway = place
        .options()
        .set("send_queue.write_timeout", "300ms")
        .set("send_queue.max_bytes", "1000000000")
        .set("send_queue.max_messages", "1000000")
        .start()
        .await;
    let _slow = connect_narrow(&gateway, "42", &place.client()).await;
    for number in 0..100 {
        place.redis.publish("42", &numbered(number, 100_000)).await;
    }
    eventually("it is closed", async || gateway.metric(TOO_SLOW).await == 1.0).await;
}

/// A directory as Kubernetes mounts a secret: files that are links through a link that is swapped whole.
struct Mounted {
    dir: TempDir,
    versions: u32,
}

impl Mounted {
    fn new() -> Self {
        let dir = TempDir::new().unwrap();
        for name in ["certificate.pem", "key.pem"] {
            std::os::unix::fs::symlink(Path::new("..data").join(name), dir.path().join(name)).unwrap();
        }
        Self { dir, versions: 0 }
    }

    fn files(&self) -> [PathBuf; 2] {
        ["certificate.pem", "key.pem"].map(|name| self.dir.path().join(name))
    }

    /// Replaces the pair by these files; returns the certificate.
    fn put(&mut self, from: &[PathBuf; 2]) -> CertificateDer<'static> {
        self.versions += 1;
        let version = format!("..{}", self.versions);
        fs::create_dir(self.dir.path().join(&version)).unwrap();
        for (from, name) in from.iter().zip(["certificate.pem", "key.pem"]) {
            fs::copy(from, self.dir.path().join(&version).join(name)).unwrap();
        }
        let next = self.dir.path().join("..next");
        std::os::unix::fs::symlink(version, &next).unwrap();
        fs::rename(next, self.dir.path().join("..data")).unwrap();
        CertificateDer::from_pem_file(&from[0]).unwrap()
    }
}

/// The certificate that a client without tickets receives now.
async fn shown(gateway: &Gateway, authority: &Authority) -> CertificateDer<'static> {
    let socket = TcpSocket::new_v4().unwrap();
    let tls = handshake_tls(socket, gateway.public, &client_config(authority, &TLS13)).await.unwrap();
    served_certificate(&tls)
}

#[tokio::test]
async fn a_new_pair_is_taken_and_a_bad_one_is_not_while_connections_live() {
    let (place, mut mounted) = (Place::new().await, Mounted::new());
    let Place { authority, redis, .. } = &place;
    let first = mounted.put(&place.files);
    let gateway = Options::redis(redis).tls(authority, &mounted.files()).start().await;
    let mut client = connect(&gateway, "42", &place.client()).await;
    assert_eq!(shown(&gateway, authority).await, first);

    let second = mounted.put(&authority.certificate(&["127.0.0.1"]));
    assert_ne!(first, second);
    eventually("the new pair is used", async || shown(&gateway, authority).await == second).await;
    assert_eq!(gateway.metric(TAKEN).await, 1.0);

    // A certificate with the key of another, then no files.
    let [certificate, _] = authority.certificate(&["127.0.0.1"]);
    let stranger = Authority::new();
    let [_, key] = stranger.certificate(&["127.0.0.1"]);
    mounted.put(&[certificate, key]);
    eventually("the bad pair is refused", async || gateway.metric(REFUSED).await == 1.0).await;
    fs::remove_file(mounted.dir.path().join("..data")).unwrap();
    eventually("the missing pair is refused", async || gateway.metric(REFUSED).await == 2.0).await;
    assert_eq!(shown(&gateway, authority).await, second);

    let third = mounted.put(&authority.certificate(&["127.0.0.1"]));
    eventually("a valid pair is used again", async || shown(&gateway, authority).await == third).await;
    // The first connection stayed open during all of it.
    redis.publish("42", "1").await;
    assert_eq!(client.event().await, 1);
}

#[tokio::test]
async fn sighup_reads_the_files_at_once_and_drops_nobody() {
    let place = Place::new().await;
    let gateway = place.options().start().await;
    let mut client = connect(&gateway, "42", &place.client()).await;
    gateway.signal("HUP");
    eventually("the files are read", async || gateway.log().contains("nothing has changed")).await;
    place.redis.publish("42", "1").await;
    assert_eq!(client.event().await, 1);
    assert_eq!(gateway.metric(TAKEN).await, 0.0, "an unchanged pair is not loaded: {}", gateway.log());
}

#[tokio::test]
async fn sighup_without_tls_is_harmless() {
    let mut gateway = Gateway::dev().await;
    gateway.signal("HUP");
    eventually("the signal was handled", async || gateway.log().contains("SIGHUP")).await;
    gateway.ready().await;
    gateway.signal("TERM");
    assert_eq!(gateway.exit().await.code(), Some(0));
}

#[tokio::test]
async fn a_handshake_that_takes_too_long_is_cut() {
    let place = Place::new().await;
    let gateway = place.options().set("server.handshake_timeout", "2s").start().await;
    let before = gateway.metric(HANDSHAKES_FAILED).await;
    let mut silent = TcpStream::connect(gateway.public).await.unwrap();
    let mut half = TcpStream::connect(gateway.public).await.unwrap();
    // The head of a ClientHello of 512 bytes, and no more.
    half.write_all(&[0x16, 3, 1, 2, 0, 1, 0, 1, 0xfc, 3, 3]).await.unwrap();
    for socket in [&mut silent, &mut half] {
        assert_eq!(within("the end", socket.read(&mut [0; 64])).await.unwrap_or(0), 0);
    }
    eventually("both are counted", async || gateway.metric(HANDSHAKES_FAILED).await == before + 2.0).await;
    // A client that completes the TLS handshake and then sends nothing.
    let socket = TcpSocket::new_v4().unwrap();
    let mut idle = handshake_tls(socket, gateway.public, &place.client()).await.unwrap();
    while within("the end", idle.read(&mut [0; 64])).await.is_ok_and(|count| count > 0) {}
}

#[tokio::test]
async fn behind_a_tcp_proxy_tls_comes_after_its_header() {
    let place = Place::new().await;
    let options = place.options().set("server.proxy_protocol", "true").set("limits.max_connections_per_ip", "1");
    let gateway = options.start_unready().await;
    let mut clients = Vec::new();
    // Two clients by the headers; one by the sockets.
    for last in [1, 2] {
        let mut tcp = TcpStream::connect(gateway.public).await.unwrap();
        let header = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c\xc0\0\x02";
        tcp.write_all(&[&header[..], &[last, 127, 0, 0, 1, 0x12, 0x34, 0, 80]].concat()).await.unwrap();
        let connector = TlsConnector::from(place.client());
        let tls = within("a handshake", connector.connect(gateway.public.ip().into(), tcp)).await.unwrap();
        clients.push(Client::connect_over(tls, "42").await);
    }
    assert_eq!(clients.len(), 2);
}

#[tokio::test]
async fn without_a_file_descriptor_to_spare_nothing_is_said_unencrypted() {
    let place = Place::new().await;
    let gateway = place.options().ulimit("-n 80").start().await;
    let mut sockets = Vec::new();
    for _ in 0..80 {
        sockets.push(TcpStream::connect(gateway.public).await.unwrap());
    }
    let (last, mut said) = (sockets.last_mut().unwrap(), Vec::new());
    within("it is closed", last.read_to_end(&mut said)).await.unwrap();
    assert_eq!(String::from_utf8_lossy(&said), "");
    assert!(gateway.metric("tidings_limited_total{limit=\"file_descriptors\"}").await > 0.0);
}

#[tokio::test]
async fn what_is_no_tls_is_counted_and_harms_nobody() {
    let place = Place::new().await;
    let gateway = place.options().start().await;
    let before = gateway.metric(HANDSHAKES_FAILED).await;
    let mut client = connect(&gateway, "42", &place.client()).await;
    for bytes in [&b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"[..], &[0x16, 3, 3, 0xff, 0xff], &[0; 2_000]] {
        let mut socket = TcpStream::connect(gateway.public).await.unwrap();
        socket.write_all(bytes).await.unwrap();
        socket.shutdown().await.ok();
        let mut answer = Vec::new();
        within("the end", socket.read_to_end(&mut answer)).await.ok();
        assert!(answer.len() < 16 && !answer.starts_with(b"HTTP"), "at most an alert: {answer:?}");
    }
    eventually("all are counted", async || gateway.metric(HANDSHAKES_FAILED).await == before + 3.0).await;
    place.redis.publish("42", "1").await;
    assert_eq!(client.event().await, 1);
}

#[tokio::test]
async fn garbage_inside_a_connection_ends_it_alone() {
    let place = Place::new().await;
    let gateway = place.options().start().await;
    let mut other = connect(&gateway, "42", &place.client()).await;
    let mut client = connect(&gateway, "42", &place.client()).await;
    client.tls().get_mut().0.write_all(b"this is no TLS record, and never was").await.unwrap();
    let end = within("the end", client.tls().read(&mut [0; 1])).await.unwrap_err();
    assert!(end.to_string().contains("fatal alert"), "the client receives an alert: {end}");
    eventually("it is gone", async || gateway.metric("tidings_connections").await == 1.0).await;
    place.redis.publish("42", "1").await;
    assert_eq!(other.event().await, 1);
}

#[tokio::test]
async fn the_command_publishes_over_tls_to_an_authority_it_trusts() {
    let place = Place::new().await;
    let gateway = place.options().start().await;
    let mut client = connect(&gateway, "42", &place.client()).await;
    let admin = format!("https://{}", gateway.admin);
    let mut trusting = command(&["publish", "42", "1", "--admin", &admin]);
    trusting.env("SSL_CERT_FILE", place.authority.ca_file());
    let done = output(trusting).await;
    assert!(done.status.success(), "{done:?}");
    assert_eq!(client.event().await, 1);

    // Without --admin, the configuration gives the address and TLS.
    let mut configured = command(&["publish", "42", "2", "--admin-listen", &gateway.admin.to_string()]);
    configured.env("SSL_CERT_FILE", place.authority.ca_file());
    let [certificate, key] = &place.files;
    configured.env("TIDINGS_SERVER__TLS_CERT_FILE", certificate).env("TIDINGS_SERVER__TLS_KEY_FILE", key);
    let done = output(configured).await;
    assert!(done.status.success(), "{done:?}");
    assert_eq!(client.event().await, 2);

    let mut distrusting = command(&["publish", "42", "3", "--admin", &admin]);
    distrusting.env("SSL_CERT_FILE", Authority::new().ca_file());
    assert_eq!(output(distrusting).await.status.code(), Some(1));
}

#[tokio::test]
async fn files_that_cannot_be_used_are_refused_by_key_and_not_shown() {
    const SECRET_LINE: &str = "hunter2hunter2hunter2hunter2";
    let (one, other, dir) = (Authority::new(), Authority::new(), TempDir::new().unwrap());
    let [certificate, key] = one.certificate(&["127.0.0.1"]).map(|path| path.to_str().unwrap().to_owned());
    let [_, foreign] = other.certificate(&["127.0.0.1"]).map(|path| path.to_str().unwrap().to_owned());
    let write = |name: &str, text: &str| {
        let path = dir.path().join(name);
        fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let around = |kind: &str, text: &str| format!("-----BEGIN {kind}-----\n{text}\n-----END {kind}-----\n");
    let empty = write("empty", "");
    let no_certificate = write("no-certificate", &around("CERTIFICATE", "AAAA"));
    let no_key = write("no-key", &around("PRIVATE KEY", SECRET_LINE));
    let torn = write("torn", &format!("-----BEGIN {SECRET_LINE}\n{SECRET_LINE}"));
    let encrypted = write("encrypted", &around("ENCRYPTED PRIVATE KEY", SECRET_LINE));
    const CERT: &str = "server.tls_cert_file";
    const KEY: &str = "server.tls_key_file";
    for (cert_file, key_file, named) in [
        (Some(&*certificate), None, &[CERT, KEY, "both or neither"][..]),
        (None, Some(&*key), &[CERT, KEY, "both or neither"]),
        (Some("/does/not/exist"), Some(&key), &[CERT, "/does/not/exist", "No such file"]),
        (Some(&certificate), Some("/does/not/exist"), &[KEY, "/does/not/exist", "No such file"]),
        (Some(&certificate), Some("/"), &[KEY, "directory"]),
        (Some(&empty), Some(&key), &[CERT, "no certificate"]),
        (Some(&key), Some(&key), &[CERT, "no certificate"]),
        (Some(&no_certificate), Some(&key), &[CERT, "no-certificate"]),
        (Some(&certificate), Some(&certificate), &[KEY, "no private key"]),
        (Some(&certificate), Some(&no_key), &[KEY, "no-key"]),
        (Some(&certificate), Some(&torn), &[KEY, "no private key"]),
        (Some(&certificate), Some(&encrypted), &[KEY, "unencrypted"]),
        (Some(&certificate), Some(&foreign), &[KEY, "not the key of the certificate"]),
    ] {
        for subcommand in ["check-config", "serve"] {
            let mut command = command(&[subcommand]);
            command.env("TIDINGS_AUTH__HMAC_SECRET", SECRET);
            for (name, file) in
                [("TIDINGS_SERVER__TLS_CERT_FILE", cert_file), ("TIDINGS_SERVER__TLS_KEY_FILE", key_file)]
            {
                if let Some(file) = file {
                    command.env(name, file);
                }
            }
            let done = output(command).await;
            let stderr = String::from_utf8(done.stderr).unwrap();
            assert_eq!(done.status.code(), Some(2), "{cert_file:?} {key_file:?}: {stderr}");
            for part in named {
                assert!(stderr.contains(part), "{part:?} is not named: {stderr}");
            }
            assert!(!stderr.contains("hunter2"), "{stderr}");
        }
    }
}
