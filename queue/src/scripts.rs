//! Lua scripts. Commands that must take effect together are in one of them.

use std::{sync::LazyLock, time::Duration};

use redis::Cmd;

/// The most requests that one call of a script may carry, so that others do not wait long for Redis.
pub(crate) const MAX_REQUESTS: usize = 128;

/// About the most bytes that one call of a script may carry.
pub(crate) const MAX_BYTES: usize = 1 << 20;

/// Milliseconds without a word after which a worker is taken to be gone. A live one reads or renews every few seconds,
/// and one that comes back after all joins again.
pub(crate) const GONE_AFTER_MS: u64 = 60_000;

/// The time that a proxy's replies live without a heartbeat of it.
pub(crate) const REPLIES_LIVE: Duration = Duration::from_secs(10);

/// The lines of scripts that are replaced, each by the Lua function in the file that it names. They stand only where
/// they are needed, for each call makes the functions that it passes anew.
///
/// A file may include those that stand behind it.
const INCLUDES: [(&str, &str); 6] = [
    ("--#include add.lua\n", include_str!("scripts/add.lua")),
    ("--#include held.lua\n", include_str!("scripts/held.lua")),
    (
        "--#include lengthen.lua\n",
        include_str!("scripts/lengthen.lua"),
    ),
    (
        "--#include outdate.lua\n",
        include_str!("scripts/outdate.lua"),
    ),
    (
        "--#include by_name.lua\n",
        include_str!("scripts/by_name.lua"),
    ),
    (
        "--#include shorten.lua\n",
        include_str!("scripts/shorten.lua"),
    ),
];

/// A Lua script that Redis knows by its hash.
pub(crate) struct Script {
    code: String,
    hash: String,
}

macro_rules! scripts {
    ($($name:ident = $file:literal,)*) => {$(
        pub(crate) static $name: LazyLock<Script> =
            LazyLock::new(|| Script::new(include_str!(concat!("scripts/", $file))));
    )*};
}

scripts! {
    ENQUEUE = "enqueue.lua",
    SUBMIT = "submit.lua",
    DROP = "drop.lua",
    EVICT = "evict.lua",
    CONNECT = "connect.lua",
    ANSWER = "answer.lua",
    TAKE_OVER = "takeover.lua",
    QUARANTINE = "quarantine.lua",
    RENEW = "renew.lua",
    RELEASE = "release.lua",
    LEAVE = "leave.lua",
    HEARTBEAT = "heartbeat.lua",
    FORGET = "forget.lua",
    SWEEP = "sweep.lua",
}

impl Script {
    fn new(code: &str) -> Self {
        let code = INCLUDES
            .iter()
            .fold(code.to_owned(), |code, (line, function)| {
                code.replace(line, function)
            });
        Self {
            hash: redis::Script::new(&code).get_hash().to_owned(),
            code,
        }
    }

    /// Begins a call of the script, to which the arguments are to be added. `size` is about how many bytes they take.
    pub(crate) fn call(&self, keys: &[&str], size: usize) -> Cmd {
        let mut command = Cmd::with_capacity(16, size + 256);
        command
            .arg("EVALSHA")
            .arg(&self.hash)
            .arg(keys.len())
            .arg(keys);
        command
    }

    /// Makes the command that loads the script into Redis, which forgets it when it restarts.
    pub(crate) fn load(&self) -> Cmd {
        let mut command = redis::cmd("SCRIPT");
        command.arg("LOAD").arg(&self.code);
        command
    }
}
