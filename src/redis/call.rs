//! One command of a domain. How it is sent depends on the connection: a script by its hash or its source.

use std::borrow::Cow;

use redis::{Arg, Cmd};

use super::script::{Pipelined, Script, ScriptInvocation, undeclared};

#[derive(Clone, Copy)]
pub(super) enum Call<'a> {
    Command(&'a Cmd),
    /// A command whose reply is a bulk of the reply's own bytes. Only for [`super::topology::Lane::Bulk`].
    Raw(&'a Cmd),
    /// A command without a key, for the node that has this key.
    Beside(&'a Cmd, &'a [u8]),
    Script(&'a ScriptInvocation<'a>),
    Pipelined(&'a Pipelined, &'a Cmd),
}

/// As what a node of a cluster is asked to execute a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Asking {
    /// As the owner of its slot.
    Owner,
    /// As the node that is about to take over the slot (`ASKING`).
    Target,
    /// The same, where no other node has any key of the call. The target does not execute a script while one of several
    /// declared keys does not exist, so that only the first is declared.
    Alone,
}

/// A call that another task may send.
pub(super) enum OwnedCall {
    Command(Cmd),
    Pipelined(Pipelined, Cmd),
}

impl OwnedCall {
    pub(super) fn as_call(&self) -> Call<'_> {
        match self {
            Self::Command(command) => Call::Command(command),
            Self::Pipelined(script, call) => Call::Pipelined(script, call),
        }
    }
}

impl<'a> Call<'a> {
    pub(super) fn owned(self) -> OwnedCall {
        match self {
            Self::Command(command) | Self::Raw(command) | Self::Beside(command, _) => {
                OwnedCall::Command(command.clone())
            }
            Self::Script(invocation) => OwnedCall::Command(invocation.command(false)),
            Self::Pipelined(script, call) => OwnedCall::Pipelined(script.clone(), call.clone()),
        }
    }

    pub(super) fn is_raw(&self) -> bool {
        matches!(self, Self::Raw(_))
    }

    /// Of its arguments, approximately.
    pub(super) fn bytes(&self) -> usize {
        match self {
            Self::Command(command) | Self::Raw(command) | Self::Beside(command, _) | Self::Pipelined(_, command) => {
                command
                    .args_iter()
                    .map(|argument| if let Arg::Simple(argument) = argument { argument.len() } else { 0 })
                    .sum()
            }
            Self::Script(_) => 0,
        }
    }

    /// The first key, whose slot has all keys of the call; `None` if it has none.
    pub(super) fn key(&self) -> Option<&'a [u8]> {
        match self {
            Self::Command(command) | Self::Raw(command) => key_of(command),
            Self::Beside(_, key) => Some(key),
            Self::Script(invocation) => invocation.first_key(),
            Self::Pipelined(_, call) => argument(call, 3),
        }
    }

    pub(super) fn script(&self) -> Option<&'a Script> {
        match self {
            Self::Command(_) | Self::Raw(_) | Self::Beside(..) => None,
            Self::Script(invocation) => Some(invocation.script()),
            Self::Pipelined(pipelined, _) => Some(pipelined.script()),
        }
    }

    /// All keys of a script; only scripts have several.
    pub(super) fn keys(&self) -> Vec<&'a [u8]> {
        match self {
            Self::Script(invocation) => invocation.keys(),
            Self::Pipelined(_, call) => {
                let count = argument(call, 2).and_then(|count| std::str::from_utf8(count).ok()?.parse().ok());
                (3..).map_while(|index| argument(call, index)).take(count.unwrap_or_default()).collect()
            }
            Self::Command(_) | Self::Raw(_) | Self::Beside(..) => self.key().into_iter().collect(),
        }
    }

    /// As [`Call::command`], for [`Asking::Alone`].
    pub(super) fn alone(&self, server: &str) -> Cow<'a, Cmd> {
        let command = self.command(false, server);
        if self.script().is_some() { Cow::Owned(undeclared(&command)) } else { command }
    }

    /// The command as it is sent on a connection to this server.
    pub(super) fn command(&self, by_hash: bool, server: &str) -> Cow<'a, Cmd> {
        match self {
            Self::Command(command) | Self::Raw(command) | Self::Beside(command, _) => Cow::Borrowed(command),
            Self::Script(invocation) => Cow::Owned(invocation.command(by_hash)),
            Self::Pipelined(pipelined, call) => Cow::Owned(pipelined.complete(call, !by_hash, server)),
        }
    }
}

fn argument(command: &Cmd, index: usize) -> Option<&[u8]> {
    match command.args_iter().nth(index)? {
        Arg::Simple(argument) => Some(argument),
        _ => None,
    }
}

/// Of the commands that the domains send; all others have their key first.
fn key_of(command: &Cmd) -> Option<&[u8]> {
    match argument(command, 0)? {
        b"PUBLISH" | b"TIME" | b"INFO" | b"CLUSTER" | b"WAIT" => None,
        _ => argument(command, 1),
    }
}

#[cfg(test)]
mod tests {
    use redis::cmd;

    use super::*;

    #[test]
    fn a_call_is_routed_by_its_first_key() {
        let (get, publish) = (cmd("GET").arg("k").to_owned(), cmd("PUBLISH").arg("c").arg("m").to_owned());
        assert_eq!(Call::Command(&get).key(), Some(&b"k"[..]));
        assert_eq!(Call::Command(&publish).key(), None);
        assert_eq!(Call::Beside(&publish, b"k").key(), Some(&b"k"[..]));
        let script = Script::new("return 1");
        let mut invocation = script.key("k");
        invocation.key("l").arg("a");
        assert_eq!(Call::Script(&invocation).key(), Some(&b"k"[..]));
        let pipelined = Pipelined::new("return 1");
        assert_eq!(Call::Pipelined(&pipelined, &pipelined.call(&["k".into(), "l".into()])).key(), Some(&b"k"[..]));
    }

    #[test]
    fn all_keys_of_a_script_are_known_and_none_of_its_arguments() {
        let script = Script::new("return 1");
        let mut invocation = script.key("k");
        invocation.key("l").arg("a");
        assert_eq!(Call::Script(&invocation).keys(), [b"k", b"l"]);
        let pipelined = Pipelined::new("return 1");
        let mut call = pipelined.call(&["k".into(), "l".into()]);
        call.arg("a");
        assert_eq!(Call::Pipelined(&pipelined, &call).keys(), [b"k", b"l"]);
    }
}
