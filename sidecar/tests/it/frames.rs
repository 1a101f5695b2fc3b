//! HTTP/2 by hand, for what no client would send.

pub const DATA: u8 = 0;
pub const HEADERS: u8 = 1;
pub const RST_STREAM: u8 = 3;
pub const SETTINGS: u8 = 4;
pub const PING: u8 = 6;
pub const GOAWAY: u8 = 7;
pub const WINDOW_UPDATE: u8 = 8;
pub const CONTINUATION: u8 = 9;

pub const END_STREAM: u8 = 1;
pub const END_HEADERS: u8 = 4;

/// The client's beginning of a connection, with these settings.
pub fn preface(settings: &[(u16, u32)]) -> Vec<u8> {
    let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    let mut payload = Vec::new();
    for (name, value) in settings {
        payload.extend(name.to_be_bytes());
        payload.extend(value.to_be_bytes());
    }
    bytes.extend(frame(SETTINGS, 0, 0, &payload));
    bytes
}

/// One frame.
pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut bytes = length[1..].to_vec();
    bytes.extend([kind, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

/// The head of a request, in HPACK without any of its tables' dynamic part.
pub fn head(method: &str, path: &str) -> Vec<u8> {
    // `:scheme: http` is the static table's sixth entry; 2, 4 and 1 are the names `:method`, `:path` and `:authority`.
    let mut block = vec![0x86];
    for (name, value) in [(2, method), (4, path), (1, "m")] {
        block.push(name);
        block.extend(string(value.as_bytes()));
    }
    block
}

/// A header that is in no table.
pub fn header(name: &str, value: &[u8]) -> Vec<u8> {
    [vec![0], string(name.as_bytes()), string(value)].concat()
}

/// A string literal: its length in an integer with a prefix of 7 bits, and its bytes.
fn string(bytes: &[u8]) -> Vec<u8> {
    let mut length = bytes.len();
    let mut coded = Vec::new();
    if length < 127 {
        coded.push(u8::try_from(length).unwrap());
    } else {
        coded.push(127);
        length -= 127;
        while length >= 128 {
            coded.push(u8::try_from(length % 128).unwrap() | 128);
            length /= 128;
        }
        coded.push(u8::try_from(length).unwrap());
    }
    coded.extend(bytes);
    coded
}

/// The kinds of the whole frames in what a server sent, with their streams and payloads.
pub fn parse(mut bytes: &[u8]) -> Vec<(u8, u32, Vec<u8>)> {
    let mut frames = Vec::new();
    while let [a, b, c, kind, _, s0, s1, s2, s3, rest @ ..] = bytes {
        let length = u32::from_be_bytes([0, *a, *b, *c]) as usize;
        let Some((payload, rest)) = rest.split_at_checked(length) else {
            break;
        };
        let stream = u32::from_be_bytes([*s0, *s1, *s2, *s3]);
        frames.push((*kind, stream, payload.to_vec()));
        bytes = rest;
    }
    frames
}
