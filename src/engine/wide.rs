//! Whole numbers of any length, with the few steps that reading and writing decimals takes.
//!
//! Lengths are bounded by the caller; the longest number here has some 40,000 bits.

/// Ten to the power of 19 is the largest that fits in a limb.
const LIMB_DIGITS: usize = 19;

/// A number in limbs of 64 bits, the lowest first, without zero limbs at the top.
pub(super) struct Wide {
    limbs: Vec<u64>,
}

impl From<u64> for Wide {
    fn from(value: u64) -> Self {
        let mut wide = Self { limbs: vec![value] };
        wide.trim();
        wide
    }
}

impl Wide {
    /// Reads decimal digits (0 to 9), the highest first.
    pub(super) fn from_digits(digits: &[u8]) -> Self {
        let mut wide = Self { limbs: Vec::with_capacity(digits.len() / LIMB_DIGITS + 2) };
        for chunk in digits.chunks(LIMB_DIGITS) {
            let value = chunk.iter().fold(0, |value, digit| value * 10 + u64::from(*digit));
            wide.multiply_add(10_u64.pow(chunk.len() as u32), value);
        }
        wide
    }

    pub(super) fn bits(&self) -> usize {
        let top = self.limbs.last().map_or(0, |top| top.leading_zeros() as usize);
        self.limbs.len() * 64 - top
    }

    pub(super) fn multiply_by_power(&mut self, base: u32, exponent: u32) {
        for factor in powers(base, exponent) {
            self.multiply_add(factor, 0);
        }
    }

    /// Divides and tells whether something was left over.
    pub(super) fn divide_by_power(&mut self, base: u32, exponent: u32) -> bool {
        let mut left = 0;
        for divisor in powers(base, exponent) {
            left |= self.divide(divisor);
        }
        left != 0
    }

    pub(super) fn shift_left(&mut self, bits: usize) {
        self.multiply_add(1 << (bits % 64), 0);
        if !self.limbs.is_empty() {
            self.limbs.splice(..0, std::iter::repeat_n(0, bits / 64));
        }
    }

    /// Returns the highest bits, how many lower ones there are, and whether one of those is set.
    pub(super) fn top(&self) -> (u128, usize, bool) {
        let (low, high) = self.limbs.split_at(self.limbs.len().saturating_sub(2));
        let top = high.iter().rev().fold(0, |top, limb| top << 64 | u128::from(*limb));
        // A top limb of few bits would leave less than a mantissa and its rounding bits.
        let spare = top.leading_zeros().min(63);
        let below = low.last().copied().unwrap_or(0);
        let (lower, rest) = low.split_at(low.len().saturating_sub(1));
        if rest.is_empty() || spare == 0 {
            return (top, low.len() * 64, low.iter().any(|limb| *limb != 0));
        }
        let top = top << spare | u128::from(below >> (64 - spare));
        let dropped = below << spare != 0 || lower.iter().any(|limb| *limb != 0);
        (top, low.len() * 64 - spare as usize, dropped)
    }

    /// Writes the number in decimal.
    pub(super) fn into_text(mut self) -> String {
        let mut chunks = vec![self.divide(10_u64.pow(LIMB_DIGITS as u32))];
        while !self.limbs.is_empty() {
            chunks.push(self.divide(10_u64.pow(LIMB_DIGITS as u32)));
        }
        let mut chunks = chunks.iter().rev();
        let mut text = chunks.next().map_or_else(String::new, u64::to_string);
        for chunk in chunks {
            text.push_str(&format!("{chunk:0LIMB_DIGITS$}"));
        }
        text
    }

    fn multiply_add(&mut self, factor: u64, addend: u64) {
        let mut carry = u128::from(addend);
        for limb in &mut self.limbs {
            let product = u128::from(*limb) * u128::from(factor) + carry;
            *limb = product as u64;
            carry = product >> 64;
        }
        self.limbs.push(carry as u64);
        self.trim();
    }

    /// Divides and returns the remainder.
    fn divide(&mut self, divisor: u64) -> u64 {
        let mut left = 0;
        for limb in self.limbs.iter_mut().rev() {
            let value = u128::from(left) << 64 | u128::from(*limb);
            *limb = (value / u128::from(divisor)) as u64;
            left = (value % u128::from(divisor)) as u64;
        }
        self.trim();
        left
    }

    fn trim(&mut self) {
        while self.limbs.last() == Some(&0) {
            self.limbs.pop();
        }
    }
}

/// Splits a power of a base into factors that fit in a limb.
fn powers(base: u32, mut exponent: u32) -> impl Iterator<Item = u64> {
    let step = u64::MAX.ilog(u64::from(base));
    std::iter::from_fn(move || {
        let taken = exponent.min(step);
        exponent -= taken;
        (taken > 0).then(|| u64::from(base).pow(taken))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wide(text: &str) -> Wide {
        let digits: Vec<u8> = text.bytes().map(|digit| digit - b'0').collect();
        Wide::from_digits(&digits)
    }

    #[test]
    fn decimals_come_out_as_they_went_in() {
        for text in ["1", "18446744073709551615", "18446744073709551616", "10000000000000000000"] {
            assert_eq!(wide(text).into_text(), text);
        }
        let long = "9".repeat(1000);
        assert_eq!(wide(&long).into_text(), long);
        assert_eq!(Wide::from(0).into_text(), "0");
    }

    #[test]
    fn powers_and_shifts_undo_each_other() {
        let mut number = wide("123456789");
        number.multiply_by_power(10, 500);
        number.shift_left(200);
        assert!(!number.divide_by_power(5, 500));
        assert!(!number.divide_by_power(2, 700));
        assert_eq!(number.into_text(), "123456789");
        let mut number = wide("123456789");
        assert!(number.divide_by_power(5, 1));
    }

    #[test]
    fn the_top_bits_and_what_is_below_make_the_number() {
        for bits in 1..300 {
            let mut number = Wide::from(0b101);
            number.shift_left(bits);
            let (top, dropped_bits, dropped) = number.top();
            assert!(!dropped && (bits < 128 || top.leading_zeros() <= 1), "{bits}");
            let zeros = top.trailing_zeros() as usize + dropped_bits;
            assert_eq!((top >> top.trailing_zeros(), zeros), (0b101, bits));
            number.multiply_add(1, 1);
            let (_, dropped_bits, dropped) = number.top();
            assert_eq!(dropped, dropped_bits > 0, "{bits}");
        }
    }
}
