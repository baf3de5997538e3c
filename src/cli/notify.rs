//! Reports the state of the process to the service manager, if `NOTIFY_SOCKET` is set (`sd_notify(3)`).

use std::io;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};

use tracing::warn;

/// Both listeners accept.
pub(super) const READY: &str = "READY=1";

/// The drain begins.
pub(super) const STOPPING: &str = "STOPPING=1";

/// Reports a state. A failure is only logged: an instance must not stop because of its service manager.
pub(super) fn notify(state: &str) {
    if let Err(error) = send(state) {
        warn!(%error, state, "cannot notify the service manager at NOTIFY_SOCKET");
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

/// Only Linux has abstract sockets.
#[cfg(not(target_os = "linux"))]
fn abstract_address(_: &[u8]) -> io::Result<SocketAddr> {
    Err(io::ErrorKind::Unsupported.into())
}
