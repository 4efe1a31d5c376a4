//! Writing a bash script as gitlab-runner writes one: the commands go, quoted as one word, into an `eval` in a
//! subshell with nothing to read.

use crate::coordinator::Variable;

use super::super::quote;
use super::super::variables::Variables;

const RESET: &str = "\u{1b}[0;m";
const BOLD_GREEN: &str = "\u{1b}[32;1m";
const YELLOW: &str = "\u{1b}[0;33m";

/// A script in the making.
#[derive(Debug)]
#[expect(clippy::struct_excessive_bools, reason = "each is a switch of its own")]
pub(super) struct Writer {
    text: String,
    indent: usize,
    /// `RUNNER_TEMP_PROJECT_DIR`.
    temporary: String,
    shell: String,
    trace: bool,
    posix: bool,
    check_each: bool,
    legacy_eval: bool,
}

impl Writer {
    pub(super) fn new(shell: &str, temporary: String, trace: bool, variables: &Variables) -> Self {
        Self {
            text: String::new(),
            indent: 0,
            temporary,
            shell: shell.to_owned(),
            trace,
            posix: variables.is_on("FF_POSIXLY_CORRECT_ESCAPES"),
            check_each: variables.is_on("FF_ENABLE_BASH_EXIT_CODE_CHECK"),
            legacy_eval: variables.is_on("FF_USE_LEGACY_BASH_EVAL"),
        }
    }

    /// Quotes a word so that the shell reads it as it is.
    pub(super) fn quoted(&self, word: &str) -> String {
        if self.posix { quote::posix(word) } else { quote::ansi_c(word) }
    }

    /// A line as it is.
    pub(super) fn line(&mut self, line: &str) {
        self.text.push_str(&"  ".repeat(self.indent));
        self.text.push_str(line);
        self.text.push('\n');
    }

    /// A line of the user, after which `FF_ENABLE_BASH_EXIT_CODE_CHECK` wants the code looked at.
    pub(super) fn checked(&mut self, line: &str) {
        self.line(line);
        if self.check_each {
            self.line(
                "_runner_exit_code=$?; if [ $_runner_exit_code -ne 0 ]; then exit $_runner_exit_code; fi",
            );
        }
    }

    /// A command whose words mean nothing but themselves.
    pub(super) fn command<S: AsRef<str>>(&mut self, words: &[S]) {
        let line = self.words(words);
        self.checked(&line);
    }

    /// A command in whose arguments references to variables count.
    pub(super) fn command_expanding<S: AsRef<str>>(&mut self, words: &[S]) {
        let line = expanding(words);
        self.checked(&line);
    }

    fn words<S: AsRef<str>>(&self, words: &[S]) -> String {
        let quoted: Vec<String> = words.iter().map(|word| self.quoted(word.as_ref())).collect();
        quoted.join(" ")
    }

    /// A path below the temporary folder, absolute when the script runs.
    pub(super) fn temporary(&self, name: &str) -> String {
        let path = format!("{}/{name}", self.temporary);
        if path.starts_with('/') { path } else { format!("$PWD/{path}") }
    }

    /// Sets a variable; the value of a file variable is written to its file first.
    pub(super) fn export(&mut self, variable: &Variable) {
        let key = self.quoted(&variable.key);
        if variable.file {
            let file = quote::path(&self.temporary(&variable.key));
            let folder = quote::path(&self.temporary);
            let value = self.quoted(&variable.value);
            self.line(&format!("mkdir -p {folder}"));
            self.line(&format!("printf '%s' {value} > {file}"));
            self.line(&format!("export {key}={file}"));
        } else {
            let value = self.quoted(&variable.value);
            self.line(&format!("export {key}={value}"));
        }
    }

    /// Sets a variable to a value in which references count.
    pub(super) fn export_expanding(&mut self, key: &str, value: &str) {
        self.line(&format!("export {key}=\"{value}\""));
    }

    /// Reads variables from a file that jobs may write to.
    pub(super) fn source_env(&mut self, file: &str) {
        let (folder, file) = (quote::path(&self.temporary), quote::path(file));
        self.line(&format!("mkdir -p {folder}"));
        self.line(&format!("touch {file}"));
        self.line(&format!("while read -r line; do export \"$line\"; done < {file}"));
    }

    pub(super) fn if_directory(&mut self, path: &str) {
        self.begin_if(&format!("[ -d {} ]", quote::path(path)));
    }

    pub(super) fn if_exists(&mut self, path: &str) {
        self.begin_if(&format!("[ -e {} ]", quote::path(path)));
    }

    /// Whether a command works; nothing of it is printed.
    pub(super) fn if_quiet<S: AsRef<str>>(&mut self, words: &[S]) {
        let command = self.words(words);
        self.begin_if(&format!("{command} >/dev/null 2>&1"));
    }

    /// Whether a command works; what it prints is seen.
    pub(super) fn if_loud<S: AsRef<str>>(&mut self, words: &[S]) {
        let command = self.words(words);
        self.begin_if(&command);
    }

    /// As [`Writer::if_loud`], with references in the arguments.
    pub(super) fn if_loud_expanding<S: AsRef<str>>(&mut self, words: &[S]) {
        self.begin_if(&expanding(words));
    }

    fn begin_if(&mut self, condition: &str) {
        self.line(&format!("if {condition}; then"));
        self.indent += 1;
    }

    pub(super) fn or_else(&mut self) {
        self.indent -= 1;
        self.line("else");
        self.indent += 1;
    }

    pub(super) fn end_if(&mut self) {
        self.indent -= 1;
        self.line("fi");
    }

    pub(super) fn change_directory(&mut self, path: &str) {
        self.command(&["cd", path]);
    }

    pub(super) fn make_directory(&mut self, path: &str) {
        self.command(&["mkdir", "-p", path]);
    }

    pub(super) fn remove_file(&mut self, path: &str) {
        self.command_expanding(&["rm", "-f", path]);
    }

    pub(super) fn remove_directory(&mut self, path: &str) {
        self.if_directory(path);
        self.command_expanding(&["chmod", "-R", "u+rwX", path]);
        self.end_if();
        self.command_expanding(&["rm", "-r", "-f", path]);
    }

    /// Removes all files (`f`) or folders (`d`) of a name below a folder.
    pub(super) fn remove_below(&mut self, folder: &str, name: &str, kind: char) {
        self.if_directory(folder);
        let depth = if kind == 'd' { " -depth" } else { "" };
        let (folder, name) = (quote::path(folder), quote::path(name));
        self.line(&format!("find {folder}{depth} -name {name} -type {kind} -exec rm -rf -- {{}} +"));
        self.end_if();
    }

    /// A line in green.
    pub(super) fn notice(&mut self, text: &str) {
        self.echo(&format!("{BOLD_GREEN}{text}{RESET}"));
    }

    /// A line in yellow.
    pub(super) fn warning(&mut self, text: &str) {
        self.echo(&format!("{YELLOW}{text}{RESET}"));
    }

    fn echo(&mut self, text: &str) {
        let quoted = self.quoted(text);
        self.line(&format!("echo {quoted}"));
    }

    /// The commands of a user, each shown before it runs.
    pub(super) fn user_commands<S: AsRef<str>>(&mut self, section: &str, commands: &[S], fold: bool) {
        for (number, command) in commands.iter().enumerate() {
            let command = command.as_ref().trim();
            match command.split_once('\n') {
                None if command.is_empty() => self.line("echo"),
                None => self.notice(&format!("$ {command}")),
                Some(_) if fold => self.folded(&format!("{section}_{number}"), command),
                Some((first, _)) => self.notice(&format!("$ {first} # collapsed multi-line command")),
            }
            self.checked(command);
        }
    }

    /// A command of several lines as a section of its own (`FF_SCRIPT_SECTIONS`).
    fn folded(&mut self, section: &str, command: &str) {
        let now = "$(awk 'BEGIN{srand(); print srand()}')";
        let shown = self.quoted(&format!("{BOLD_GREEN}$ {command}{RESET}"));
        let clear = "\r\u{1b}[0K";
        let options = "[hide_duration=true,collapsed=true]";
        self.line(&format!("printf '%b\\n' section_start:{now}:section_{section}{options}{clear}{shown}"));
        self.line(&format!("printf '%b\\n' section_end:{now}:section_{section}{clear}"));
    }

    /// The whole script.
    pub(super) fn finish(self) -> String {
        let body = if self.legacy_eval {
            format!(": | eval {}\n", self.quoted(&self.text))
        } else {
            format!("(trap 'exit 1' TERM; eval {}) < /dev/null\n", self.quoted(&self.text))
        };
        let trace = if self.trace { "set -o xtrace\n" } else { "" };
        format!(
            "#!/usr/bin/env {}\n\ntrap 'exit 1' TERM\n\n{trace}\
             case \"$(set -o)\" in *\"pipefail\"*) set -o pipefail;; esac; set -o errexit\n\
             set +o noclobber\n{body}exit 0\n",
            self.shell
        )
    }
}

/// Words in double quotes; the first one as it is.
fn expanding<S: AsRef<str>>(words: &[S]) -> String {
    let mut line = String::new();
    for (index, word) in words.iter().enumerate() {
        let word = word.as_ref();
        if index == 0 {
            line.push_str(word);
        } else {
            line.extend([" \"", word, "\""]);
        }
    }
    line
}
