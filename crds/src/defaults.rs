//! The default values, each stated once: serde fills them in, and the schema shows them to `kubectl explain`.

use std::time;

use crate::{Bytes, Duration};

macro_rules! defaults {
    ($($name:ident: $kind:ty = $value:expr;)*) => {
        $(pub(crate) const fn $name() -> $kind { $value })*
    };
}

defaults! {
    replicas: u32 = 1;
    max_replicas: u32 = 8;
    target_queue_length: u32 = 64;
    cooldown: Duration = Duration(time::Duration::from_mins(5));
    max_batch_size: u32 = 32;
    max_delay: Duration = Duration(time::Duration::ZERO);
    max_length: u32 = 10_000;
    max_bytes: Bytes = Bytes(512 << 20);
    max_request_bytes: Bytes = Bytes(4 << 20);
    max_rows_per_request: u32 = 1024;
    timeout: Duration = Duration(time::Duration::from_secs(30));
    async_timeout: Duration = Duration(time::Duration::from_hours(1));
    result_ttl: Duration = Duration(time::Duration::from_hours(1));
    lease: Duration = Duration(time::Duration::from_secs(5));
    max_deliveries: u32 = 3;
    text_max_length: u32 = 128;
    max_unavailable: u32 = 1;
    room_timeout: Duration = Duration(time::Duration::from_mins(5));
}
