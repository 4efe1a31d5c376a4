//! What is said of several measurements.

/// The middle value; of an even number, the mean of the two in the middle. `None` without any.
pub(super) fn median(samples: &[f64]) -> Option<f64> {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let middle = sorted.len() / 2;
    let upper = *sorted.get(middle)?;
    if sorted.len() % 2 == 1 {
        return Some(upper);
    }
    sorted.get(middle.checked_sub(1)?).map(|lower| f64::midpoint(*lower, upper))
}

/// The largest value.
pub(super) fn largest(samples: &[f64]) -> Option<f64> {
    samples.iter().copied().max_by(f64::total_cmp)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_in_the_middle_whatever_the_order() {
        for (samples, expected) in [
            (vec![], None),
            (vec![2.0], Some(2.0)),
            (vec![4.0, 1.0], Some(2.5)),
            (vec![9.0, 1.0, 2.0], Some(2.0)),
            (vec![100.0, 3.0, 1.0, 2.0], Some(2.5)),
        ] {
            assert_eq!(median(&samples), expected, "{samples:?}");
        }
    }

    #[test]
    fn the_largest_need_not_be_the_last() {
        assert_eq!(largest(&[1.0, 7.5, 3.0]), Some(7.5));
        assert_eq!(largest(&[]), None);
    }
}
