//! The meaning of a client's packet, whichever transport brought it.

use super::{Auth, BadPacket, ClientPacket};
use crate::protocol::{Close, Cursor};

/// The part of a session's state that decides whether a packet is allowed.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Session {
    /// Whether a CONNECT to `/` was accepted, or is being decided.
    joined: bool,
    /// How many attachments of the last event or ack are still to come.
    attachments: u32,
}

/// The consequence of a packet.
#[derive(Debug, PartialEq, Eq)]
pub enum Action {
    /// The client answered a ping.
    Pong,
    /// A CONNECT to `/`: to be accepted, or refused with [`Session::refuse`].
    Connect(Box<Auth>),
    /// A CONNECT to another namespace, to be answered with [`super::invalid_namespace`].
    InvalidNamespace(String),
    /// The client has handled every stored event up to this position.
    Read(Cursor),
    /// An event or an ack, for which there is no recipient.
    Ignored,
    /// Part of the transport's own dialogue, or of a packet that was counted already.
    Nothing,
}

impl Session {
    pub fn has_joined(self) -> bool {
        self.joined
    }

    /// The last CONNECT is refused; the client may send another.
    pub fn refuse(&mut self) {
        self.joined = false;
    }

    /// Handles a text of the client, without a separator in it.
    pub fn receive(&mut self, text: &str) -> Result<Action, Close> {
        self.handle(ClientPacket::parse(text))
    }

    /// Handles a packet; an error closes the session.
    pub fn handle(&mut self, packet: Result<ClientPacket<'_>, BadPacket>) -> Result<Action, Close> {
        let action = match packet.map_err(|BadPacket| Close::Protocol)? {
            ClientPacket::Pong => Action::Pong,
            ClientPacket::Noop | ClientPacket::Upgrade => Action::Nothing,
            ClientPacket::Attachment => return self.attachment(),
            ClientPacket::Close => return Err(Close::Left),
            // A packet of Socket.IO amid the attachments of another.
            _ if self.attachments > 0 => return Err(Close::Protocol),
            ClientPacket::Connect { namespace: "/", .. } if self.joined => return Err(Close::Protocol),
            ClientPacket::Connect { namespace: "/", auth } => {
                self.joined = true;
                Action::Connect(Box::new(auth))
            }
            ClientPacket::Connect { namespace, .. } => Action::InvalidNamespace(namespace.to_owned()),
            ClientPacket::Disconnect { namespace: "/" } => return Err(Close::Left),
            ClientPacket::Event { namespace: "/", read, attachments } if self.joined => {
                self.attachments = attachments;
                read.map_or(Action::Ignored, Action::Read)
            }
            ClientPacket::Ack { namespace: "/", attachments } if self.joined => {
                self.attachments = attachments;
                Action::Ignored
            }
            // A probe outside an upgrade; a namespace that the client has not joined.
            ClientPacket::Probe
            | ClientPacket::Disconnect { .. }
            | ClientPacket::Event { .. }
            | ClientPacket::Ack { .. } => return Err(Close::Protocol),
        };
        Ok(action)
    }

    /// Handles an attachment: a binary WebSocket frame, or a packet `b…` of a polling body.
    pub fn attachment(&mut self) -> Result<Action, Close> {
        self.attachments = self.attachments.checked_sub(1).ok_or(Close::Unsupported)?;
        Ok(Action::Nothing)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const CURSOR: &str = "0000000000000abc-1795000000123-17";

    /// The result of the last of these texts; `*` is an attachment.
    fn last(texts: &[&str]) -> Result<Action, Close> {
        let mut session = Session::default();
        let receive = |text: &&str| if *text == "*" { session.attachment() } else { session.receive(text) };
        let mut results: Vec<_> = texts.iter().map(receive).collect();
        let last = results.pop().unwrap();
        assert!(results.iter().all(Result::is_ok), "{texts:?}: {results:?}");
        last
    }

    #[test]
    fn a_packet_is_handled_ignored_or_closes_the_session() {
        let connect = || Ok(Action::Connect(Box::default()));
        let invalid = || Ok(Action::InvalidNamespace("/x".into()));
        let ack = format!(r#"42["ack","{CURSOR}"]"#);
        let cases: [(&[&str], Result<Action, Close>); 26] = [
            (&["40"], connect()),
            (&["40/x,", "40"], connect()),
            (&["40", "40"], Err(Close::Protocol)),
            (&["40/x"], invalid()),
            (&["40", "40/x"], invalid()),
            (&["3"], Ok(Action::Pong)),
            (&["40", "3"], Ok(Action::Pong)),
            (&["40", r#"42["hey"]"#], Ok(Action::Ignored)),
            (&["40", r#"427["hey"]"#], Ok(Action::Ignored)),
            (&["40", "431[]"], Ok(Action::Ignored)),
            (&["40", r#"42["ack","x"]"#], Ok(Action::Ignored)),
            (&["40", &ack], Ok(Action::Read(CURSOR.parse().unwrap()))),
            (&["40", r#"452-["hey"]"#, "*", "*"], Ok(Action::Nothing)),
            (&["40", r#"452-["hey"]"#, "*", "3"], Ok(Action::Pong)),
            (&["40", r#"452-["hey"]"#, "*", r#"42["hey"]"#], Err(Close::Protocol)),
            (&["40", "461-1[1]", "bAQ=="], Ok(Action::Nothing)),
            (&["40", r#"451-["hey"]"#, "*", "*"], Err(Close::Unsupported)),
            (&["40", "*"], Err(Close::Unsupported)),
            (&["*"], Err(Close::Unsupported)),
            (&[r#"42["hey"]"#], Err(Close::Protocol)),
            (&["40", r#"42/x,["hey"]"#], Err(Close::Protocol)),
            (&["40", "41/x"], Err(Close::Protocol)),
            (&["40", "41"], Err(Close::Left)),
            (&["1"], Err(Close::Left)),
            (&["40", "2probe"], Err(Close::Protocol)),
            (&["40", "4abc"], Err(Close::Protocol)),
        ];
        for (texts, expected) in cases {
            assert_eq!(last(texts), expected, "{texts:?}");
        }
    }

    #[test]
    fn a_refused_client_may_send_another_connect() {
        let mut session = Session::default();
        session.receive("40").unwrap();
        session.refuse();
        assert_eq!(session.receive(r#"42["hey"]"#), Err(Close::Protocol));
        assert_eq!(session.receive("40"), Ok(Action::Connect(Box::default())));
        assert!(session.has_joined());
    }
}
