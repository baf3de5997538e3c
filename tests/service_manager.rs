//! A service manager is notified when the instance is ready, and when it begins to stop (sd_notify(3)).

use std::os::unix::net::UnixDatagram;

use tempfile::TempDir;
use tokio::net::UnixDatagram as Told;

use crate::support::{Client, Options, within};

async fn next(told: &Told) -> String {
    let mut state = [0; 256];
    let count = within("a notification", told.recv(&mut state)).await.unwrap();
    String::from_utf8(state[..count].to_vec()).unwrap()
}

async fn is_told(socket: UnixDatagram, name: &str) {
    socket.set_nonblocking(true).unwrap();
    let told = Told::from_std(socket).unwrap();
    let options = Options::dev().env("NOTIFY_SOCKET", name).set("drain.window", "1h");
    let mut gateway = options.start_unready().await;
    assert_eq!(next(&told).await, "READY=1");
    // Notified of the drain while a client is still connected: the second of two waits for half of the window.
    let _clients = [Client::connect(&gateway, "42").await, Client::connect(&gateway, "42").await];
    gateway.signal("TERM");
    assert_eq!(next(&told).await, "STOPPING=1");
    assert!(gateway.metric("tidings_connections").await >= 1.0);
    gateway.kill().await;
}

#[tokio::test]
async fn by_a_socket_of_a_path() {
    let dir = TempDir::new().unwrap();
    let path = dir.path().join("notify");
    is_told(UnixDatagram::bind(&path).unwrap(), path.to_str().unwrap()).await;
}

#[cfg(target_os = "linux")]
#[tokio::test]
async fn by_a_socket_of_an_abstract_name() {
    use std::os::linux::net::SocketAddrExt as _;
    use std::os::unix::net::SocketAddr;

    let name = format!("tidings-test-{}", fastrand::u64(..));
    let address = SocketAddr::from_abstract_name(&name).unwrap();
    is_told(UnixDatagram::bind_addr(&address).unwrap(), &format!("@{name}")).await;
}

#[tokio::test]
async fn one_that_cannot_be_told_stops_nothing() {
    let mut gateway = Options::dev().env("NOTIFY_SOCKET", "/does/not/exist").start().await;
    assert!(gateway.log().contains("NOTIFY_SOCKET"), "{}", gateway.log());
    gateway.signal("TERM");
    assert_eq!(gateway.exit().await.code(), Some(0));
}
