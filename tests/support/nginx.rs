//! Debian's nginx, with the configuration under deploy/.

use std::fmt::Write as _;
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

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
        let listen = format!("listen {address};\naccess_log access.log edge;\n");
        Self::start_with(address, &listen, TempDir::new().unwrap(), gateways).await
    }

    /// With TLS, of this certificate and key, as `listen-tls.conf` has it.
    pub async fn start_tls(gateways: &[&Gateway], files: &[PathBuf; 2]) -> Self {
        let address = SocketAddr::from(([127, 0, 0, 1], free_port()));
        let dir = TempDir::new().unwrap();
        fs::create_dir(dir.path().join("tls")).unwrap();
        for (file, name) in files.iter().zip(["certificate.pem", "key.pem"]) {
            fs::copy(file, dir.path().join("tls").join(name)).unwrap();
        }
        let mut listen = fs::read_to_string(deployed("listen-tls.conf")).unwrap();
        for (there, here) in [("listen 8443", &*format!("listen {address}")), ("/dev/stdout", "access.log")] {
            assert!(listen.contains(there), "{there}: {listen}");
            listen = listen.replace(there, here);
        }
        Self::start_with(address, &listen, dir, gateways).await
    }

    async fn start_with(address: SocketAddr, listen: &str, dir: TempDir, gateways: &[&Gateway]) -> Self {
        let configuration = dir.path().join("nginx.conf");
        fs::copy(deployed("nginx.conf"), &configuration).unwrap();
        let mut upstream = String::new();
        for gateway in gateways {
            writeln!(upstream, "server {} max_fails=0;", gateway.public).unwrap();
        }
        fs::write(dir.path().join("upstream.conf"), upstream).unwrap();
        fs::write(dir.path().join("listen.conf"), listen).unwrap();
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

fn deployed(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/nginx").join(name)
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
