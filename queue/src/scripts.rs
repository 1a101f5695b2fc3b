//! The scripts: what must happen at once in Redis happens in one of them.

use std::{sync::LazyLock, time::Duration};

use redis::Cmd;

/// Most requests that one call of a script may carry, so that others wait for Redis but shortly.
pub(crate) const MAX_REQUESTS: usize = 128;

/// About the most bytes that one call of a script may carry.
pub(crate) const MAX_BYTES: usize = 1 << 20;

/// After how many milliseconds without a word a worker is taken to be gone. A live one reads or renews every few
/// seconds, and one that comes back after all joins again.
pub(crate) const GONE_AFTER_MS: u64 = 60_000;

/// How long a proxy's replies live without it.
pub(crate) const REPLIES_LIVE: Duration = Duration::from_secs(10);

/// The Lua function that reads a reply of XINFO, and the line of a script in whose place it is put: only where it is
/// needed, for a function is made anew by each call that passes it.
const BY_NAME: (&str, &str) = (
    "--#include by_name.lua\n",
    include_str!("scripts/by_name.lua"),
);

/// A script, known to Redis by its hash.
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
        let (line, function) = BY_NAME;
        let code = code.replace(line, function);
        Self {
            hash: redis::Script::new(&code).get_hash().to_owned(),
            code,
        }
    }

    /// Begins a call; the arguments are to be added. `size` is about what they take.
    pub(crate) fn call(&self, keys: &[&str], size: usize) -> Cmd {
        let mut command = Cmd::with_capacity(16, size + 256);
        command
            .arg("EVALSHA")
            .arg(&self.hash)
            .arg(keys.len())
            .arg(keys);
        command
    }

    /// Makes the script known to Redis, which forgets it when it restarts.
    pub(crate) fn load(&self) -> Cmd {
        let mut command = redis::cmd("SCRIPT");
        command.arg("LOAD").arg(&self.code);
        command
    }
}
