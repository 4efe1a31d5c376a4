//! Quoting for shells, the way gitlab-runner quotes.

use std::fmt::Write as _;

/// Quotes for bash: nothing where nothing is needed, `$'…'` otherwise, with everything that is not printable ASCII
/// in hexadecimal.
pub(super) fn ansi_c(text: &str) -> String {
    if text.is_empty() {
        return "''".to_owned();
    }
    let mut quoted = String::with_capacity(text.len() + 8);
    let mut plain = true;
    for byte in text.bytes() {
        let escape = match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'_' | b',' | b'-' | b'.' | b'/' | b'@' => {
                quoted.push(char::from(byte));
                continue;
            }
            0x07 => "\\a",
            0x08 => "\\b",
            b'\t' => "\\t",
            b'\n' => "\\n",
            0x0b => "\\v",
            0x0c => "\\f",
            b'\r' => "\\r",
            b'\'' => "\\'",
            b'\\' => "\\\\",
            _ => "",
        };
        plain = false;
        if !escape.is_empty() {
            quoted.push_str(escape);
        } else if (b' '..0x7f).contains(&byte) {
            quoted.push(char::from(byte));
        } else {
            // Writing to a string cannot fail.
            let _ = write!(quoted, "\\x{byte:02x}");
        }
    }
    if plain { quoted } else { format!("$'{quoted}'") }
}

/// Quotes for any POSIX shell, in double quotes: what `FF_POSIXLY_CORRECT_ESCAPES` asks for.
pub(super) fn posix(text: &str) -> String {
    if text.is_empty() {
        return "''".to_owned();
    }
    if text.chars().all(|c| c.is_ascii_alphanumeric() || "_,-./@:+".contains(c)) {
        return text.to_owned();
    }
    let mut quoted = String::with_capacity(text.len() + 2);
    for c in text.chars() {
        if matches!(c, '`' | '"' | '\\' | '$') {
            quoted.push('\\');
        }
        quoted.push(c);
    }
    format!("\"{quoted}\"")
}

/// Puts a path into double quotes. References to variables in it stay alive.
pub(super) fn path(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn only_what_needs_quotes_is_quoted() {
        assert_eq!(ansi_c(""), "''");
        assert_eq!(ansi_c("a/b-c_d.e,f@g"), "a/b-c_d.e,f@g");
        assert_eq!(ansi_c("a b"), "$'a b'");
        assert_eq!(ansi_c("it's\n\u{1b}[0;mé"), "$'it\\'s\\n\\x1b[0;m\\xc3\\xa9'");
    }

    #[test]
    fn bash_reads_back_every_byte() {
        let text: String = (1u8..128).map(char::from).chain("äöü€🦀".chars()).collect();
        for quoted in [ansi_c(&text), posix(&text)] {
            let output = Command::new("bash").arg("-c").arg(format!("printf %s {quoted}")).output().unwrap();
            assert_eq!(String::from_utf8(output.stdout).unwrap(), text);
        }
        let output =
            Command::new("sh").arg("-c").arg(format!("printf %s {}", posix(&text))).output().unwrap();
        assert_eq!(String::from_utf8(output.stdout).unwrap(), text);
    }
}
