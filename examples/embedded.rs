//! Runs a gateway inside another program: `cargo run --example embedded`, and Ctrl-C to stop.
//!
//! It prints the URL of the demo page. An argument is the path of a TOML file; `TIDINGS_…` variables apply, too.

#![allow(clippy::print_stdout, reason = "prints where it listens")]

use std::error::Error;

use tidings::{Config, Gateway, Layers};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    // The log belongs to the program: any subscriber of `tracing` will do.
    tracing_subscriber::fmt().with_writer(std::io::stderr).init();

    let set = |key: &str, value: &str| ("embedded".to_owned(), key.to_owned(), value.to_owned());
    let config = Config::load(Layers {
        // In memory, with a random secret and the demo page. A program in production sets `redis.url` and a key of `auth`.
        dev: true,
        // Each layer overrides those above it in this list; a wrong value is an error that names its key.
        file: std::env::args_os().nth(1).map(Into::into),
        env: std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
            .collect(),
        // The first part is named in errors. Port 0 takes any free port.
        flags: vec![set("server.listen", "127.0.0.1:0"), set("server.admin_listen", "127.0.0.1:0")],
    })?;

    // Both listeners accept when `start` returns; dropping the gateway would not stop it, `stop` does.
    let gateway = Gateway::start(config)?;
    println!("demo page: http://{}/", gateway.public());
    println!("publish:   curl -d '{{\"data\":\"hello\"}}' http://{}/v1/users/42/notifications", gateway.admin());

    tokio::signal::ctrl_c().await?;
    // Asks the clients to reconnect elsewhere within `drain.window`, gives up their presence, and ends every task.
    gateway.stop().await;
    Ok(())
}
