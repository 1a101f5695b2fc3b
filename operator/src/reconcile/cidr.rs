//! Blocks of addresses, read as the API server reads them.

use std::{net::IpAddr, str::FromStr};

/// A block of addresses, parsed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cidr {
    /// The address' bits, those of IPv4 first.
    bits: u128,
    length: u8,
    is_v6: bool,
}

impl FromStr for Cidr {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = |why: &str| {
            Err(format!(
                "{text:?} {why}; allowed is ADDRESS/LENGTH, such as 10.0.0.0/8 or 2001:db8::/32"
            ))
        };
        let Some((address, length)) = text.split_once('/') else {
            return wrong("has no length");
        };
        let (bits, most, is_v6) = match address.parse() {
            Ok(IpAddr::V4(address)) => (u128::from(address.to_bits()) << 96, 32, false),
            Ok(IpAddr::V6(address)) => (address.to_bits(), 128, true),
            Err(_) => return wrong("has no address"),
        };
        // The API server refuses a sign and leading zeros.
        let canonical = |number: &u8| number.to_string() == length;
        match length.parse::<u8>().ok().filter(canonical) {
            Some(length) if length <= most => Ok(Self {
                bits,
                length,
                is_v6,
            }),
            _ => wrong(&format!("has a length that is not between 0 and {most}")),
        }
    }
}

impl Cidr {
    /// Whether every address of `other` is one of this block, and not the other way round, too.
    #[must_use]
    pub fn is_wider_than(&self, other: &Self) -> bool {
        let mask = u128::MAX
            .checked_shl(128 - u32::from(self.length))
            .unwrap_or(0);
        self.is_v6 == other.is_v6
            && self.length < other.length
            && self.bits & mask == other.bits & mask
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_read_as_the_api_server_reads_them() {
        for good in ["0.0.0.0/0", "::/0", "10.1.2.3/8", "2001:db8::/128"] {
            assert!(good.parse::<Cidr>().is_ok(), "{good}");
        }
        for (bad, says) in [
            ("10.0.0.0", "has no length"),
            ("example.com/8", "has no address"),
            ("10.0.0/8", "has no address"),
            ("10.0.0.0/33", "between 0 and 32"),
            ("::/129", "between 0 and 128"),
            ("10.0.0.0/+8", "between 0 and 32"),
            ("10.0.0.0/08", "between 0 and 32"),
        ] {
            let error = bad.parse::<Cidr>().unwrap_err();
            assert!(error.contains(says), "{error}");
        }
    }

    #[test]
    fn a_block_is_wider_than_those_within_it() {
        let wider = |one: &str, other: &str| {
            let (one, other): (Cidr, Cidr) = (one.parse().unwrap(), other.parse().unwrap());
            one.is_wider_than(&other)
        };
        assert!(wider("0.0.0.0/0", "10.0.0.0/8") && wider("10.0.0.0/8", "10.9.0.0/16"));
        assert!(wider("::/0", "2001:db8::/32"));
        assert!(!wider("10.0.0.0/8", "10.0.0.0/8") && !wider("10.0.0.0/8", "11.0.0.0/16"));
        assert!(!wider("::/0", "10.0.0.0/8"));
    }
}
