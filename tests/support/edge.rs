//! Debian's servers as proxies, each with its configuration in docs/proxies.md.

use std::fmt::Write as _;
use std::fs::{self, File};
use std::net::SocketAddr;

use tempfile::TempDir;
use tokio::process::{Child, Command};

use super::redis::free_port;
use super::{Gateway, eventually};

const PAGE: &str = include_str!("../../docs/proxies.md");

/// What Debian's configuration loads for the modules that the page names, and for a server at all.
const APACHE_MODULES: [&str; 9] = [
    "mpm_event",
    "authz_core",
    "proxy",
    "proxy_http",
    "proxy_balancer",
    "lbmethod_bybusyness",
    "slotmem_shm",
    "headers",
    "unixd",
];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Server {
    HaProxy,
    Caddy,
    Apache,
    Varnish,
    Lighttpd,
}

/// A real proxy in front of two instances; killed when dropped.
pub struct Edge {
    pub address: SocketAddr,
    dir: TempDir,
    _child: Child,
}

impl Edge {
    /// Waits until it answers for an instance that is ready.
    pub async fn start(server: Server, gateways: [&Gateway; 2]) -> Self {
        let address = SocketAddr::from(([127, 0, 0, 1], free_port()));
        let dir = TempDir::new().unwrap();
        let file = dir.path().join("configuration");
        fs::write(&file, configuration(server, address, gateways, &dir)).unwrap();
        let (here, file) = (dir.path().to_str().unwrap(), file.to_str().unwrap());
        let listen = address.to_string();
        let (program, args): (&str, Vec<&str>) = match server {
            Server::HaProxy => ("haproxy", vec!["-db", "-f", file]),
            Server::Caddy => ("caddy", vec!["run", "--adapter", "caddyfile", "--config", file]),
            // One process, so that its end leaves no other.
            Server::Apache => ("apache2", vec!["-X", "-f", file]),
            Server::Varnish => {
                let limits = varnish_limits();
                ("varnishd", [vec!["-F", "-j", "none", "-n", here, "-a", &listen, "-f", file], limits].concat())
            }
            Server::Lighttpd => ("lighttpd", vec!["-D", "-f", file]),
        };
        let log = File::create(dir.path().join("log")).unwrap();
        let child = Command::new(program)
            .args(args)
            .env("PATH", format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default()))
            .env("HOME", here)
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .kill_on_drop(true)
            .spawn()
            .unwrap_or_else(|error| panic!("{program} is not installed (scripts/setup): {error}"));
        let edge = Self { address, dir, _child: child };
        let ready = format!("http://{address}/readyz");
        let answers = async || super::http().get(&ready).send().await.is_ok_and(|answer| answer.status() == 200);
        eventually(&format!("{server:?} answers: {}", edge.log()), answers).await;
        edge
    }

    /// Everything it has printed.
    pub fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("log")).unwrap()
    }
}

/// The block of the page in this language.
fn block(language: &str) -> &'static str {
    let (_, rest) = PAGE.split_once(&format!("```{language}\n")).unwrap_or_else(|| panic!("no {language} on the page"));
    rest.split_once("```").unwrap().0
}

/// The parameters that the page's table has for long tokens.
fn varnish_limits() -> Vec<&'static str> {
    let row =
        PAGE.lines().find(|line| line.starts_with("| Varnish") && line.contains("-p ")).expect("a row for Varnish");
    row.split('`').find(|code| code.starts_with("-p ")).unwrap().split(' ').collect()
}

/// The page's configuration, with these addresses, and with the little that a server needs beside it.
fn configuration(server: Server, address: SocketAddr, gateways: [&Gateway; 2], dir: &TempDir) -> String {
    let here = dir.path().display();
    let port = address.port();
    let language = match server {
        Server::HaProxy => "haproxy",
        Server::Caddy => "caddyfile",
        Server::Apache => "apache",
        Server::Varnish => "vcl",
        Server::Lighttpd => "lighttpd",
    };
    let mut text = block(language).to_owned();
    for (gateway, machine) in gateways.iter().zip(["10.0.0.11", "10.0.0.12"]) {
        assert!(text.contains(machine), "{text}");
        let [ip, port] = [gateway.public.ip().to_string(), gateway.public.port().to_string()];
        for (there, local) in [
            (format!("{machine}:8080"), format!("{ip}:{port}")),
            (format!("{machine}\"; .port = \"8080\""), format!("{ip}\"; .port = \"{port}\"")),
            (format!("{machine}\", \"port\" => 8080"), format!("{ip}\", \"port\" => {port}")),
        ] {
            text = text.replace(&there, &local);
        }
        assert!(!text.contains(machine), "{text}");
    }
    match server {
        Server::HaProxy => {
            let bind = text.lines().find(|line| line.trim_start().starts_with("bind ")).unwrap().to_owned();
            text.replace(&bind, &format!("  bind {address}"))
        }
        Server::Caddy => {
            let site = format!("http://{address} {{");
            format!("{{\n\tadmin off\n\tauto_https off\n}}\n{}", text.replace("push.example.com {", &site))
        }
        Server::Apache => {
            let mut head = String::new();
            for module in APACHE_MODULES {
                // Some are built in.
                writeln!(
                    head,
                    "<IfModule !{module}_module>\nLoadModule {module}_module /usr/lib/apache2/modules/mod_{module}.so\n</IfModule>"
                )
                .unwrap();
            }
            format!(
                "{head}ServerRoot {here}\nDefaultRuntimeDir {here}\nPidFile {here}/pid\nErrorLog {here}/log\n\
                 ServerName localhost\nUser www-data\nGroup www-data\nListen {address}\n{text}"
            )
        }
        Server::Varnish => text,
        Server::Lighttpd => {
            format!("server.document-root = \"{here}\"\nserver.bind = \"127.0.0.1\"\nserver.port = {port}\n{text}")
        }
    }
}
