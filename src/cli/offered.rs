//! Values that the help and the completions offer for a flag of the configuration.

use std::ffi::OsStr;

use clap::builder::{PossibleValue, StringValueParser, TypedValueParser};
use clap::{Arg, Command, Error};

/// Accepts any value: the configuration refuses the others, with the key and with every other problem.
#[derive(Debug, Clone)]
pub(super) struct Offered(Vec<&'static str>);

impl Offered {
    /// The names of these choices.
    pub(super) fn of<T, const N: usize>(choices: [(&'static str, T); N]) -> Self {
        Self(choices.into_iter().map(|(name, _)| name).collect())
    }
}

impl TypedValueParser for Offered {
    type Value = String;

    fn parse_ref(&self, command: &Command, arg: Option<&Arg>, value: &OsStr) -> Result<String, Error> {
        StringValueParser::new().parse_ref(command, arg, value)
    }

    fn possible_values(&self) -> Option<Box<dyn Iterator<Item = PossibleValue> + '_>> {
        Some(Box::new(self.0.iter().map(PossibleValue::new)))
    }
}
