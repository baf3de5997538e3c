//! `tidings disconnect`: closes a user's connections on every instance.

use clap::Args;
use reqwest::Method;

use super::admin::{AdminListener, Call, in_path};
use super::{ConfigArgs, block_on, say, user_id};

#[derive(Debug, Args)]
pub(super) struct Disconnect {
    /// The user whose connections are closed, with 4011
    #[arg(allow_negative_numbers = true)]
    user: String,
    /// The admin listener of an instance [default: server.admin_listen]
    #[arg(long, value_name = "URL")]
    admin: Option<String>,
    #[command(flatten)]
    config: ConfigArgs,
}

impl Disconnect {
    pub(super) fn run(self) -> anyhow::Result<()> {
        let user = user_id(&self.user)?;
        let path = ["v1", "users", in_path(&user)?, "connections"];
        let admin = AdminListener::new(self.admin.as_deref(), &self.config.load(false)?)?;
        block_on(admin.call(Method::DELETE, Call { path: &path, ..Call::default() }))?;
        Ok(say(&format!("every instance was told to close the connections of user {user}"))?)
    }
}
