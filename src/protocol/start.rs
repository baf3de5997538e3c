//! The position in its user's stored history from which a client starts.

use super::Cursor;
use super::id::is_name;

/// The device of a client that names none.
pub const DEFAULT_DEVICE: &str = "default";

const MAX_DEVICE_BYTES: usize = 64;

#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a device name has 1 to {MAX_DEVICE_BYTES} bytes and no control characters")]
pub struct BadDevice;

pub fn check_device(name: &str) -> Result<(), BadDevice> {
    if is_name(name, MAX_DEVICE_BYTES) { Ok(()) } else { Err(BadDevice) }
}

/// The position from which a client resumes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resume {
    /// After this position.
    After(Cursor),
    /// After its device's read position.
    Acked,
    /// The text is not a cursor: no event can be proven to follow it.
    Unknown,
}

/// The request of a client that connects.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Start {
    /// `None`: only new events.
    pub resume: Option<Resume>,
    /// Resumes from here if `resume` is not a position of the user's history: one of the two is of an earlier epoch.
    pub other: Option<Cursor>,
    /// The text that tells a socket.io client that it has recovered.
    pub pid: Option<Box<str>>,
    /// `None`: the device `default`.
    pub device: Option<Box<str>>,
}

impl Start {
    /// Whether the client may have events to recover.
    pub fn resumes(&self) -> bool {
        !matches!(self.resume, None | Some(Resume::Unknown))
    }

    /// Parses `resume` and `device` of a client. Only a bad device fails: any text is accepted as `resume`.
    pub fn new(resume: Option<&str>, device: Option<&str>) -> Result<Self, BadDevice> {
        device.map_or(Ok(()), check_device)?;
        let resume = resume.map(|text| match text {
            "acked" => Resume::Acked,
            text => text.parse().map_or(Resume::Unknown, Resume::After),
        });
        let device = device.filter(|name| *name != DEFAULT_DEVICE).map(Box::from);
        Ok(Self { resume, device, ..Self::default() })
    }

    pub fn device(&self) -> &str {
        self.device.as_deref().unwrap_or(DEFAULT_DEVICE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_text_is_a_resume_and_only_a_name_is_a_device() {
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
