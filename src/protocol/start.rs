//! Where in its user's stored history a client wants to start.

use super::Cursor;
use super::id::is_name;

/// The device of a client that names none.
pub const DEFAULT_DEVICE: &str = "default";

/// Most bytes of a device's name.
const MAX_DEVICE_BYTES: usize = 64;

/// A text that names no device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a device is 1 to {MAX_DEVICE_BYTES} bytes of text without control characters")]
pub struct BadDevice;

/// Checks a device's name.
///
/// # Errors
/// [`BadDevice`].
pub fn check_device(name: &str) -> Result<(), BadDevice> {
    if is_name(name, MAX_DEVICE_BYTES) { Ok(()) } else { Err(BadDevice) }
}

/// From where a client wants to resume.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resume {
    /// Behind this place.
    After(Cursor),
    /// Behind its device's read position.
    Acked,
    /// A text that is no place: nothing can be said to follow it.
    Unknown,
}

/// What a client asks for when it comes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Start {
    /// None: from now on.
    pub resume: Option<Resume>,
    /// None: [`DEFAULT_DEVICE`].
    pub device: Option<Box<str>>,
}

impl Start {
    /// Whether there may be something to recover.
    pub fn resumes(&self) -> bool {
        !matches!(self.resume, None | Some(Resume::Unknown))
    }

    /// From `resume` and `device` as a client gave them. Any text will do to resume from: it never fails a connection.
    ///
    /// # Errors
    /// [`BadDevice`].
    pub fn new(resume: Option<&str>, device: Option<&str>) -> Result<Self, BadDevice> {
        device.map_or(Ok(()), check_device)?;
        let resume = resume.map(|text| match text {
            "acked" => Resume::Acked,
            text => text.parse().map_or(Resume::Unknown, Resume::After),
        });
        Ok(Self { resume, device: device.filter(|name| *name != DEFAULT_DEVICE).map(Box::from) })
    }

    /// The device's name.
    pub fn device(&self) -> &str {
        self.device.as_deref().unwrap_or(DEFAULT_DEVICE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_text_may_be_resumed_from_and_only_a_name_is_a_device() {
        let cursor = "0000000000000abc-1795000000123-17";
        let start = |resume| Start::new(Some(resume), None).unwrap().resume.unwrap();
        assert_eq!(start(cursor), Resume::After(cursor.parse().unwrap()));
        assert_eq!(start("acked"), Resume::Acked);
        for garbage in ["", "null", "\0", "ACKED", &"x".repeat(10_000)] {
            assert_eq!(start(garbage), Resume::Unknown, "{garbage:?}");
        }
        assert_eq!(Start::new(None, Some("phone")).unwrap().device(), "phone");
        assert_eq!(Start::new(None, Some("default")).unwrap(), Start::default());
        for name in ["", "a\nb", &"x".repeat(65)] {
            assert_eq!(Start::new(None, Some(name)), Err(BadDevice), "{name:?}");
        }
    }
}
