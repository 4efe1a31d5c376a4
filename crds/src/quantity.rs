//! [`Quantity`]: an amount of a resource, read and compared as Kubernetes does it, without floating
//! point.
//!
//! Kubernetes' own rules: <https://kubernetes.io/docs/reference/kubernetes-api/common-definitions/quantity/>.
//! The number may have a sign and a fraction, and ends in a decimal suffix (`n u m k M G T P E`), a
//! binary one (`Ki Mi Gi Ti Pi Ei`) or a decimal exponent (`e3`, `E-2`). What is finer than a
//! billionth is rounded up, and a binary amount is capped at 2^63-1, as the API server does.

use std::cmp::Ordering;

use thiserror::Error;

/// Places after the decimal point that Kubernetes keeps.
const FINEST: i64 = -9;

/// Most that an amount with a binary suffix can be: 2^63-1.
const LARGEST_BINARY: u64 = i64::MAX as u64;

/// An exponent beyond this is no amount of anything.
const LARGEST_EXPONENT: i64 = 1_000;

/// A text is no quantity.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
#[error("not a Kubernetes quantity such as 500m, 2 or 4Gi")]
pub struct NotAQuantity;

/// An amount of a resource.
#[derive(Clone, Debug)]
pub struct Quantity {
    negative: bool,
    /// Decimal digits, the most significant first, without zeros at either end. None: zero.
    digits: Vec<u8>,
    /// Power of ten of the last digit.
    exponent: i64,
}

impl Quantity {
    /// Reads a text as the API server would.
    ///
    /// # Errors
    /// When the API server would refuse it.
    pub fn parse(text: &str) -> Result<Self, NotAQuantity> {
        if text.is_empty() {
            return Err(NotAQuantity);
        }
        let (negative, rest) = match text.as_bytes() {
            [b'-', ..] => (true, &text[1..]),
            [b'+', ..] => (false, &text[1..]),
            _ => (false, text),
        };
        let (whole, rest) = split_digits(rest);
        let (fraction, suffix) = match rest.strip_prefix('.') {
            Some(rest) => split_digits(rest),
            None => ("", rest),
        };
        let digits: Vec<u8> = whole.bytes().chain(fraction.bytes()).map(|digit| digit - b'0').collect();
        let places = i64::try_from(fraction.len()).map_err(|_| NotAQuantity)?;
        let mut quantity = Self { negative, digits, exponent: -places };
        match Suffix::parse(suffix)? {
            Suffix::Decimal(exponent) => quantity.exponent += exponent,
            Suffix::Binary(power) => quantity.multiply(1 << power),
        }
        quantity.normalize();
        quantity.round_up();
        if matches!(Suffix::parse(suffix)?, Suffix::Binary(_)) {
            let largest = Self::from(LARGEST_BINARY);
            if quantity.magnitude_cmp(&largest) == Ordering::Greater {
                quantity = Self { negative: quantity.negative, ..largest };
            }
        }
        Ok(quantity)
    }

    /// Whether it is less than nothing.
    pub fn is_negative(&self) -> bool {
        self.negative && !self.is_zero()
    }

    /// Whether it is nothing.
    pub fn is_zero(&self) -> bool {
        self.digits.is_empty()
    }

    /// Whether it has no fraction, as amounts of extended resources must not have one.
    pub fn is_whole(&self) -> bool {
        self.is_zero() || self.exponent >= 0
    }

    /// The amount as a number, rounded up; of memory or storage, the bytes. `None`: it is less than
    /// nothing or more than fits.
    pub fn to_u64(&self) -> Option<u64> {
        if self.is_negative() {
            return None;
        }
        let zeros = usize::try_from(self.exponent).unwrap_or_default();
        let cut = usize::try_from(-self.exponent).unwrap_or_default();
        let whole = self.digits.len().saturating_sub(cut);
        let digits = self.digits.iter().take(whole).copied().chain(std::iter::repeat_n(0, zeros));
        let mut number = 0_u64;
        for digit in digits {
            number = number.checked_mul(10)?.checked_add(u64::from(digit))?;
        }
        // The last digit of a fraction is not zero.
        if whole < self.digits.len() { number.checked_add(1) } else { Some(number) }
    }

    fn multiply(&mut self, factor: u64) {
        let mut carry = 0_u128;
        for digit in self.digits.iter_mut().rev() {
            let product = u128::from(*digit) * u128::from(factor) + carry;
            *digit = u8::try_from(product % 10).unwrap_or_default();
            carry = product / 10;
        }
        while carry > 0 {
            self.digits.insert(0, u8::try_from(carry % 10).unwrap_or_default());
            carry /= 10;
        }
    }

    fn normalize(&mut self) {
        let leading = self.digits.iter().take_while(|digit| **digit == 0).count();
        self.digits.drain(..leading);
        while self.digits.last() == Some(&0) {
            self.digits.pop();
            self.exponent += 1;
        }
        if self.digits.is_empty() {
            self.exponent = 0;
        }
    }

    /// Away from zero, so that who wants some gets some.
    fn round_up(&mut self) {
        let Ok(excess @ 1..) = usize::try_from(FINEST - self.exponent) else { return };
        if self.is_zero() {
            return;
        }
        // The last digit is not zero, so there is something to round.
        self.digits.truncate(self.digits.len().saturating_sub(excess));
        self.exponent = FINEST;
        let mut index = self.digits.len();
        loop {
            let Some(before) = index.checked_sub(1) else {
                self.digits.insert(0, 1);
                break;
            };
            index = before;
            if self.digits[index] == 9 {
                self.digits[index] = 0;
            } else {
                self.digits[index] += 1;
                break;
            }
        }
        self.normalize();
    }

    fn magnitude_cmp(&self, other: &Self) -> Ordering {
        // Power of ten above the first digit; both start with a digit that is not zero.
        let top = |quantity: &Self| {
            i64::try_from(quantity.digits.len()).unwrap_or(i64::MAX).saturating_add(quantity.exponent)
        };
        match (self.is_zero(), other.is_zero()) {
            (true, true) => Ordering::Equal,
            (true, false) => Ordering::Less,
            (false, true) => Ordering::Greater,
            // What is left of two numbers with the same digits so far has no zero at its end.
            (false, false) => top(self).cmp(&top(other)).then_with(|| self.digits.cmp(&other.digits)),
        }
    }
}

impl From<u64> for Quantity {
    fn from(number: u64) -> Self {
        let digits = number.to_string().bytes().map(|digit| digit - b'0').collect();
        let mut quantity = Self { negative: false, digits, exponent: 0 };
        quantity.normalize();
        quantity
    }
}

impl Ord for Quantity {
    fn cmp(&self, other: &Self) -> Ordering {
        match (self.is_negative(), other.is_negative()) {
            (false, false) => self.magnitude_cmp(other),
            (true, true) => other.magnitude_cmp(self),
            (true, false) => Ordering::Less,
            (false, true) => Ordering::Greater,
        }
    }
}

impl PartialOrd for Quantity {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Quantity {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other) == Ordering::Equal
    }
}

impl Eq for Quantity {}

fn split_digits(text: &str) -> (&str, &str) {
    text.split_at(text.bytes().take_while(u8::is_ascii_digit).count())
}

/// What follows the number.
enum Suffix {
    /// A power of ten.
    Decimal(i64),
    /// A power of two.
    Binary(u32),
}

impl Suffix {
    fn parse(text: &str) -> Result<Self, NotAQuantity> {
        Ok(match text {
            "n" => Self::Decimal(-9),
            "u" => Self::Decimal(-6),
            "m" => Self::Decimal(-3),
            "" => Self::Decimal(0),
            "k" => Self::Decimal(3),
            "M" => Self::Decimal(6),
            "G" => Self::Decimal(9),
            "T" => Self::Decimal(12),
            "P" => Self::Decimal(15),
            "E" => Self::Decimal(18),
            "Ki" => Self::Binary(10),
            "Mi" => Self::Binary(20),
            "Gi" => Self::Binary(30),
            "Ti" => Self::Binary(40),
            "Pi" => Self::Binary(50),
            "Ei" => Self::Binary(60),
            _ => {
                let exponent = text.strip_prefix(['e', 'E']).ok_or(NotAQuantity)?;
                let exponent: i64 = exponent.parse().map_err(|_| NotAQuantity)?;
                if exponent.abs() > LARGEST_EXPONENT {
                    return Err(NotAQuantity);
                }
                Self::Decimal(exponent)
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn quantity(text: &str) -> Quantity {
        Quantity::parse(text).unwrap_or_else(|_| panic!("{text:?} is a quantity"))
    }

    #[test]
    fn numbers_are_rounded_up() {
        for (text, number) in [
            ("0", Some(0)),
            ("1", Some(1)),
            ("1Ki", Some(1024)),
            ("256Mi", Some(256 << 20)),
            ("1.5Gi", Some(3 << 29)),
            ("2k", Some(2000)),
            ("500m", Some(1)),
            ("1500m", Some(2)),
            ("1n", Some(1)),
            ("-1", None),
            ("-0", Some(0)),
            ("7Ei", Some(7 << 60)),
            ("1e30", None),
            ("1e19", Some(10_000_000_000_000_000_000)),
        ] {
            assert_eq!(Quantity::parse(text).unwrap().to_u64(), number, "{text}");
        }
    }

    #[test]
    fn amounts_that_are_the_same() {
        for same in [
            &["0", "-0", "+0", "0m", "00", "0.0", ".0", "0Ki", "0e5"][..],
            &["1", "+1", "1000m", "1.0", "1.", "01", "1e0", "1E0", "1000000u", "1000000000n", "0.001k"],
            &["0.5", "500m", ".5", "5e-1", "5E-1", "+.5"],
            &["1000", "1k", "1e3", "1E3", "1e+3", "1E+3", "0.001M"],
            &["1Ki", "1024", "1.024k", "1024000m"],
            &["1.5Gi", "1536Mi", "1610612736"],
            &["1Ei", "1024Pi", "1152921504606846976"],
            &["12E", "12e18", "12000P"],
            // Finer than a billionth: rounded up, away from zero.
            &["1n", "0.1n", "0.0000000001", "1e-12", "1e-1000"],
            &["-1n", "-0.1n"],
            &["1.0000000009", "1.00000000081", "1000000001n"],
            &["1", "0.9999999999"],
            // Binary amounts end at 2^63-1; decimal ones do not.
            &["8Ei", "9Ei", "999999Ei", "9223372036854775807"],
        ] {
            for text in same {
                assert_eq!(quantity(text), quantity(same[0]), "{text} and {}", same[0]);
            }
        }
    }

    #[test]
    fn amounts_in_order() {
        let ascending = [
            "-1.1Gi",
            "-1Gi",
            "-1G",
            "-1e3",
            "-1",
            "-999m",
            "-1n",
            "0",
            "1n",
            "1u",
            "1m",
            "100m",
            "0.5",
            "999m",
            "1",
            "1001m",
            "9",
            "10",
            "999",
            "1k",
            "1Ki",
            "999k",
            "1M",
            "1Mi",
            "1G",
            "1Gi",
            "1.5Gi",
            "2G",
            "2Gi",
            "1T",
            "1Ti",
            "1P",
            "1Pi",
            "1E",
            "1Ei",
            "9223372036854775807",
            "9223372036854775808",
            "1e30",
        ];
        for (index, one) in ascending.iter().enumerate() {
            for (other_index, other) in ascending.iter().enumerate() {
                assert_eq!(quantity(one).cmp(&quantity(other)), index.cmp(&other_index), "{one} and {other}");
            }
        }
    }

    #[test]
    fn what_is_no_quantity() {
        for text in [
            "",
            " ",
            " 1",
            "1 ",
            "1 Gi",
            "1,5",
            "lots",
            "2GB",
            "1gi",
            "1KI",
            "1K",
            "1kk",
            "1mi",
            "0x10",
            "1e",
            "1e1.5",
            "1ee3",
            "e3x",
            "1_000",
            "1.2.3",
            "--1",
            "+-1",
            "1-",
            "1e99999999999999999999",
            "1e1001",
            "½",
            "1\n",
            "∞",
            "NaN",
            "1i",
            "1k3",
            "1m5",
            "1KiB",
        ] {
            assert!(Quantity::parse(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn signs_zeros_and_fractions() {
        for (text, negative, zero, whole) in [
            ("-1m", true, false, false),
            ("-0", false, true, true),
            ("0", false, true, true),
            ("2", false, false, true),
            ("2000m", false, false, true),
            ("2500m", false, false, false),
            ("1e-3", false, false, false),
            ("1.5Ki", false, false, true),
        ] {
            let quantity = quantity(text);
            assert_eq!(
                (quantity.is_negative(), quantity.is_zero(), quantity.is_whole()),
                (negative, zero, whole),
                "{text}"
            );
        }
    }

    proptest! {
        #[test]
        fn no_text_is_a_panic(text in "\\PC{0,40}", near in "[-+]?[0-9.]{0,30}[eEinumkKMGTP]{0,3}[-+]?[0-9]{0,5}") {
            let _ = Quantity::parse(&text);
            let _ = Quantity::parse(&near);
        }

        #[test]
        fn the_order_is_that_of_the_numbers(one in -1_000_000_i64..1_000_000, other in -1_000_000_i64..1_000_000) {
            let milli = |number: i64| quantity(&format!("{number}m"));
            prop_assert_eq!(milli(one).cmp(&milli(other)), one.cmp(&other));
            let kibi = |number: i64| quantity(&format!("{number}Ki"));
            prop_assert_eq!(kibi(one).cmp(&quantity(&(other * 1024).to_string())), one.cmp(&other));
        }
    }
}
