//! Patterns of paths and names: `group/**`, `release/*`.
//!
//! A few lines instead of a library's regular expressions: a class may hold hundreds of patterns, and
//! compiled ones take kilobytes each.

use std::fmt;

use thiserror::Error;

/// A pattern over segments between slashes. It always has to match the whole text, case counts, and
/// only the asterisk is special.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pattern {
    text: String,
}

/// Why a text is not a pattern.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum PatternError {
    /// Nothing could match it.
    #[error("it is empty")]
    Empty,
    /// A leading, trailing or doubled slash: no path has an empty segment.
    #[error("it has an empty segment: remove the leading, trailing or doubled slash")]
    EmptySegment,
    /// `**` beside other characters.
    #[error("`**` has to be a whole segment")]
    DoubleAsterisk,
    /// Paths and names have none.
    #[error("it contains a space")]
    Space,
}

impl Pattern {
    /// A pattern. `*` stands for any number of characters of one segment, the segment `**` for any
    /// number of segments, but at the end for at least one.
    ///
    /// # Errors
    /// Why it is none.
    pub fn new(text: &str) -> Result<Self, PatternError> {
        if text.is_empty() {
            return Err(PatternError::Empty);
        }
        if text.contains(char::is_whitespace) {
            return Err(PatternError::Space);
        }
        for segment in text.split('/') {
            if segment.is_empty() {
                return Err(PatternError::EmptySegment);
            }
            if segment != "**" && segment.contains("**") {
                return Err(PatternError::DoubleAsterisk);
            }
        }
        Ok(Self { text: text.to_owned() })
    }

    /// Whether the whole of `text` matches.
    pub fn matches(&self, text: &str) -> bool {
        let pattern: Vec<&str> = self.text.split('/').collect();
        let segments: Vec<&str> = text.split('/').collect();
        if segments.iter().any(|segment| segment.is_empty()) {
            return false;
        }
        // Which rests of the segments the rest of the pattern matches, from the pattern's end. That
        // is their product of steps, whatever the asterisks.
        let mut rests = vec![false; segments.len()];
        rests.push(true);
        for (index, part) in pattern.iter().enumerate().rev() {
            let last = index + 1 == pattern.len();
            let mut next = vec![false; segments.len() + 1];
            for start in (0..=segments.len()).rev() {
                let here = segments.get(start);
                next[start] = if *part == "**" {
                    let skip = start < segments.len() && (next[start + 1] || rests[start + 1]);
                    skip || (!last && rests[start])
                } else {
                    here.is_some_and(|segment| fits(part, segment)) && rests[start + 1]
                };
            }
            rests = next;
        }
        rests[0]
    }
}

/// Whether a segment fits a part of a pattern.
fn fits(part: &str, segment: &str) -> bool {
    let mut pieces = part.split('*');
    let first = pieces.next().unwrap_or_default();
    let Some(mut rest) = segment.strip_prefix(first) else { return false };
    let pieces: Vec<&str> = pieces.collect();
    let Some((last, middle)) = pieces.split_last() else { return rest.is_empty() };
    for piece in middle {
        // The first place is as good as any later one: what follows has more left.
        let Some(at) = rest.find(piece) else { return false };
        rest = &rest[at + piece.len()..];
    }
    rest.ends_with(last)
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn patterns() {
        for (pattern, text, matches) in [
            ("main", "main", true),
            ("main", "Main", false),
            ("main", "main2", false),
            ("main", "", false),
            ("*", "main", true),
            ("*", "a/b", false),
            ("**", "a/b/c", true),
            ("**", "a", true),
            ("**", "", false),
            ("release/*", "release/1.2", true),
            ("release/*", "release", false),
            ("release/*", "release/1/2", false),
            ("release/*", "prerelease/1", false),
            ("group/**", "group/a", true),
            ("group/**", "group/a/b", true),
            ("group/**", "group", false),
            ("group/**", "groups/a", false),
            ("group/**", "x/group/a", false),
            ("**/website", "website", true),
            ("**/website", "a/b/website", true),
            ("**/website", "a/website/b", false),
            ("a/**/z", "a/z", true),
            ("a/**/z", "a/b/c/z", true),
            ("a/**/z", "a/b/c", false),
            ("a/**/**", "a/b", true),
            ("a/**/**", "a", false),
            ("v*.*", "v1.2", true),
            ("v*.*", "v1", false),
            ("v*.*", "v1.", true),
            ("*-ci", "a-ci-ci", true),
            ("*-ci-*", "a-ci", false),
            ("a*a", "a", false),
            ("a*a", "aa", true),
            ("a.c", "abc", false),
            ("[ab]", "a", false),
            ("[ab]", "[ab]", true),
            ("gr*/**/*", "group/x", true),
        ] {
            assert_eq!(Pattern::new(pattern).unwrap().matches(text), matches, "{pattern} on {text}");
        }
    }

    #[test]
    fn what_is_no_pattern() {
        for (text, error) in [
            ("", PatternError::Empty),
            ("/a", PatternError::EmptySegment),
            ("a/", PatternError::EmptySegment),
            ("a//b", PatternError::EmptySegment),
            ("a**", PatternError::DoubleAsterisk),
            ("***", PatternError::DoubleAsterisk),
            ("a b", PatternError::Space),
        ] {
            assert_eq!(Pattern::new(text), Err(error), "{text:?}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn no_text_panics(pattern in "\\PC{0,24}", text in "\\PC{0,24}") {
            if let Ok(pattern) = Pattern::new(&pattern) {
                pattern.matches(&text);
            }
        }

        /// What the asterisks stand for may be anything.
        #[test]
        fn asterisks_take_what_they_stand_for(a in "[a-z.]{0,4}", b in "[a-z.]{1,4}", inner in "[a-z.]{0,6}", deep in "[a-z]{1,3}(/[a-z]{1,3}){0,3}") {
            let one = Pattern::new(&format!("{a}*{b}")).unwrap();
            let text = format!("{a}{inner}{b}");
            prop_assert!(one.matches(&text));
            let deeper = Pattern::new(&format!("{b}/**")).unwrap();
            let (below, beside) = (format!("{b}/{deep}"), format!("{b}x/{deep}"));
            prop_assert!(deeper.matches(&below));
            prop_assert!(!deeper.matches(&beside));
        }
    }
}
