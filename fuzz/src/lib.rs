//! What the fuzz targets stand on: the parsers, and the cuts at which a stream arrives in pieces.
//!
//! The parsers are compiled from the proxy's sources. They need nothing of its other parts, and so a
//! target is built in seconds and not with all that the proxy depends on.

#[path = "../../src/resp/mod.rs"]
pub mod resp;

/// Returns where the pieces of a stream of `length` bytes end, in rising order, `length` the last.
///
/// Each `seed` gives another sequence of sizes; seed 0 cuts behind every byte.
#[must_use]
pub fn ends_of_pieces(seed: u8, length: usize) -> Vec<usize> {
    let mut ends = Vec::new();
    let mut state = u32::from(seed);
    let mut at = 0;
    while at < length {
        // The constants are those of a well-known linear congruential generator.
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let size = match seed {
            0 => 1,
            _ => 1 + (state >> 16) as usize % (1 << (seed % 8)),
        };
        at = length.min(at + size);
        ends.push(at);
    }
    ends
}
