//! Regular expressions that have to match the whole of a value.

use regex::RegexBuilder;
use roadstead_crds::jobclass::Allowed;

/// Most memory of one compiled expression in bytes.
const LARGEST: usize = 1 << 20;

/// An expression that matches only a whole value. GitLab's may match anywhere, so that `ci-.*`
/// lets `prod-ci-x` pass there.
fn whole(pattern: &str) -> Result<regex::Regex, String> {
    let compile = |text: &str| RegexBuilder::new(text).size_limit(LARGEST).build();
    let told = |error: regex::Error| match error {
        regex::Error::CompiledTooBig(_) => format!("the expression \"{pattern}\" is too large"),
        other => {
            // The first lines draw the place of the mistake, the last one names it.
            let text = other.to_string();
            let last = text.lines().last().unwrap_or_default().trim_start_matches("error: ").to_owned();
            format!("\"{pattern}\" is not a regular expression ({last})")
        }
    };
    // By itself first: `a)|(b` is none, but would become one that is not held to the whole.
    compile(pattern).map_err(told)?;
    compile(&format!(r"\A(?:{pattern})\z")).map_err(told)
}

/// Whether one of the expressions matches all of the text.
///
/// # Errors
/// What is wrong with one of them.
pub fn any_matches(patterns: &[String], text: &str) -> Result<bool, String> {
    for pattern in patterns {
        if whole(pattern)?.is_match(text) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// What is wrong with the expressions of a class, a sentence each.
pub fn problems(allow: &Allowed) -> Vec<String> {
    let lists = [
        ("nodeSelector", &allow.node_selector),
        ("tolerations", &allow.tolerations),
        ("podLabels", &allow.pod_labels),
        ("podAnnotations", &allow.pod_annotations),
        ("serviceAccount", &allow.service_account),
        ("namespace", &allow.namespace),
    ];
    let of = |(field, patterns): (&'static str, &Vec<String>)| {
        let broken = patterns.iter().filter_map(|pattern| whole(pattern).err());
        broken.map(|problem| format!("`allow.{field}`: {problem}")).collect::<Vec<_>>()
    };
    lists.into_iter().flat_map(of).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn matches(pattern: &str, text: &str) -> Result<bool, String> {
        any_matches(&[pattern.to_owned()], text)
    }

    #[test]
    fn an_expression_holds_for_the_whole_value() {
        for (pattern, text, expected) in [
            ("ci-.*", "ci-x", true),
            ("ci-.*", "prod-ci-x", false),
            ("a|b", "a", true),
            ("a|b", "ab", false),
            ("a|b", "xb", false),
            ("^a$", "a", true),
            ("(?m)^a$", "a\nb", false),
            (".*", "a\nb", false),
            (".*", "", true),
            ("(?x) a # comment", "a", false),
            ("pool=(small|large)", "pool=large", true),
        ] {
            // A comment that would swallow the end of the expression makes it unusable instead.
            assert_eq!(matches(pattern, text).unwrap_or(false), expected, "{pattern} {text:?}");
        }
        assert_eq!(any_matches(&[], "x"), Ok(false));
    }

    #[test]
    fn what_is_no_expression_is_said() {
        assert_eq!(
            matches("a)|(b", "b").unwrap_err(),
            "\"a)|(b\" is not a regular expression (unopened group)"
        );
        assert!(!matches("a{999999999}", "a").unwrap_err().is_empty());
        let allow = Allowed { pod_labels: vec!["ok".to_owned(), "(".to_owned()], ..Allowed::default() };
        assert_eq!(
            problems(&allow),
            ["`allow.podLabels`: \"(\" is not a regular expression (unclosed group)"]
        );
    }

    proptest! {
        #[test]
        fn no_expression_and_no_value_is_a_panic(pattern in "\\PC{0,40}", text in "\\PC{0,40}") {
            let _ = matches(&pattern, &text);
        }

        #[test]
        fn a_literal_matches_itself_only(one in "[a-z=/.]{0,12}", other in "[a-z=/.]{0,12}") {
            prop_assert_eq!(matches(&regex::escape(&one), &other), Ok(one == other));
        }
    }
}
