//! What expressions may say, what they may not, and that none of them panics.

use super::*;
use crate::fixture;
use proptest::prelude::*;

fn inputs() -> Inputs {
    let mut request = fixture::request();
    request.tags = vec!["gpu".to_owned(), "linux".to_owned()];
    request.tag_source = Some(TagSource::Job);
    request.user_login = Some("ada".to_owned());
    Inputs::new(&request, "ci-jobs")
}

fn holds(source: &str) -> Result<bool, String> {
    let expression = Expression::compile(source).map_err(|error| format!("{source}: {error}"))?;
    expression.holds(&inputs()).map_err(|error| error.to_string())
}

#[test]
fn expressions_read_the_job() {
    for (source, expected) in [
        ("true", true),
        ("job.id == 4711 && job.name == 'unit tests' && job.stage == 'test'", true),
        ("job.project.id == 5 && job.project.path.startsWith('group/')", true),
        ("job.project.id > 3", true),
        ("job.ref.name in ['main', 'next'] && job.ref.type == 'branch'", true),
        ("job.ref.protected", true),
        ("!job.ref.protected", false),
        ("'gpu' in job.tags", true),
        ("job.tags.all(t, t.matches('^[a-z]+$'))", true),
        ("job.tags.exists(t, t == 'tpu')", false),
        ("job.tags.exists_one(t, t.contains('u') && size(t) == 3)", true),
        ("size(job.tags.filter(t, t.endsWith('x'))) == 1", true),
        ("job.tags.map(t, size(t)).exists(n, n > 4)", true),
        ("has(job.user.login) && job.user.login == 'ada'", true),
        ("has(job.pipelineSource)", false),
        ("job.namespace == 'ci-jobs'", true),
        ("has(job.image) ? job.image.startsWith('alpine:') : false", true),
        ("has(job.runner.id) || job.user.id == 9", true),
        ("job.tagSource == 'Job'", true),
        ("int('7') == job.pipelineId && string(7) == '7'", true),
    ] {
        assert_eq!(holds(source), Ok(expected), "{source}");
    }
}

#[test]
fn what_cannot_be_compiled() {
    for (source, words) in [
        ("", "it is not CEL"),
        ("job.", "it is not CEL at line 1"),
        ("job.id ==", "it is not CEL"),
        ("jb.id == 1", "it reads `jb`"),
        ("job.projct.id == 1", "no field `projct`"),
        ("has(job.user.name)", "no field `user.name`"),
        ("job.name.foo", "no field `name.foo`"),
        ("timestamp('2026-01-01T00:00:00Z') == timestamp('x')", "it calls `timestamp`"),
        ("job.name.lowerAscii() == 'x'", "it calls `lowerAscii`"),
        ("job.name.matches(job.stage)", "written out"),
        ("job.name.matches('(')", "not usable"),
        ("job.name.matches('((a{99}){99}){99}')", "not usable"),
        ("job.tags.all(t, job.tags.exists(u, u == t))", "in another one"),
        ("job.tags.all(job, true)", "calls an item `job`"),
        ("Job{id: 1} == job", "an object"),
        (&format!("{}true{}", "(".repeat(200), ")".repeat(200)), "nested"),
        (&format!("{}true", "!".repeat(900)), "nested"),
        (&"true ? ".repeat(100), "nested"),
        (&"a.".repeat(500), ""),
        (&format!("1{} == 1", " + 1".repeat(120)), "nested"),
        (&format!("[{}1] == job", "1,".repeat(500)), "too long"),
        (&" ".repeat(1025), "longer than 1024"),
    ] {
        let error = Expression::compile(source).unwrap_err().to_string();
        assert!(error.contains(words), "{source}: {error}");
    }
    // What people write is far from the limits.
    let long = (0..12).map(|n| format!("job.project.path != 'group/project-{n}'")).collect::<Vec<_>>();
    assert_eq!(holds(&long.join(" && ")), Ok(true));
}

#[test]
fn what_fails_when_it_is_evaluated() {
    for (source, words) in [
        ("job.pipelineSource == 'push'", "the job has no `pipelineSource`: ask with `has()`"),
        ("job.name", "a value of type string"),
        ("job.id / 0 == 1", "ivision by zero"),
        ("job.name < 3", "a type that it does not take"),
        ("job.tags[9] == 'x'", "ndex"),
        ("int(job.name) == 1", "int"),
    ] {
        let error = holds(source).unwrap_err();
        assert!(error.contains(words), "{source}: {error}");
    }
}

fn parts() -> impl Strategy<Value = String> {
    let words = prop::sample::select(vec![
        "job",
        "job.tags",
        "job.id",
        "job.name",
        "job.ref.protected",
        "t",
        "'x'",
        "1",
        "-9223372036854775808",
        "9223372036854775807",
        "1.5",
        "1u",
        "null",
        "true",
        "b'x'",
        "[1]",
        "{'a': 1}",
        "(",
        ")",
        "[",
        "]",
        "{",
        "}",
        ".",
        ",",
        "?",
        ":",
        "!",
        "-",
        "+",
        "*",
        "/",
        "%",
        "==",
        "<",
        ">=",
        "in",
        "&&",
        "||",
        ".all(t, ",
        ".map(t, ",
        ".exists(t, ",
        ".filter(t, ",
        "has(",
        "size(",
        "int(",
        "string(",
        ".contains(",
        ".matches('a')",
        ".startsWith(",
        "\"",
        "\\",
        "'",
        "`",
        "\n",
        "//",
        "?.",
        "[?",
        "Job{",
        "optional.none()",
        "@in",
        "_+_",
        "ä",
    ]);
    prop::collection::vec(words, 0..24).prop_map(|words| words.join(" "))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn nothing_that_is_written_panics(source in prop_oneof![parts(), "\\PC{0,64}"]) {
        if let Ok(expression) = Expression::compile(&source) {
            let _ = expression.holds(&inputs());
        }
    }
}
