//! Tells the service manager how far the process is, where it asks to be told (`sd_notify(3)`).

use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

use tracing::warn;

/// Both listeners accept.
pub(super) const READY: &str = "READY=1";

/// Clients are being sent away.
pub(super) const STOPPING: &str = "STOPPING=1";

/// Tells it, if it asked. A manager that cannot be told is no reason to serve nobody.
pub(super) fn notify(state: &str) {
    if let Err(error) = send(state) {
        warn!(%error, state, "NOTIFY_SOCKET takes nothing: the service manager was not told");
    }
}

fn send(state: &str) -> io::Result<()> {
    let Some(name) = std::env::var_os("NOTIFY_SOCKET").filter(|name| !name.is_empty()) else { return Ok(()) };
    let address = match name.as_bytes().strip_prefix(b"@") {
        Some(name) => abstract_address(name)?,
        None => SocketAddr::from_pathname(&name)?,
    };
    let socket = UnixDatagram::unbound()?;
    socket.set_nonblocking(true)?;
    socket.send_to_addr(state.as_bytes(), &address)?;
    Ok(())
}

#[cfg(target_os = "linux")]
fn abstract_address(name: &[u8]) -> io::Result<SocketAddr> {
    use std::os::linux::net::SocketAddrExt as _;

    SocketAddr::from_abstract_name(name)
}

/// Only Linux has sockets without a path.
#[cfg(not(target_os = "linux"))]
fn abstract_address(_: &[u8]) -> io::Result<SocketAddr> {
    Err(io::ErrorKind::Unsupported.into())
}
