//! Other programs' words, made fit for one sentence of ours.

/// Longest quotation, in characters. Kubelet and API server can be very detailed.
const LONGEST: usize = 700;

/// `text` on one line, without a final full stop, and not longer than a reader takes in.
pub fn quoted(text: &str) -> String {
    let line = text.split_whitespace().collect::<Vec<_>>().join(" ");
    shortened(line.trim_end_matches(['.', ' ']), LONGEST)
}

/// The first `longest` characters of `text`, and an ellipsis where there are more.
pub fn shortened(text: &str, longest: usize) -> String {
    match text.char_indices().nth(longest) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

/// `text` as a sentence: with a capital letter, unless a field or a host is its first word, and a full stop.
pub fn sentence(text: &str) -> String {
    let is_name = text.split([' ', ':']).next().is_some_and(|word| word.trim_end_matches('.').contains('.'));
    let mut chars = text.chars();
    let first = chars.next().map_or(String::new(), |first| {
        if is_name { first.to_string() } else { first.to_uppercase().to_string() }
    });
    let stop = if text.ends_with(['.', '!', '?', '…']) || text.is_empty() { "" } else { "." };
    format!("{first}{}{stop}", chars.as_str())
}

/// Names for people: the first ones, and how many more there are.
pub fn listed(names: &[&str]) -> String {
    const FIRST: usize = 8;
    let first = names.iter().take(FIRST).copied().collect::<Vec<_>>().join(", ");
    match names.len().saturating_sub(FIRST) {
        0 => first,
        more => format!("{first} and {more} more"),
    }
}

/// A number of seconds for people: `1h02m03s`, `1m12s`, `7s`. Negative spans count as none.
pub fn span(seconds: i64) -> String {
    let seconds = seconds.max(0);
    let (hours, minutes, rest) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    match (hours, minutes) {
        (0, 0) => format!("{rest}s"),
        (0, _) => format!("{minutes}m{rest:02}s"),
        _ => format!("{hours}h{minutes:02}m{rest:02}s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quotation_is_one_short_line() {
        assert_eq!(quoted("  pull failed:\n\tnot found.\n"), "pull failed: not found");
        assert_eq!(quoted("what?"), "what?");
        let long = quoted(&"ä".repeat(2 * LONGEST));
        assert_eq!(long.chars().count(), LONGEST + 1);
        assert!(long.ends_with('…'));
    }

    #[test]
    fn a_sentence_begins_and_ends() {
        assert_eq!(sentence("it broke"), "It broke.");
        assert_eq!(sentence("Why?"), "Why?");
        assert_eq!(sentence("done."), "Done.");
        assert_eq!(sentence("match.tags: there are none"), "match.tags: there are none.");
        assert_eq!(sentence(""), "");
    }

    #[test]
    fn a_list_does_not_go_on_for_ever() {
        assert_eq!(listed(&["a", "b"]), "a, b");
        assert_eq!(listed(&["a"; 10]), "a, a, a, a, a, a, a, a and 2 more");
    }

    #[test]
    fn spans_read_like_clocks() {
        for (seconds, text) in [
            (-4, "0s"),
            (0, "0s"),
            (59, "59s"),
            (60, "1m00s"),
            (72, "1m12s"),
            (3723, "1h02m03s"),
            (90_000, "25h00m00s"),
        ] {
            assert_eq!(span(seconds), text);
        }
    }
}
