//! Addresses of repositories, with and without the job's token.

/// An address taken apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Remote<'a> {
    scheme: &'a str,
    user: Option<&'a str>,
    host: &'a str,
    path: &'a str,
}

impl<'a> Remote<'a> {
    /// Reads `scheme://[user@]host[:port]/path`; `None` for anything else.
    pub(super) fn parse(url: &'a str) -> Option<Self> {
        let (scheme, rest) = url.split_once("://")?;
        let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
        let (user, host) = match authority.rsplit_once('@') {
            Some((user, host)) => (Some(user), host),
            None => (None, authority),
        };
        (!host.is_empty()).then_some(Self { scheme, user, host, path })
    }

    /// Scheme and host.
    pub(super) fn base(&self) -> String {
        format!("{}://{}", self.scheme, self.host)
    }

    /// Without user and password.
    pub(super) fn without_user(&self) -> String {
        format!("{}{}", self.base(), self.path)
    }

    /// As it was given.
    pub(super) fn full(&self) -> String {
        match self.user {
            Some(user) => format!("{}://{user}@{}{}", self.scheme, self.host, self.path),
            None => self.without_user(),
        }
    }

    /// Whether Git asks for a password there by HTTP.
    pub(super) fn is_http(&self) -> bool {
        matches!(self.scheme, "http" | "https")
    }

    /// Scheme and host with the job's token as the password.
    fn base_with_token(&self, token: &str) -> String {
        format!("{}://gitlab-ci-token:{token}@{}", self.scheme, self.host)
    }

    /// The project's folder: the path without `.git`; `None` when it is no path that a folder may have.
    pub(super) fn project(&self) -> Option<&'a str> {
        let path = self.path.strip_suffix(".git").unwrap_or(self.path).trim_matches('/');
        (!path.is_empty() && !path.contains("..")).then_some(path)
    }
}

/// What Git shall replace: the new beginning of an address, and the old one. `runner_url` is where the runner talks
/// to GitLab; `ssh_host` is set when submodules with SSH addresses shall be fetched by HTTPS.
pub(super) fn replacements(
    repository: &Remote<'_>,
    runner_url: &str,
    token: &str,
    ssh_host: Option<&str>,
) -> Vec<(String, String)> {
    let mut pairs = vec![(repository.full(), repository.without_user())];
    if let Some(server) = Remote::parse(runner_url).filter(Remote::is_http) {
        let with_token = format!("{}{}", server.base_with_token(token), server.path.trim_end_matches('/'));
        let plain = server.without_user().trim_end_matches('/').to_owned();
        pairs.push((with_token.clone(), plain));
        if let Some(host) = ssh_host {
            pairs.push((format!("{with_token}/"), format!("git@{host}:")));
            pairs.push((with_token, format!("ssh://git@{host}")));
        }
        if repository.is_http() {
            pairs.push((repository.base_with_token(token), repository.base()));
        }
    }
    let mut unique: Vec<(String, String)> = Vec::new();
    for pair in pairs {
        if pair.0 != pair.1 && !unique.contains(&pair) {
            unique.push(pair);
        }
    }
    unique
}

/// Escapes a text for a regular expression.
pub(super) fn regex_quoted(text: &str) -> String {
    let mut quoted = String::with_capacity(text.len());
    for c in text.chars() {
        if r"\.+*?()|[]{}^$".contains(c) {
            quoted.push('\\');
        }
        quoted.push(c);
    }
    quoted
}

#[cfg(test)]
mod tests {
    use super::*;

    const URL: &str = "http://gitlab-ci-token:t@host:80/grp/sub/proj.git";

    #[test]
    fn addresses_are_taken_apart() {
        let remote = Remote::parse(URL).unwrap();
        assert_eq!(remote.full(), URL);
        assert_eq!(remote.without_user(), "http://host:80/grp/sub/proj.git");
        assert_eq!(remote.base(), "http://host:80");
        assert_eq!(remote.project(), Some("grp/sub/proj"));
        assert_eq!(Remote::parse("/srv/git/proj.git"), None);
        assert_eq!(Remote::parse("http://h/a/../b").unwrap().project(), None);
    }

    #[test]
    fn replacements_are_not_repeated() {
        let remote = Remote::parse(URL).unwrap();
        let pairs = replacements(&remote, "http://host:80/", "t", None);
        assert_eq!(
            pairs,
            [
                (URL.to_owned(), "http://host:80/grp/sub/proj.git".to_owned()),
                ("http://gitlab-ci-token:t@host:80".to_owned(), "http://host:80".to_owned()),
            ]
        );
        let ssh = replacements(&remote, "http://host:80", "t", Some("git.test"));
        assert!(ssh.iter().any(|(_, old)| old == "git@git.test:"));
    }

    #[test]
    fn regular_expressions_match_literally() {
        assert_eq!(regex_quoted("http://a.b/c+d"), r"http://a\.b/c\+d");
    }
}
