//! Debian's nginx, with the very configuration that is deployed.

use std::fmt::Write as _;
use std::fs;
use std::net::SocketAddr;
use std::path::Path;

use tempfile::TempDir;
use tokio::process::{Child, Command};

use super::redis::free_port;
use super::{Gateway, eventually};

/// A real nginx in front of some instances; killed when dropped.
pub struct Nginx {
    pub address: SocketAddr,
    dir: TempDir,
    child: Child,
}

impl Nginx {
    pub async fn start(gateways: &[&Gateway]) -> Self {
        let address = SocketAddr::from(([127, 0, 0, 1], free_port()));
        let dir = TempDir::new().unwrap();
        let deployed = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/nginx/nginx.conf");
        let configuration = dir.path().join("nginx.conf");
        fs::copy(deployed, &configuration).unwrap();
        let mut upstream = String::new();
        for gateway in gateways {
            writeln!(upstream, "server {} max_fails=0;", gateway.public).unwrap();
        }
        fs::write(dir.path().join("upstream.conf"), upstream).unwrap();
        fs::write(dir.path().join("listen.conf"), format!("listen {address};\naccess_log access.log edge;\n")).unwrap();
        let child = Command::new("nginx")
            .env("PATH", format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default()))
            .args(["-e", "stderr", "-p"])
            .arg(format!("{}/", dir.path().display()))
            .arg("-c")
            .arg(&configuration)
            .stderr(fs::File::create(dir.path().join("error.log")).unwrap())
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .expect("nginx is installed (scripts/setup)");
        let nginx = Self { address, dir, child };
        eventually("nginx accepts", async || tokio::net::TcpStream::connect(address).await.is_ok()).await;
        nginx
    }

    /// Everything it has logged, accesses and errors.
    pub fn log(&self) -> String {
        let read = |name: &str| fs::read_to_string(self.dir.path().join(name)).unwrap();
        read("access.log") + &read("error.log")
    }
}

impl Drop for Nginx {
    /// SIGTERM first: a killed master would leave its workers behind.
    fn drop(&mut self) {
        if let Some(pid) = self.child.id() {
            super::gateway::signal(pid, "TERM");
        }
        let pid_file = self.dir.path().join("nginx.pid");
        for _ in 0..100 {
            if !pid_file.exists() {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
    }
}
