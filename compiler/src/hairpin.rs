//! The packet that comes back to where it came from: source equals destination once DNAT has chosen the endpoint.
//!
//! One rule recognises it for all endpoints, by a classic BPF program over the IP header. Always together with
//! `--ctstate DNAT`: without it, ordinary loopback traffic has equal addresses, too.

use std::{fmt, sync::Arc};

use fairlead_objects::Family;

/// IPv4: addresses at offsets 12 and 16.
const SAME_ADDRESS_V4: &str = "6,32 0 0 12,7 0 0 0,32 0 0 16,29 0 1 0,6 0 0 65535,6 0 0 0";
/// IPv6: four words each from offsets 8 and 24.
const SAME_ADDRESS_V6: &str = "18,\
    32 0 0 8,7 0 0 0,32 0 0 24,29 0 13 0,\
    32 0 0 12,7 0 0 0,32 0 0 28,29 0 9 0,\
    32 0 0 16,7 0 0 0,32 0 0 32,29 0 5 0,\
    32 0 0 20,7 0 0 0,32 0 0 36,29 0 1 0,\
    6 0 0 65535,6 0 0 0";

/// A program of the `bpf` match, as `--bytecode` takes it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Bytecode(Arc<str>);

impl Bytecode {
    /// True for packets whose source and destination address are the same.
    pub fn same_address(family: Family) -> Self {
        Self(match family {
            Family::V4 => SAME_ADDRESS_V4.into(),
            Family::V6 => SAME_ADDRESS_V6.into(),
        })
    }

    /// Reads `LENGTH,CODE JT JF K,...`; `None` for anything else.
    pub fn of_text(text: &str) -> Option<Self> {
        let (length, program) = text.trim().split_once(',')?;
        let length: usize = length.trim().parse().ok()?;
        let instructions: Vec<_> = program.trim_end_matches(',').split(',').collect();
        let numeric = |instruction: &str| {
            let fields: Vec<_> = instruction.split_ascii_whitespace().collect();
            fields.len() == 4 && fields.iter().all(|field| field.parse::<u32>().is_ok())
        };
        (instructions.len() == length && instructions.iter().all(|i| numeric(i)))
            .then(|| Self(format!("{length},{}", instructions.join(",")).into()))
    }

    /// Whether this is the program of [`Bytecode::same_address`] for either family.
    pub fn is_same_address(&self) -> bool {
        [SAME_ADDRESS_V4, SAME_ADDRESS_V6].contains(&&*self.0)
    }
}

impl fmt::Display for Bytecode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr};

    use super::*;

    /// Runs the four instructions that the programs use, on an IP header.
    fn run(program: &Bytecode, header: &[u8]) -> u32 {
        let code: Vec<Vec<u32>> = program
            .to_string()
            .split(',')
            .skip(1)
            .map(|i| i.split(' ').map(|field| field.parse().unwrap()).collect())
            .collect();
        let (mut a, mut x, mut pc) = (0, 0, 0);
        loop {
            let i = &code[pc];
            pc += 1;
            match i[0] {
                0x20 => a = u32::from_be_bytes(header[i[3] as usize..][..4].try_into().unwrap()),
                0x07 => x = a,
                0x1d => pc += if a == x { i[1] } else { i[2] } as usize,
                0x06 => return i[3],
                other => panic!("unexpected instruction {other}"),
            }
        }
    }

    fn v4(source: [u8; 4], destination: [u8; 4]) -> Vec<u8> {
        [[0; 12].as_slice(), &source, &destination].concat()
    }

    fn v6(source: Ipv6Addr, destination: Ipv6Addr) -> Vec<u8> {
        [[0; 8].as_slice(), &source.octets(), &destination.octets()].concat()
    }

    #[test]
    fn program_accepts_equal_addresses_only() {
        let program = Bytecode::same_address(Family::V4);
        let ip = Ipv4Addr::new(10, 0, 1, 2).octets();
        assert_ne!(run(&program, &v4(ip, ip)), 0);
        assert_eq!(run(&program, &v4(ip, [10, 0, 1, 3])), 0);

        let program = Bytecode::same_address(Family::V6);
        let ip: Ipv6Addr = "fd00:1:2:3:4:5:6:7".parse().unwrap();
        assert_ne!(run(&program, &v6(ip, ip)), 0);
        for word in 0..4 {
            let mut octets = ip.octets();
            octets[word * 4 + 3] ^= 1;
            assert_eq!(run(&program, &v6(ip, octets.into())), 0, "word {word}");
            assert_eq!(run(&program, &v6(octets.into(), ip)), 0, "word {word}");
        }
    }

    #[test]
    fn text_is_read_back() {
        for family in Family::ALL {
            let program = Bytecode::same_address(family);
            assert_eq!(Bytecode::of_text(&program.to_string()), Some(program));
        }
        assert_eq!(Bytecode::of_text("2,6 0 0 0"), None);
        assert_eq!(Bytecode::of_text("1,6 0 x 0"), None);
    }
}
