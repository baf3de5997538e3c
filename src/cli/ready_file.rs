//! The file of `serve --ready-file`: it exists only while both listeners accept.

use std::path::Path;

use anyhow::Context as _;
use serde_json::json;

use crate::Gateway;
use crate::config::shown_path;

/// The file as this process wrote it.
pub(super) struct ReadyFile<'a> {
    path: &'a Path,
    text: String,
}

impl<'a> ReadyFile<'a> {
    /// Removes the file of an earlier process, if one is left: a script that waits for this one would read its addresses.
    pub(super) fn clear(path: &Path) -> anyhow::Result<()> {
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error).with_context(|| name(path)),
            _ => Ok(()),
        }
    }

    pub(super) fn write(path: &'a Path, gateway: &Gateway) -> anyhow::Result<Self> {
        let ready = json!({
            "public": gateway.public().to_string(),
            "admin": gateway.admin().to_string(),
            "instance": gateway.instance().as_str(),
            "pid": std::process::id(),
        });
        let text = ready.to_string();
        write_whole(path, &text).with_context(|| name(path))?;
        Ok(Self { path, text })
    }

    /// Removes the file, unless another process has written its own there.
    pub(super) fn remove(self) -> anyhow::Result<()> {
        let is_own = std::fs::read(self.path).is_ok_and(|text| text == self.text.as_bytes());
        if is_own { Self::clear(self.path) } else { Ok(()) }
    }
}

fn name(path: &Path) -> String {
    format!("--ready-file {:?}", shown_path(path))
}

/// Writes a file atomically.
fn write_whole(path: &Path, text: &str) -> std::io::Result<()> {
    let mut part = path.as_os_str().to_owned();
    part.push(format!(".{}", std::process::id()));
    std::fs::write(&part, text)?;
    std::fs::rename(&part, path)
}
