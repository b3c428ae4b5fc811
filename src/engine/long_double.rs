//! C's `long double` as Redis uses it for HINCRBYFLOAT: the 80 bits of x87, read by `strtold`,
//! added, and written by `%.17Lf` with the zeros at the end cut off.
//!
//! ```text
//! value = mantissa (64 bits) x 2^exponent        exponent from -16445, value below 2^16384
//! ```
//!
//! Each of the three steps rounds once, to nearest, ties to even, from the exact result; that is
//! what glibc and the processor do. On machines whose `long double` is not that of x87, Redis
//! itself differs from this. Text of 5120 bytes or more is no number, as in Redis.

use super::wide::Wide;

/// The weight of the lowest bit of the smallest number above zero.
const EXPONENT_MIN: i64 = -16445;
/// Values from two to the power of this on are infinite.
const BITS_MAX: i64 = 16384;
/// `MAX_LONG_DOUBLE_CHARS` of Redis.
const TEXT_BYTES_MAX: usize = 5 * 1024;
/// Digits behind the point that are written.
const FRACTION_DIGITS: usize = 17;
const FRACTION_UNIT: u128 = 10_u128.pow(FRACTION_DIGITS as u32);
/// Decimal exponents beyond this leave no doubt about the result, whatever the digits are.
const DECIMAL_EXPONENT_MAX: i64 = 1_000_000;

/// A number, zero with its sign, or an infinity.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct LongDouble {
    negative: bool,
    mantissa: u64,
    exponent: i64,
    infinite: bool,
}

impl LongDouble {
    pub(super) const ZERO: Self = Self::zero(false);

    const fn zero(negative: bool) -> Self {
        Self { negative, mantissa: 0, exponent: EXPONENT_MIN, infinite: false }
    }

    const fn infinity(negative: bool) -> Self {
        Self { negative, mantissa: 0, exponent: 0, infinite: true }
    }

    pub(super) fn is_infinite(self) -> bool {
        self.infinite
    }

    /// Rounds `value x 2^exponent`, and a little more than that when `inexact`.
    fn round(negative: bool, value: u128, exponent: i64, inexact: bool) -> Self {
        let bits = i64::from(u128::BITS - value.leading_zeros());
        let shift = (bits - 64).max(EXPONENT_MIN - exponent).max(0);
        let (kept, cut, half) = match u32::try_from(shift).unwrap_or(u32::MAX) {
            0 => (value, 0, 1),
            shift @ 1..=127 => (value >> shift, value & ((1 << shift) - 1), 1 << (shift - 1)),
            128 => (0, value, 1 << 127),
            _ => (0, 0, 1),
        };
        let up = cut > half || cut == half && (inexact || kept % 2 == 1);
        let mut exponent = exponent + shift;
        // Rounding up may carry into a 65th bit, and then all lower bits are zero.
        let kept = kept + u128::from(up);
        let mantissa = match u64::try_from(kept) {
            Ok(mantissa) => mantissa,
            Err(_) => {
                exponent += 1;
                1 << 63
            }
        };
        if mantissa == 0 {
            return Self::zero(negative);
        }
        if exponent + i64::from(u64::BITS - mantissa.leading_zeros()) > BITS_MAX {
            return Self::infinity(negative);
        }
        Self { negative, mantissa, exponent, infinite: false }
    }

    /// Adds; the sum of an infinity and a finite number is that infinity.
    pub(super) fn plus(self, other: Self) -> Self {
        if self.infinite || other.mantissa == 0 && self.mantissa != 0 {
            return self;
        }
        if other.infinite || self.mantissa == 0 && other.mantissa != 0 {
            return other;
        }
        if self.mantissa == 0 {
            return Self::zero(self.negative && other.negative);
        }
        let (large, small) = match self.normalized() >= other.normalized() {
            true => (self, other),
            false => (other, self),
        };
        let (exponent, mantissa) = large.normalized();
        let (small_exponent, small_mantissa) = small.normalized();
        // 63 bits of room below the larger mantissa leave one bit above for the carry.
        let larger = u128::from(mantissa) << 63;
        let smaller = u128::from(small_mantissa) << 63;
        let distance = u32::try_from(exponent - small_exponent).unwrap_or(u32::MAX);
        let shifted = smaller.checked_shr(distance).unwrap_or(0);
        let inexact = shifted.checked_shl(distance).unwrap_or(0) != smaller;
        let sum = match large.negative == small.negative {
            true => larger + shifted,
            // What was cut off is taken away as well: one less, and a little more than that.
            false => larger - shifted - u128::from(inexact),
        };
        let negative = large.negative && sum != 0;
        Self::round(negative, sum, exponent - 63, inexact)
    }

    /// Returns exponent and mantissa with the highest bit of the mantissa set; they compare as the
    /// absolute values do.
    fn normalized(self) -> (i64, u64) {
        let shift = self.mantissa.leading_zeros();
        (self.exponent - i64::from(shift), self.mantissa << shift)
    }

    /// Writes a finite number.
    pub(super) fn to_text(self) -> String {
        let digits = match u32::try_from(self.exponent) {
            Ok(shift) => {
                let mut whole = Wide::from(self.mantissa);
                whole.shift_left(shift as usize);
                whole.into_text()
            }
            Err(_) => self.fraction_to_text(),
        };
        match self.negative && digits != "0" {
            true => format!("-{digits}"),
            false => digits,
        }
    }

    fn fraction_to_text(self) -> String {
        let scaled = u128::from(self.mantissa) * FRACTION_UNIT;
        // The product has 121 bits, so that a larger shift leaves less than one half.
        let shift = self.exponent.unsigned_abs().min(127);
        let (kept, cut, half) = (scaled >> shift, scaled & ((1 << shift) - 1), 1 << (shift - 1));
        let kept = kept + u128::from(cut > half || cut == half && kept % 2 == 1);
        let (whole, fraction) = (kept / FRACTION_UNIT, kept % FRACTION_UNIT);
        let text = format!("{whole}.{fraction:0FRACTION_DIGITS$}");
        text.trim_end_matches('0').trim_end_matches('.').to_owned()
    }
}

/// Reads a number as Redis's `string2ld` does; `None` for what it refuses: anything that is not
/// wholly a number, a NaN, and numbers too large or too close to zero to be told from it.
pub(super) fn parse(text: &[u8]) -> Option<LongDouble> {
    if text.len() >= TEXT_BYTES_MAX {
        return None;
    }
    let (negative, text) = match text {
        [b'-', rest @ ..] => (true, rest),
        [b'+', rest @ ..] => (false, rest),
        rest => (false, rest),
    };
    if text.eq_ignore_ascii_case(b"inf") || text.eq_ignore_ascii_case(b"infinity") {
        return Some(LongDouble::infinity(negative));
    }
    let (radix, mark, text) = match text {
        [b'0', b'x' | b'X', rest @ ..] => (16, b'p', rest),
        rest => (10, b'e', rest),
    };
    let is_mark = |byte: &u8| byte.to_ascii_lowercase() == mark;
    let (number, exponent) = match text.iter().position(is_mark) {
        Some(at) => (text.get(..at)?, parse_exponent(text.get(at + 1..)?)?),
        None => (text, 0),
    };
    let (mut digits, mut behind_point, mut point) = (Vec::with_capacity(number.len()), 0, false);
    for byte in number {
        match (*byte as char).to_digit(radix) {
            Some(digit) => {
                digits.push(digit as u8);
                behind_point += i64::from(point);
            }
            None if *byte == b'.' && !point => point = true,
            None => return None,
        }
    }
    if digits.is_empty() {
        return None;
    }
    let zeros = digits.iter().take_while(|digit| **digit == 0).count();
    let digits = digits.get(zeros..).unwrap_or_default();
    if digits.is_empty() {
        return Some(LongDouble::zero(negative));
    }
    let value = match radix {
        16 => from_hexadecimal(negative, digits, exponent - 4 * behind_point),
        _ => from_decimal(negative, digits, exponent - behind_point),
    };
    Some(value).filter(|value| !value.infinite && value.mantissa != 0)
}

/// Reads a sign and digits; an exponent out of all reason stands for itself.
fn parse_exponent(text: &[u8]) -> Option<i64> {
    let (sign, digits) = match text {
        [b'-', rest @ ..] => (-1, rest),
        [b'+', rest @ ..] => (1, rest),
        rest => (1, rest),
    };
    let mut exponent = 0;
    for digit in digits {
        let digit = i64::from((*digit as char).to_digit(10)?);
        exponent = (exponent * 10 + digit).min(DECIMAL_EXPONENT_MAX);
    }
    (!digits.is_empty()).then_some(sign * exponent)
}

fn from_hexadecimal(negative: bool, digits: &[u8], mut exponent: i64) -> LongDouble {
    let (mut value, mut inexact) = (0_u128, false);
    for digit in digits {
        if value >> 124 == 0 {
            value = value << 4 | u128::from(*digit);
        } else {
            inexact |= *digit != 0;
            exponent += 4;
        }
    }
    LongDouble::round(negative, value, exponent, inexact)
}

/// Returns `digits x 10^exponent`; the first digit is not zero.
fn from_decimal(negative: bool, digits: &[u8], exponent: i64) -> LongDouble {
    // The largest number has 4933 digits before the point, the smallest 4950 zeros behind it.
    match digits.len() as i64 + exponent {
        ..-5000 => return LongDouble::zero(negative),
        5000.. => return LongDouble::infinity(negative),
        _ => {}
    }
    let mut value = Wide::from_digits(digits);
    let (mut binary_exponent, mut inexact) = (0, false);
    if let Ok(exponent) = u32::try_from(exponent) {
        value.multiply_by_power(10, exponent);
    } else {
        // Divided by 10^n = 2^n 5^n; the quotient keeps more bits than a mantissa has.
        let divisor = u32::try_from(exponent.unsigned_abs()).unwrap_or(u32::MAX);
        let divisor_bits = divisor as usize * 2322 / 1000 + 1;
        let shift = (divisor_bits + 80).saturating_sub(value.bits());
        value.shift_left(shift);
        inexact = value.divide_by_power(5, divisor);
        binary_exponent = exponent - shift as i64;
    }
    let (top, dropped_bits, dropped) = value.top();
    let exponent = binary_exponent + dropped_bits as i64;
    LongDouble::round(negative, top, exponent, inexact || dropped)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sum(value: &str, increment: &str) -> String {
        parse(value.as_bytes()).unwrap().plus(parse(increment.as_bytes()).unwrap()).to_text()
    }

    #[test]
    fn sums_are_those_of_redis() {
        for (value, increment, expected) in [
            ("10.5", "0.1", "10.6"),
            ("5.0e3", "2.0e2", "5200"),
            ("0.1", "0.2", "0.3"),
            ("3", "-3", "0"),
            ("-0", "-0", "0"),
            ("1e-30", "0", "0"),
            ("-1e-30", "0", "0"),
            ("1", "1e-18", "1"),
            ("0x1.8p3", "0xAp-1", "17"),
            ("18446744073709551615", "1", "18446744073709551616"),
            ("18446744073709551616", "1", "18446744073709551616"),
            ("1e25", "0", "10000000000000000000000000"),
            ("1.23456789012345678", "0", "1.23456789012345678"),
            (".5", "5.", "5.5"),
            ("3.6e-4951", "1", "1"),
        ] {
            assert_eq!(sum(value, increment), expected, "{value} + {increment}");
        }
    }

    #[test]
    fn what_is_no_number_is_refused() {
        for text in [
            "",
            ".",
            "+",
            "1e",
            "1e+",
            "0x",
            "0xp1",
            "0x1p",
            " 1",
            "1 ",
            "- 1",
            "1a",
            "1..2",
            "nan",
            "NaN(1)",
            "infi",
            "1e5000",
            "1e-5000",
            "1e99999999999999999999",
            "0x1p16384",
            "0x1p-16446",
            "1_0",
            "1\0",
        ] {
            assert_eq!(parse(text.as_bytes()), None, "{text:?}");
        }
        assert!(parse(b"-iNf").unwrap().is_infinite());
        assert_eq!(parse(b"0e99999999999999999999"), Some(LongDouble::ZERO));
        assert!(parse(&[b'0'; TEXT_BYTES_MAX]).is_none());
        assert!(parse(&[b'0'; TEXT_BYTES_MAX - 1]).is_some());
    }

    #[test]
    fn the_largest_number_is_finite_and_twice_it_is_not() {
        let largest = parse(b"0xffffffffffffffffp16320").unwrap();
        assert!(largest.to_text().starts_with("118973149535723176502126385303"));
        assert_eq!(largest.to_text().len(), 4933);
        assert!(largest.plus(largest).is_infinite());
        assert_eq!(parse(largest.to_text().as_bytes()), Some(largest));
    }

    #[test]
    fn halves_round_to_even() {
        let one = 1_u128 << 64;
        for (value, inexact, expected) in [
            (one + 1, false, 1_u64 << 63),
            (one + 1, true, (1 << 63) + 1),
            (one + 3, false, (1 << 63) + 2),
        ] {
            assert_eq!(LongDouble::round(false, value, 0, inexact).mantissa, expected);
        }
        let carried = LongDouble::round(false, u128::MAX, 0, false);
        assert_eq!((carried.mantissa, carried.exponent), (1 << 63, 65));
    }
}
