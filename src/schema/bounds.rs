//! What must be true of a field's current value for an increment to keep it in its range.
//!
//! HINCRBY's outcome depends on the value in Redis, which the schema does not know. Most
//! increments can be decided without it; for the rest this part says exactly which current
//! values are right, and whoever holds the value (a script in Redis, the engine) compares.

/// What must still be true of the CURRENT value for HINCRBY to be allowed; absent counts as 0.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Bounds {
    /// Every current value is right.
    Free,
    /// The current value must lie between the two, both included; `None` is no bound.
    Current {
        /// The least current value that is right.
        at_least: Option<i64>,
        /// The greatest current value that is right.
        at_most: Option<i64>,
    },
}

impl Bounds {
    /// Computes the bounds for a range that includes both ends; `i64::MIN` and `i64::MAX` stand
    /// for no limit. Returns `None` where no current value would be right.
    ///
    /// An overflow of i64 is not looked for: Redis refuses it with its own text.
    pub(super) fn within(min: i64, max: i64, by: i64) -> Option<Self> {
        let (has_min, has_max) = (min != i64::MIN, max != i64::MAX);
        let upwards = by >= 0 && !has_max && min <= by;
        let downwards = by <= 0 && !has_min && max >= by;
        if upwards || downwards {
            return Some(Self::Free);
        }
        let lowest = i128::from(min) - i128::from(by);
        let highest = i128::from(max) - i128::from(by);
        let (first, last) = (i128::from(i64::MIN), i128::from(i64::MAX));
        if (has_min && lowest > last) || (has_max && highest < first) {
            return None;
        }
        // Both ends are inside i64 here or beyond the end where they exclude nothing.
        let at_least = i64::try_from(lowest).ok().filter(|&low| has_min && low != i64::MIN);
        let at_most = i64::try_from(highest).ok().filter(|&high| has_max && high != i64::MAX);
        match (at_least, at_most) {
            (None, None) => Some(Self::Free),
            (at_least, at_most) => Some(Self::Current { at_least, at_most }),
        }
    }

    /// Tells whether the increment may be applied to this current value.
    pub fn allow(self, current: i64) -> bool {
        match self {
            Self::Free => true,
            Self::Current { at_least, at_most } => {
                at_least.is_none_or(|low| current >= low)
                    && at_most.is_none_or(|high| current <= high)
            }
        }
    }
}

/// What must be true of the RESULT for HINCRBYFLOAT to be allowed; absent counts as 0.
///
/// The sum is judged in f64. Redis adds in extended precision, so a result less than one f64 step
/// from a limit can be judged as if it were on the other side.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum FloatBounds {
    /// Every current value is right.
    Free,
    /// The current value plus `by` must lie between the two, both included.
    Sum {
        /// The increment.
        by: f64,
        /// The least result that is right.
        at_least: Option<f64>,
        /// The greatest result that is right.
        at_most: Option<f64>,
    },
}

impl FloatBounds {
    /// Computes the bounds for a range that includes both ends; infinities stand for no limit.
    pub(super) fn within(min: f64, max: f64, by: f64) -> Self {
        let (has_min, has_max) = (min.is_finite(), max.is_finite());
        let upwards = by >= 0.0 && !has_max && min <= by;
        let downwards = by <= 0.0 && !has_min && max >= by;
        if !by.is_finite() || upwards || downwards {
            return Self::Free;
        }
        Self::Sum { by, at_least: has_min.then_some(min), at_most: has_max.then_some(max) }
    }

    /// Tells whether the increment may be applied to this current value.
    pub fn allow(self, current: f64) -> bool {
        match self {
            Self::Free => true,
            Self::Sum { by, at_least, at_most } => {
                let result = current + by;
                at_least.is_none_or(|low| result >= low)
                    && at_most.is_none_or(|high| result <= high)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NO_MIN: i64 = i64::MIN;
    const NO_MAX: i64 = i64::MAX;

    fn current(
        at_least: impl Into<Option<i64>>,
        at_most: impl Into<Option<i64>>,
    ) -> Option<Bounds> {
        Some(Bounds::Current { at_least: at_least.into(), at_most: at_most.into() })
    }

    #[test]
    fn increments_are_decided_without_the_value_where_that_is_exact() {
        let table = [
            ((0, NO_MAX, 1), Some(Bounds::Free)),
            ((0, NO_MAX, 0), Some(Bounds::Free)),
            ((0, NO_MAX, i64::MAX), Some(Bounds::Free)),
            ((0, NO_MAX, -1), current(1, None)),
            ((0, NO_MAX, i64::MIN), None),
            ((5, NO_MAX, 1), current(4, None)),
            ((5, NO_MAX, 5), Some(Bounds::Free)),
            ((-5, NO_MAX, -5), current(0, None)),
            ((NO_MIN, 10, -1), Some(Bounds::Free)),
            ((NO_MIN, 10, 1), current(None, 9)),
            ((NO_MIN, 10, i64::MAX), current(None, 10 - i64::MAX)),
            ((NO_MIN, -10, -5), current(None, -5)),
            ((NO_MIN, -10, i64::MAX), None),
            ((NO_MIN, NO_MAX, i64::MIN), Some(Bounds::Free)),
            ((NO_MIN, NO_MAX, i64::MAX), Some(Bounds::Free)),
            ((0, 100, 1), current(-1, 99)),
            ((0, 100, -101), current(101, 201)),
            ((0, 253_402_300_799, i64::MAX), current(-i64::MAX, 253_402_300_799 - i64::MAX)),
            ((1, i64::MAX - 1, i64::MIN), None),
            ((i64::MIN + 1, 0, 1), current(None, -1)),
            ((i64::MIN + 2, 0, 1), current(i64::MIN + 1, -1)),
        ];
        for ((min, max, by), bounds) in table {
            assert_eq!(Bounds::within(min, max, by), bounds, "{min} {max} {by}");
        }
    }

    /// Numbers near 0 and near the ends, where the arithmetic could go wrong.
    fn telling() -> impl Strategy<Value = i64> {
        prop_oneof![
            Just(0),
            -20i64..20,
            (0i64..20).prop_map(|near| i64::MAX - near),
            (0i64..20).prop_map(|near| i64::MIN + near),
            any::<i64>(),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(4000))]

        #[test]
        fn bounds_agree_with_plain_arithmetic(
            a in telling(), b in telling(), by in telling(), now in telling(), limits in 0..4,
        ) {
            let min = if limits & 1 == 0 { NO_MIN } else { a.min(b) };
            let max = if limits & 2 == 0 { NO_MAX } else { a.max(b) };
            let fits = |value: i128| i128::from(min) <= value && value <= i128::from(max);
            let result = i128::from(now) + i128::from(by);
            if i64::try_from(result).is_err() {
                // Redis refuses the overflow, whatever the bounds say.
                return Ok(());
            }
            match Bounds::within(min, max, by) {
                None => prop_assert!(!fits(result)),
                // Old data outside the range may be moved freely, all else must fit.
                Some(Bounds::Free) => {
                    prop_assert!(fits(result) || (!fits(now.into()) && now != 0));
                    let below = by >= 0 && result < min.into();
                    let towards = below || (by <= 0 && result > max.into());
                    prop_assert!(fits(result) || towards);
                }
                Some(bounds) => prop_assert_eq!(bounds.allow(now), fits(result)),
            }
        }

        #[test]
        fn float_bounds_agree_with_plain_arithmetic(
            a in -10.0..10.0,
            b in -10.0..10.0,
            by in -20.0..20.0,
            now in -20.0..20.0,
            limits in 0..4,
        ) {
            let (a, b, by, now): (f64, f64, f64, f64) = (a, b, by, now);
            let min = if limits & 1 == 0 { f64::NEG_INFINITY } else { a.min(b) };
            let max = if limits & 2 == 0 { f64::INFINITY } else { a.max(b) };
            let fits = |value: f64| min <= value && value <= max;
            match FloatBounds::within(min, max, by) {
                FloatBounds::Free => prop_assert!(fits(now + by) || !fits(now)),
                bounds => prop_assert_eq!(bounds.allow(now), fits(now + by)),
            }
        }
    }

    #[test]
    fn float_increments_that_redis_refuses_are_left_to_redis() {
        for by in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
            assert_eq!(FloatBounds::within(0.0, 1.0, by), FloatBounds::Free);
        }
    }
}
