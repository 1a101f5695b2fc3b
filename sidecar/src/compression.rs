//! Codings of HTTP bodies: gzip, deflate and zstd, both ways (RFC 9110, section 8.4.1; RFC 8878).

use std::io::{self, Read, Write};

use bytes::Bytes;
use flate2::{
    Compression,
    read::{DeflateDecoder, MultiGzDecoder, ZlibDecoder},
    write::{GzEncoder, ZlibEncoder},
};
use http::{
    HeaderMap, HeaderValue,
    header::{ACCEPT_ENCODING, CONTENT_ENCODING},
};

use crate::{body::Body, error::Error};

/// The codings that are read, for a client that uses another.
pub const CODINGS: &str = "gzip, deflate, zstd";

/// Answers of fewer bytes are sent as they are: coding them takes longer than sending them.
const LEAST: usize = 1 << 10;

/// The level of zstd that takes the least time.
const ZSTD_LEVEL: i32 = 1;

/// The window that every decoder of zstd should have, as the power of two (RFC 8878, section 3.1.1.1.2).
const ZSTD_WINDOW: u32 = 23;

/// The coding of a body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Coding {
    /// The format of RFC 1952.
    Gzip,
    /// The format of RFC 1950, which HTTP calls so; the bare one of RFC 1951 is read as well.
    Deflate,
    /// The format of RFC 8878.
    Zstd,
}

impl Coding {
    const ALL: [Self; 3] = [Self::Zstd, Self::Gzip, Self::Deflate];

    const fn name(self) -> &'static str {
        match self {
            Self::Gzip => "gzip",
            Self::Deflate => "deflate",
            Self::Zstd => "zstd",
        }
    }

    /// The header's value that names the coding.
    pub const fn value(self) -> HeaderValue {
        HeaderValue::from_static(self.name())
    }

    fn named(name: &str) -> Option<Self> {
        let name = name.trim();
        let name = name.strip_prefix("x-").unwrap_or(name);
        Self::ALL
            .into_iter()
            .find(|coding| coding.name().eq_ignore_ascii_case(name))
    }

    /// The coding of a request's body; `None` where it has none.
    pub fn of_request(headers: &HeaderMap) -> Result<Option<Self>, Error> {
        let mut given = headers.get_all(CONTENT_ENCODING).iter();
        let (Some(first), None) = (given.next(), given.next()) else {
            return match headers.get(CONTENT_ENCODING) {
                None => Ok(None),
                Some(_) => Err(Error::ContentEncoding {
                    given: "given several times".to_owned(),
                }),
            };
        };
        let name = String::from_utf8_lossy(first.as_bytes());
        if name.eq_ignore_ascii_case("identity") {
            return Ok(None);
        }
        let coding = Self::named(&name).ok_or_else(|| Error::ContentEncoding {
            given: name.into_owned(),
        })?;
        Ok(Some(coding))
    }

    /// The coding of an answer, of those that the client would rather have than none.
    pub fn of_answer(headers: &HeaderMap) -> Option<Self> {
        let accepted = headers.get_all(ACCEPT_ENCODING).iter();
        let accepted = accepted
            .filter_map(|value| value.to_str().ok())
            .flat_map(|value| value.split(','))
            .filter_map(|part| {
                let (name, weight) = part.split_once(';').unwrap_or((part, ""));
                let weight = weight.trim().strip_prefix("q=");
                let weight: f32 = weight.map_or(Some(1.0), |weight| weight.parse().ok())?;
                Some((Self::named(name)?, weight))
            });
        let accepted: Vec<_> = accepted.filter(|(_, weight)| *weight > 0.0).collect();
        let most = accepted
            .iter()
            .map(|(_, weight)| *weight)
            .fold(0.0, f32::max);
        Self::ALL.into_iter().find(|coding| {
            accepted
                .iter()
                .any(|(other, weight)| other == coding && *weight >= most)
        })
    }

    /// Undoes the coding of a body, of which no more than `limit` bytes may come.
    pub fn decode(self, body: &Body, limit: u64) -> Result<Body, Error> {
        let broken = |error: io::Error| {
            Error::Malformed(format!("the body is not {}: {error}", self.name()))
        };
        let mut reader: Box<dyn Read> = match self {
            Self::Gzip => Box::new(MultiGzDecoder::new(&**body)),
            Self::Deflate if is_zlib(body) => Box::new(ZlibDecoder::new(&**body)),
            Self::Deflate => Box::new(DeflateDecoder::new(&**body)),
            Self::Zstd => {
                let mut decoder = zstd::Decoder::with_buffer(&**body).map_err(broken)?;
                // A window is allocated before there is anything in it: a few bytes may ask for 128 MiB.
                let window = limit
                    .checked_next_power_of_two()
                    .map_or(u64::BITS, u64::ilog2);
                decoder
                    .window_log_max(window.clamp(ZSTD_WINDOW, 27))
                    .map_err(broken)?;
                Box::new(decoder)
            }
        };
        let mut decoded = body.empty();
        let mut part = vec![0; 64 << 10];
        loop {
            let read = reader.read(&mut part).map_err(broken)?;
            if read == 0 {
                return Ok(decoded);
            }
            decoded.push(&part[..read], limit)?;
        }
    }

    /// Codes the parts of an answer as one; `None` where it is better sent as it is.
    pub fn encode(self, parts: &[Bytes]) -> Option<Vec<u8>> {
        let length: usize = parts.iter().map(Bytes::len).sum();
        if length < LEAST {
            return None;
        }
        let written = Vec::with_capacity(length / 2);
        let coded = match self {
            Self::Gzip => {
                let mut encoder = GzEncoder::new(written, Compression::fast());
                write(&mut encoder, parts).and_then(|()| encoder.finish())
            }
            Self::Deflate => {
                let mut encoder = ZlibEncoder::new(written, Compression::fast());
                write(&mut encoder, parts).and_then(|()| encoder.finish())
            }
            Self::Zstd => zstd::Encoder::new(written, ZSTD_LEVEL).and_then(|mut encoder| {
                write(&mut encoder, parts)?;
                encoder.finish()
            }),
        };
        // A write into memory does not fail; if it did, the answer itself would still be right.
        coded.ok()
    }
}

fn write(encoder: &mut impl Write, parts: &[Bytes]) -> io::Result<()> {
    parts.iter().try_for_each(|part| encoder.write_all(part))
}

/// Whether bytes begin as RFC 1950 has it: some clients send its contents alone.
fn is_zlib(body: &[u8]) -> bool {
    match body {
        [first, second, ..] => {
            first & 0x0f == 8 && u16::from_be_bytes([*first, *second]).is_multiple_of(31)
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::body_budget::BodyBudget;

    fn body(bytes: &[u8]) -> Body {
        let mut body = Body::new(&BodyBudget::default());
        body.push(bytes, 1 << 30).unwrap();
        body
    }

    #[test]
    fn what_is_coded_comes_back_and_no_more_than_the_limit() {
        let text = Bytes::from("Requests share a ride to the GPU. ".repeat(10_000));
        let limit = text.len() as u64;
        for coding in Coding::ALL {
            let parts = [text.slice(..7), text.slice(7..)];
            let coded = coding.encode(&parts).unwrap();
            assert!(coded.len() < text.len() / 10);
            let decoded = coding.decode(&body(&coded), limit).unwrap();
            assert_eq!(*decoded, *text);
            let error = coding.decode(&body(&coded), limit - 1).unwrap_err();
            assert!(matches!(error, Error::TooLarge { .. }), "{error}");
            let error = coding.decode(&body(b"nothing like it"), limit).unwrap_err();
            assert!(matches!(error, Error::Malformed(_)), "{error}");
            let cut = coding.decode(&body(&coded[..coded.len() / 2]), limit);
            assert!(matches!(cut, Err(Error::Malformed(_))), "{coding:?}");
        }
        assert_eq!(Coding::Gzip.encode(&[Bytes::from_static(b"short")]), None);
    }

    #[test]
    fn a_window_is_no_larger_than_a_body_may_be() {
        // These are frames of one empty block: their windows are 8 MiB, 16 MiB and 128 MiB.
        let frame = |window: u8| body(&[0x28, 0xb5, 0x2f, 0xfd, 0, (window - 10) << 3, 1, 0, 0]);
        let decode = |window, limit| Coding::Zstd.decode(&frame(window), limit);
        assert_eq!(&*decode(23, 1 << 10).unwrap(), b"");
        assert_eq!(&*decode(24, 10 << 20).unwrap(), b"");
        assert_eq!(&*decode(27, u64::MAX).unwrap(), b"");
        for (window, limit) in [(24, 8 << 20), (27, 64 << 20)] {
            let error = decode(window, limit).unwrap_err();
            assert!(matches!(error, Error::Malformed(_)), "{error}");
        }
    }

    #[test]
    fn deflate_is_read_with_and_without_its_wrapper() {
        let mut bare = flate2::write::DeflateEncoder::new(Vec::new(), Compression::fast());
        bare.write_all(b"hello").unwrap();
        let decoded = Coding::Deflate.decode(&body(&bare.finish().unwrap()), 5);
        assert_eq!(&*decoded.unwrap(), b"hello");
    }

    #[test]
    fn a_client_gets_the_coding_that_it_likes_best() {
        let chosen = |accepted: &'static str| {
            let accepted = HeaderValue::from_static(accepted);
            Coding::of_answer(&[(ACCEPT_ENCODING, accepted)].into_iter().collect())
        };
        assert_eq!(chosen("gzip, deflate"), Some(Coding::Gzip));
        assert_eq!(chosen("gzip, deflate, br, zstd"), Some(Coding::Zstd));
        assert_eq!(chosen("gzip;q=0.5, Deflate;q=0.8"), Some(Coding::Deflate));
        assert_eq!(chosen("x-gzip"), Some(Coding::Gzip));
        for none in ["", "identity", "br", "gzip;q=0", "*"] {
            assert_eq!(chosen(none), None, "{none}");
        }
        assert_eq!(Coding::of_answer(&HeaderMap::new()), None);
    }
}
