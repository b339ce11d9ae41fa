//! What is known of the tokens of a model that does not exist. The golden files were made with [`GOLDEN`], so it never changes
//! (`docs/kv-format.md`, section 12).

use codec::TokenFeatures;

/// Numbers that follow from a token's id by integer arithmetic: the same on every machine.
#[derive(Debug, Clone, Copy)]
pub struct Features {
    pub width: usize,
    pub vocabulary: usize,
}

/// Those of the golden files.
pub const GOLDEN: Features = Features { width: 6, vocabulary: 50 };

impl TokenFeatures for Features {
    fn features(&self) -> usize {
        self.width
    }

    fn vocabulary(&self) -> usize {
        self.vocabulary
    }

    /// Feature i of token t is 1.75 (floor(h / 2^16) / 2^15 - 1), h = 2,654,435,769 (t x width + i + 1) mod 2^32.
    fn write(&self, token: u32, out: &mut [f32]) {
        let first = token.wrapping_mul(self.width as u32).wrapping_add(1);
        for (i, x) in (0u32..).zip(out) {
            let hash = first.wrapping_add(i).wrapping_mul(2_654_435_769);
            *x = ((hash >> 16) as f32 / 32_768.0 - 1.0) * 1.75;
        }
    }
}
