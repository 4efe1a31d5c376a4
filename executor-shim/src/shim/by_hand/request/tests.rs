use proptest::prelude::*;
use serde_json::json;

use super::*;

const NAME: &str = "cij-0-0123456789";

fn parsed(value: &Value) -> Result<Request, Mistake> {
    parse(value.to_string().as_bytes())
}

fn sentence(value: &Value) -> String {
    parsed(value).unwrap_err().sentence
}

#[test]
fn requests() {
    let job = || JobName::new(NAME).unwrap();
    let script = || vec!["echo hello".to_owned()];
    let wishes = Wishes {
        image: Some("alpine".into()),
        variables: Variables([("A_1".to_owned(), "x\n'y".to_owned())].into()),
        tags: vec!["gpu".into()],
        services: vec![],
        keep_seconds: None,
    };
    let all = json!({"image": "alpine", "variables": {"A_1": "x\n'y"}, "tags": ["gpu"]});
    let with = |extra: Value| {
        let mut all = all.clone();
        all.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        all
    };
    for (value, request) in [
        (
            json!({"command": "run", "script": ["echo hello"]}),
            Request::Run { job: Job::New(Wishes::default()), script: script(), container: Container::Build },
        ),
        (
            with(json!({"command": "run", "script": ["echo hello"], "container": "helper", "job": null})),
            Request::Run { job: Job::New(wishes.clone()), script: script(), container: Container::Helper },
        ),
        (
            json!({"command": "run", "script": ["echo hello"], "job": NAME, "container": "build", "tags": []}),
            Request::Run { job: Job::Known(job()), script: script(), container: Container::Build },
        ),
        (
            with(json!({"command": "initialize", "keepSeconds": 10})),
            Request::Initialize(Wishes { keep_seconds: Some(10), ..wishes.clone() }),
        ),
        (
            json!({"command": "initialize"}),
            Request::Initialize(Wishes { keep_seconds: Some(600), ..Wishes::default() }),
        ),
        (json!({"command": "cleanup", "job": NAME}), Request::Cleanup { job: job(), namespace: None }),
        (
            json!({"command": "cleanup", "job": NAME, "namespace": "other-jobs"}),
            Request::Cleanup { job: job(), namespace: Some("other-jobs".into()) },
        ),
    ] {
        assert_eq!(parsed(&value), Ok(request), "{value}");
    }
}

#[test]
fn services_are_written_as_in_gitlab_ci_yml() {
    let services = json!(["redis:7", {"name": "postgres:16", "alias": "db, database", "entrypoint": ["sh"], "command": ["-c", "x"],
        "variables": {"POSTGRES_PASSWORD": "s3cret"}, "pullPolicy": ["never"], "user": "999"}]);
    let request = json!({"command": "run", "script": ["x"], "services": services});
    let Ok(Request::Run { job: Job::New(wishes), .. }) = parsed(&request) else { panic!("{request}") };
    let postgres = ServiceWish {
        name: "postgres:16".into(),
        alias: "db, database".into(),
        entrypoint: vec!["sh".into()],
        command: vec!["-c".into(), "x".into()],
        variables: Variables([("POSTGRES_PASSWORD".to_owned(), "s3cret".to_owned())].into()),
        pull_policy: vec!["never".into()],
        user: Some("999".into()),
    };
    assert_eq!(wishes.services, [ServiceWish { name: "redis:7".into(), ..ServiceWish::default() }, postgres]);
    assert!(!format!("{wishes:?}").contains("s3cret"));
    for (services, words) in [
        (json!("redis"), "the field \"services\" must be a list"),
        (json!([7]), "must be an object, or the name of an image"),
        (json!([{"alias": "s3cret"}]), "the field \"name\" of a service is missing"),
        (
            json!([{"name": "redis", "image": "s3cret"}]),
            "\"image\" is no field of a service, which knows name, alias",
        ),
        (json!([{"name": "redis", "command": "s3cret"}]), "the field \"command\" must be a list of strings"),
    ] {
        let text = sentence(&json!({"command": "run", "script": ["x"], "services": services}));
        assert!(text.contains(words) && !text.contains("s3cret"), "{text}");
    }
}

#[test]
fn mistakes_are_named_and_quote_no_value() {
    for (value, words) in [
        (json!({"command": "start"}), "\"start\" is no command: it must be initialize, run or cleanup"),
        (json!({"command": 7}), "the field \"command\" must be a string"),
        (json!({"script": ["x"]}), "the field \"command\" is missing"),
        (json!({"command": "run"}), "the field \"script\" is missing"),
        (
            json!({"command": "cleanup", "job": NAME, "namespace": "../pods"}),
            "\"../pods\" in the field \"namespace\" is not the name of a namespace",
        ),
        (json!({"command": "run", "script": "s3cret"}), "the field \"script\" must be a list of strings"),
        (json!({"command": "run", "script": ["x", 1]}), "the field \"script\" must be a list of strings"),
        (json!({"command": "run", "script": []}), "the field \"script\" is empty"),
        (json!({"command": "run", "script": ["", " \n"]}), "the field \"script\" is empty"),
        (json!({"command": "run", "script": ["s3cret\u{0}"]}), "the field \"script\" has a NUL character"),
        (
            json!({"command": "run", "scripts": ["s3cret"]}),
            "\"scripts\" is no field of the command run, which knows",
        ),
        (
            json!({"command": "run", "script": ["x"], "keepSeconds": 60}),
            "\"keepSeconds\" is no field of the command run",
        ),
        (
            json!({"command": "run", "script": ["x"], "container": "init"}),
            "\"init\" is no container: it must be build or helper",
        ),
        (json!({"command": "run", "script": ["x"], "image": ""}), "the field \"image\" is empty"),
        (
            json!({"command": "run", "script": ["x"], "image": ["s3cret"]}),
            "the field \"image\" must be a string",
        ),
        (
            json!({"command": "run", "script": ["x"], "variables": "s3cret"}),
            "the field \"variables\" must be an object of strings",
        ),
        (
            json!({"command": "run", "script": ["x"], "variables": {"A": ["s3cret"]}}),
            "the variable \"A\" must be a string",
        ),
        (
            json!({"command": "run", "script": ["x"], "variables": {"A": "s3cret\u{0}"}}),
            "the variable \"A\" has a NUL character",
        ),
        (
            json!({"command": "run", "script": ["x"], "variables": {"A B": "s3cret"}}),
            "\"A B\" cannot be the name of a variable",
        ),
        (
            json!({"command": "run", "script": ["x"], "variables": {"": "s3cret"}}),
            "\"\" cannot be the name of a variable",
        ),
        (
            json!({"command": "run", "script": ["x"], "variables": {"1A": "s3cret"}}),
            "\"1A\" cannot be the name of a variable",
        ),
        (
            json!({"command": "run", "script": ["x"], "tags": "gpu"}),
            "the field \"tags\" must be a list of strings",
        ),
        (
            json!({"command": "run", "script": ["x"], "job": "cij-4711-0123456789"}),
            "\"cij-4711-0123456789\" is not the name of a job by hand",
        ),
        (
            json!({"command": "run", "script": ["x"], "job": "../../etc"}),
            "\"../../etc\" is not the name of a job by hand",
        ),
        (
            json!({"command": "run", "script": ["x"], "job": NAME, "image": "alpine"}),
            "image, variables, tags and services belong to the command initialize",
        ),
        (json!({"command": "initialize", "job": NAME}), "\"job\" is no field of the command initialize"),
        (
            json!({"command": "initialize", "keepSeconds": 9}),
            "the field \"keepSeconds\" must be a whole number of seconds from 10 to 86400",
        ),
        (
            json!({"command": "initialize", "keepSeconds": 1.5}),
            "the field \"keepSeconds\" must be a whole number",
        ),
        (
            json!({"command": "initialize", "keepSeconds": "600"}),
            "the field \"keepSeconds\" must be a whole number",
        ),
        (json!({"command": "cleanup"}), "the field \"job\" is missing"),
        (
            json!({"command": "cleanup", "job": NAME, "script": ["s3cret"]}),
            "\"script\" is no field of the command cleanup, which knows job",
        ),
        (json!([{"command": "run"}]), "standard input is JSON, but no object"),
        (json!("s3cret"), "standard input is JSON, but no object"),
    ] {
        let sentence = sentence(&value);
        assert!(sentence.starts_with(words), "{value}: {sentence}");
        assert!(!sentence.contains("s3cret") && sentence.lines().count() == 1, "{sentence}");
    }
}

#[test]
fn what_is_no_json_says_where() {
    for (input, words) in [
        ("", "standard input is empty: "),
        (" \n", "standard input is empty: "),
        ("hello", "standard input is not JSON: expected value at line 1 column 1; "),
        (
            "{\"command\":\"run\",\"script\":[\"s3cret",
            "standard input is not JSON: EOF while parsing a string at line 1 column 34; ",
        ),
        ("{\"command\":\"run\"}{}", "standard input is not JSON: trailing characters at line 1 column 18; "),
        ("{'command':'run'}", "standard input is not JSON: key must be a string at line 1 column 2; "),
    ] {
        let sentence = parse(input.as_bytes()).unwrap_err().sentence;
        assert!(sentence.starts_with(words), "{input}: {sentence}");
        assert!(!sentence.contains("s3cret"), "{sentence}");
    }
    assert!(parse(b"{\"command\":\"\xff\"}").is_err());
    assert!(parse("[".repeat(100_000).as_bytes()).is_err(), "depth is no overflow");
}

#[test]
fn what_is_too_long_is_not_read_to_its_end() {
    let endless = io::repeat(b' ');
    assert_eq!(read(endless).unwrap_err().sentence, "standard input is longer than 64 MiB");
}

#[test]
fn names_are_short_and_harmless_in_sentences() {
    let sentence = sentence(&json!({"command": format!("\u{1b}[2J{}", "x".repeat(500))}));
    assert!(sentence.starts_with("\"\\u{1b}[2Jxxx") && sentence.len() < 200, "{sentence}");
}

#[test]
fn values_are_not_printed_with_a_request() {
    let request = parsed(&json!({"command": "initialize", "variables": {"A": "s3cret"}})).unwrap();
    let text = format!("{request:?}");
    assert!(text.contains("\"A\"") && !text.contains("s3cret"), "{text}");
}

fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        "\\PC{0,12}".prop_map(Value::from),
        prop_oneof![Just(NAME), Just("run"), Just("build"), Just("echo x")].prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 24, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map("\\PC{0,6}", inner, 0..4).prop_map(|map| json!(map)),
        ]
    })
}

proptest! {
    #[test]
    fn any_bytes_are_a_request_or_a_sentence(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        if let Err(mistake) = parse(&bytes) {
            prop_assert!(!mistake.sentence.is_empty() && mistake.sentence.lines().count() == 1);
        }
    }

    #[test]
    fn any_object_is_a_request_or_a_sentence(
        command in prop_oneof![Just("initialize"), Just("run"), Just("cleanup"), Just("x")],
        fields in prop::collection::btree_map(
            prop_oneof![
                Just("job".to_owned()), Just("script".to_owned()), Just("image".to_owned()),
                Just("variables".to_owned()), Just("tags".to_owned()), Just("keepSeconds".to_owned()),
                Just("container".to_owned()), "\\PC{0,8}",
            ],
            any_json(),
            0..5,
        )
    ) {
        let mut object = json!(fields);
        object["command"] = json!(command);
        match parsed(&object) {
            Ok(Request::Initialize(_)) => prop_assert_eq!(command, "initialize"),
            Ok(Request::Run { script, .. }) => {
                prop_assert_eq!(command, "run");
                prop_assert!(script.iter().any(|line| !line.trim().is_empty()));
            }
            Ok(Request::Cleanup { .. }) => prop_assert_eq!(command, "cleanup"),
            Err(mistake) => {
                prop_assert_eq!(mistake.sentence.lines().count(), 1);
                prop_assert_eq!(mistake.command, (command != "x").then_some(command));
            }
        }
    }
}
