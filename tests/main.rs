//! The promises of tidings, one file each, held against real processes and a real Redis.

mod architecture;
mod delivery;
mod support;
