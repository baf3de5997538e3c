//! Scripts, called by their hash, or by their source where Redis does not have the script or refuses hashes.
//!
//! redis-rs' own script type requires `EVALSHA` and `SCRIPT LOAD`, which an ACL or `rename-command` may withhold. `EVAL`
//! alone suffices here, and it also keeps the script for later calls by hash.

use redis::{Arg, Cmd, Script as Hashed, ToRedisArgs, cmd};

/// Comes before the source of a script of which only the first key is declared: the number of the other keys, and they
/// themselves, are then the first arguments.
const UNDECLARED: &str = "\
local KEYS, ARGV = (function(first, given)
  local keys, arguments, others = { first }, {}, tonumber(given[1])
  for i = 2, #given do
    local list = i - 1 <= others and keys or arguments
    list[#list + 1] = given[i]
  end
  return keys, arguments
end)(KEYS[1], ARGV)
";

#[derive(Debug, Clone)]
pub struct Script {
    source: &'static str,
    hash: String,
}

impl Script {
    pub fn new(source: &'static str) -> Self {
        Self { source, hash: Hashed::new(source).get_hash().to_owned() }
    }

    /// Begins a call.
    pub fn key(&self, key: impl ToRedisArgs) -> ScriptInvocation<'_> {
        ScriptInvocation { script: self, keys: key.to_redis_args(), arguments: Vec::new() }
    }

    pub(super) fn hash(&self) -> &str {
        &self.hash
    }

    fn begin(&self, by_hash: bool) -> Cmd {
        if by_hash { cmd("EVALSHA").arg(&self.hash).to_owned() } else { cmd("EVAL").arg(self.source).to_owned() }
    }
}

/// One call of a script.
pub struct ScriptInvocation<'a> {
    script: &'a Script,
    keys: Vec<Vec<u8>>,
    arguments: Vec<Vec<u8>>,
}

impl ScriptInvocation<'_> {
    pub fn key(&mut self, key: impl ToRedisArgs) -> &mut Self {
        key.write_redis_args(&mut self.keys);
        self
    }

    pub fn arg(&mut self, argument: impl ToRedisArgs) -> &mut Self {
        argument.write_redis_args(&mut self.arguments);
        self
    }

    pub(super) fn script(&self) -> &Script {
        self.script
    }

    pub(super) fn first_key(&self) -> Option<&[u8]> {
        self.keys.first().map(Vec::as_slice)
    }

    pub(super) fn keys(&self) -> Vec<&[u8]> {
        self.keys.iter().map(Vec::as_slice).collect()
    }

    pub(super) fn command(&self, by_hash: bool) -> Cmd {
        let mut command = self.script.begin(by_hash);
        command.arg(self.keys.len()).arg(&self.keys).arg(&self.arguments);
        command
    }
}

/// A script for many calls in one pipeline.
#[derive(Debug, Clone)]
pub struct Pipelined {
    script: Script,
    /// Whether its last argument is the server that the connection leads to.
    names_server: bool,
}

impl Pipelined {
    pub fn new(source: &'static str) -> Self {
        Self { script: Script::new(source), names_server: false }
    }

    /// A script whose last argument is the identity of the server, which the link adds when it sends a call.
    pub fn naming_server(source: &'static str) -> Self {
        Self { names_server: true, ..Self::new(source) }
    }

    /// The caller adds the arguments.
    pub fn call(&self, keys: &[String]) -> Cmd {
        self.script.begin(true).arg(keys.len()).arg(keys).to_owned()
    }

    pub(super) fn script(&self) -> &Script {
        &self.script
    }

    /// The call as it is sent on a connection to this server, `by_source` if it carries the script itself.
    pub(super) fn complete(&self, call: &Cmd, by_source: bool, server: &str) -> Cmd {
        let mut command = if by_source { self.by_source(call) } else { call.clone() };
        if self.names_server {
            command.arg(server);
        }
        command
    }

    fn by_source(&self, call: &Cmd) -> Cmd {
        let mut command = self.script.begin(false);
        for argument in call.args_iter().skip(2) {
            if let Arg::Simple(argument) = argument {
                command.arg(argument);
            }
        }
        command
    }
}

/// A call of a script by its source, with only the first key declared.
pub(super) fn undeclared(by_source: &Cmd) -> Cmd {
    let mut arguments = by_source.args_iter().skip(1).filter_map(|argument| match argument {
        Arg::Simple(argument) => Some(argument),
        _ => None,
    });
    let mut next = || arguments.next().unwrap_or_default();
    let (source, count, first) = (next(), next(), next());
    let others = std::str::from_utf8(count).ok().and_then(|count| count.parse::<usize>().ok()).unwrap_or(1) - 1;
    let mut command = cmd("EVAL");
    command.arg([UNDECLARED.as_bytes(), source].concat()).arg(1).arg(first).arg(others);
    arguments.for_each(|argument| {
        command.arg(argument);
    });
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_call_by_source_has_the_keys_and_arguments_of_the_call_by_hash() {
        let script = Pipelined::new("return 1");
        let mut call = script.call(&["a".into(), "b".into()]);
        call.arg("x").arg(7);
        let expected = cmd("EVAL").arg("return 1").arg(2).arg("a").arg("b").arg("x").arg(7).get_packed_command();
        assert_eq!(script.complete(&call, true, "server").get_packed_command(), expected);
        let single = Script::new("return 1");
        let mut call = single.key("a");
        call.key("b").arg("x").arg(7);
        assert_eq!(call.command(false).get_packed_command(), expected);
    }

    #[test]
    fn a_call_with_one_declared_key_has_the_others_as_arguments() {
        let script = Script::new("return 1");
        let mut call = script.key("a");
        call.key("b").key("c").arg("x").arg(7);
        let source = format!("{UNDECLARED}return 1");
        let expected = cmd("EVAL").arg(source).arg(1).arg("a").arg(2).arg("b").arg("c").arg("x").arg(7).to_owned();
        assert_eq!(undeclared(&call.command(false)).get_packed_command(), expected.get_packed_command());
    }
}
