//! Durations as Go reads and writes them: `RUNNER_SCRIPT_TIMEOUT=1h30m` and the like.

use std::time::Duration;

/// What a text says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Parsed {
    /// A duration.
    Time(Duration),
    /// A duration before zero.
    Negative,
    /// No duration.
    Malformed,
}

/// Reads `300ms`, `1.5h`, `2h45m`, `0`.
pub(super) fn parse(text: &str) -> Parsed {
    let (negative, digits) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    if digits == "0" {
        return Parsed::Time(Duration::ZERO);
    }
    let Some(total) = sum(digits) else { return Parsed::Malformed };
    if negative && !total.is_zero() { Parsed::Negative } else { Parsed::Time(total) }
}

fn sum(text: &str) -> Option<Duration> {
    let mut rest = text;
    let mut total = Duration::ZERO;
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let number = rest.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(rest.len());
        let unit_end = rest[number..]
            .find(|c: char| c.is_ascii_digit() || c == '.')
            .map_or(rest.len(), |offset| number + offset);
        let (value, unit) = (&rest[..number], &rest[number..unit_end]);
        if !value.contains(|c: char| c.is_ascii_digit()) {
            return None;
        }
        let unit = match unit {
            "ns" => 1e-9,
            "us" | "µs" | "μs" => 1e-6,
            "ms" => 1e-3,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            _ => return None,
        };
        total += Duration::try_from_secs_f64(value.parse::<f64>().ok()? * unit).ok()?;
        rest = &rest[unit_end..];
    }
    Some(total)
}

/// Writes whole seconds: `1h0m0s`, `1m30s`, `5s`.
pub(super) fn format(duration: Duration) -> String {
    let seconds = duration.as_secs();
    let (hours, minutes, rest) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    match (hours, minutes) {
        (0, 0) => format!("{rest}s"),
        (0, _) => format!("{minutes}m{rest}s"),
        _ => format!("{hours}h{minutes}m{rest}s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_read_as_go_reads_them() {
        let table = [
            ("5s", Parsed::Time(Duration::from_secs(5))),
            ("1h30m", Parsed::Time(Duration::from_mins(90))),
            ("1.5h", Parsed::Time(Duration::from_mins(90))),
            ("300ms", Parsed::Time(Duration::from_millis(300))),
            ("0", Parsed::Time(Duration::ZERO)),
            ("+2m", Parsed::Time(Duration::from_mins(2))),
            ("-1s", Parsed::Negative),
            ("", Parsed::Malformed),
            ("5", Parsed::Malformed),
            ("s", Parsed::Malformed),
            ("1 h", Parsed::Malformed),
            ("1x", Parsed::Malformed),
            (".s", Parsed::Malformed),
        ];
        for (text, expected) in table {
            assert_eq!(parse(text), expected, "{text}");
        }
    }

    #[test]
    fn durations_are_written_as_go_writes_them() {
        assert_eq!(format(Duration::from_hours(1)), "1h0m0s");
        assert_eq!(format(Duration::from_secs(90)), "1m30s");
        assert_eq!(format(Duration::from_secs(5)), "5s");
    }
}
