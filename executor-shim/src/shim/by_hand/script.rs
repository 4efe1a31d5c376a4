//! The script that a shell is given for the lines of a request. Pure.
//!
//! It is what gitlab-runner writes for the lines of a job, without printing them: they have nothing
//! to read, and the first command that fails ends them.

use super::request::Variables;

/// Writes the script. `directory` is where it runs.
pub fn write(lines: &[String], variables: &Variables, directory: &str) -> Vec<u8> {
    let mut commands = format!("cd {}\n", quoted(directory));
    for (name, value) in &variables.0 {
        commands.push_str(&format!("export {name}={}\n", quoted(value)));
    }
    for line in lines {
        commands.push_str(line);
        commands.push('\n');
    }
    let script = format!(
        "trap 'exit 1' TERM\n\
         case \"$(set -o)\" in *pipefail*) set -o pipefail ;; esac\n\
         set -o errexit\n\
         set +o noclobber\n\
         (trap 'exit 1' TERM; eval {}) < /dev/null\n\
         exit 0\n",
        quoted(&commands)
    );
    script.into_bytes()
}

/// A word that every shell reads as it is.
fn quoted(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Output};

    use proptest::prelude::*;

    use super::*;

    fn run(shell: &str, lines: &[&str], variables: &[(&str, &str)]) -> Output {
        let lines: Vec<String> = lines.iter().map(|line| (*line).to_owned()).collect();
        let variables = variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        let script = write(&lines, &Variables(variables.collect()), "/");
        let script = String::from_utf8(script).unwrap();
        Command::new(shell).args(["-c", &script]).output().unwrap()
    }

    fn text(output: &Output) -> (Option<i32>, String) {
        (output.status.code(), String::from_utf8(output.stdout.clone()).unwrap())
    }

    #[test]
    fn lines_run_as_those_of_a_job() {
        for shell in ["bash", "sh"] {
            let say = |lines: &[&str]| text(&run(shell, lines, &[("A", "x y")]));
            assert_eq!(say(&["echo hello"]), (Some(0), "hello\n".into()), "nothing else is printed");
            assert_eq!(say(&["echo one", "false", "echo two"]), (Some(1), "one\n".into()));
            assert_eq!(say(&["exit 7"]), (Some(7), String::new()));
            assert_eq!(say(&["if true", "then pwd", "fi"]), (Some(0), "/\n".into()), "lines belong together");
            assert_eq!(say(&["echo \"$A\"", "printenv A"]), (Some(0), "x y\nx y\n".into()));
            assert_eq!(say(&["cat; echo end"]), (Some(0), "end\n".into()), "there is nothing to read");
            assert_eq!(say(&["cat <<E\nit's $A\nE"]), (Some(0), "it's x y\n".into()));
        }
        assert_eq!(text(&run("bash", &["false | true", "echo not reached"], &[])), (Some(1), String::new()));
    }

    #[test]
    fn what_cannot_be_read_is_no_success() {
        for shell in ["bash", "sh"] {
            assert_ne!(run(shell, &["if"], &[]).status.code(), Some(0), "{shell}");
            assert_ne!(run(shell, &["echo 'open"], &[]).status.code(), Some(0), "{shell}");
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(32))]

        #[test]
        fn values_arrive_as_they_are(value in "[^\0]{0,40}|[\u{1}-\u{20}'\"$`\\\\!*\n]{0,20}") {
            for shell in ["bash", "sh"] {
                let output = run(shell, &["printf %s \"$VALUE\""], &[("VALUE", &value)]);
                prop_assert_eq!(text(&output), (Some(0), value.clone()), "{}", shell);
            }
        }
    }
}
