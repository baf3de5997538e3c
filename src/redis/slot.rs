//! The hash slot of a key: <https://redis.io/docs/latest/operate/oss_and_stack/reference/cluster-spec/#key-distribution-model>

pub(super) const SLOTS: u16 = 16_384;

/// CRC-16/XMODEM.
pub fn crc16(bytes: &[u8]) -> u16 {
    bytes.iter().fold(0, |crc, byte| {
        let index = usize::from((crc >> 8) as u8 ^ byte);
        (crc << 8) ^ TABLE.get(index).copied().unwrap_or_default()
    })
}

#[allow(clippy::cast_possible_truncation, clippy::indexing_slicing, reason = "indices below 256, at compile time")]
const TABLE: [u16; 256] = {
    let mut table = [0; 256];
    let mut index = 0;
    while index < 256 {
        let (mut crc, mut bit) = ((index as u16) << 8, 0);
        while bit < 8 {
            crc = if crc & 0x8000 == 0 { crc << 1 } else { (crc << 1) ^ 0x1021 };
            bit += 1;
        }
        table[index] = crc;
        index += 1;
    }
    table
};

/// Of the hash tag, if the key has one: the text between the first `{` and the next `}`, unless it is empty.
pub(super) fn slot(key: &[u8]) -> u16 {
    let tag = key.iter().position(|byte| *byte == b'{').and_then(|open| {
        let rest = key.get(open + 1..)?;
        let close = rest.iter().position(|byte| *byte == b'}')?;
        rest.get(..close).filter(|tag| !tag.is_empty())
    });
    crc16(tag.unwrap_or(key)) % SLOTS
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_those_that_redis_computes() {
        // The check value of the specification, and replies of CLUSTER KEYSLOT.
        assert_eq!(crc16(b"123456789"), 0x31c3);
        let known = [("foo", 12_182), ("{foo}bar", 12_182), ("x{foo}{bar}", 12_182), ("", 0)];
        for (key, expected) in known {
            assert_eq!(slot(key.as_bytes()), expected, "{key}");
        }
        assert_eq!(slot(b"{}foo"), crc16(b"{}foo") % SLOTS, "an empty tag does not count");
        assert_eq!(slot(b"a{b"), crc16(b"a{b") % SLOTS);
        assert_eq!(slot(b"{}x}{y}"), crc16(b"{}x}{y}") % SLOTS, "only the first brace counts");
    }
}
