//! Whether the cluster, or GitLab's API, is reached through a proxy.
//!
//! gitlab-runner often runs with `HTTPS_PROXY` and `NO_PROXY` for the jobs' sake, and both reach the
//! shim. A kubeconfig may name a proxy of its own; only one of the environment has exceptions.

use std::net::IpAddr;

/// What the environment says about proxies.
#[derive(Clone, Debug, Default)]
pub struct ProxyEnv {
    /// `HTTP_PROXY`.
    pub http_proxy: Option<String>,
    /// `HTTPS_PROXY`.
    pub https_proxy: Option<String>,
    /// `NO_PROXY`.
    pub no_proxy: Option<String>,
}

impl ProxyEnv {
    /// The environment of this process.
    pub fn of_this_process() -> Self {
        let get = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
        Self {
            http_proxy: get("HTTP_PROXY").or_else(|| get("http_proxy")),
            https_proxy: get("HTTPS_PROXY").or_else(|| get("https_proxy")),
            no_proxy: get("NO_PROXY").or_else(|| get("no_proxy")),
        }
    }

    /// The proxy for a server, as gitlab-runner chooses its own: none for this machine itself.
    pub fn of(&self, secure: bool, host: &str, port: u16) -> Option<String> {
        let proxy = if secure { &self.https_proxy } else { &self.http_proxy };
        let bare = host.trim_start_matches('[').trim_end_matches(']');
        let local = bare == "localhost" || bare.parse::<IpAddr>().is_ok_and(|address| address.is_loopback());
        let listed = self.no_proxy.as_deref().is_some_and(|list| is_listed(list, host, port));
        let proxy = proxy.as_deref().filter(|_| !local && !listed)?;
        Some(if proxy.contains("://") { proxy.to_owned() } else { format!("http://{proxy}") })
    }

    /// Whether the proxy that was found for a host is the environment's, and not meant for that host.
    pub fn excepts(&self, proxy: &str, host: &str, port: u16) -> bool {
        let same = |theirs: &str| theirs.trim_end_matches('/') == proxy.trim_end_matches('/');
        self.https_proxy.as_deref().is_some_and(same)
            && self.no_proxy.as_deref().is_some_and(|list| is_listed(list, host, port))
    }
}

/// Whether a host is on a list as curl, Go and others read it: names with their subdomains, addresses,
/// networks, each with a port or without, or `*`.
fn is_listed(list: &str, host: &str, port: u16) -> bool {
    let host = host.trim_start_matches('[').trim_end_matches(']').to_ascii_lowercase();
    let address: Option<IpAddr> = host.parse().ok();
    list.split([',', ' ']).map(str::trim).filter(|entry| !entry.is_empty()).any(|entry| {
        if entry == "*" {
            return true;
        }
        let entry = entry.to_ascii_lowercase();
        if let Some((network, bits)) = entry.split_once('/') {
            let network = network.parse().ok().zip(bits.parse().ok());
            return address
                .zip(network)
                .is_some_and(|(address, (network, bits))| contains(network, bits, address));
        }
        let (name, wanted) = split_port(&entry);
        if wanted.is_some_and(|wanted| wanted != port) {
            return false;
        }
        if let Some(address) = address {
            return name.parse() == Ok(address);
        }
        let domain = name.trim_start_matches('*').trim_start_matches('.');
        let below = host.strip_suffix(domain).is_some_and(|rest| rest.ends_with('.'));
        !domain.is_empty() && (below || (host == domain && !name.starts_with(['*', '.'])))
    })
}

/// Takes the port off an entry. A bare IPv6 address has none, whatever its last group looks like.
fn split_port(entry: &str) -> (&str, Option<u16>) {
    if entry.parse::<IpAddr>().is_ok() {
        return (entry, None);
    }
    match entry.rsplit_once(':').and_then(|(name, port)| Some((name, port.parse().ok()?))) {
        Some((name, port)) => (name.trim_start_matches('[').trim_end_matches(']'), Some(port)),
        None => (entry.trim_start_matches('[').trim_end_matches(']'), None),
    }
}

fn contains(network: IpAddr, bits: u32, address: IpAddr) -> bool {
    let (network, address, width) = match (network, address) {
        (IpAddr::V4(network), IpAddr::V4(address)) => {
            (u128::from(network.to_bits()), u128::from(address.to_bits()), 32)
        }
        (IpAddr::V6(network), IpAddr::V6(address)) => (network.to_bits(), address.to_bits(), 128),
        _ => return false,
    };
    bits <= width && (network ^ address).checked_shr(width - bits).unwrap_or(0) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_on_the_list() {
        for (list, host, listed) in [
            ("*", "10.0.0.1", true),
            ("10.0.0.1", "10.0.0.1", true),
            ("10.0.0.1:6443", "10.0.0.1", true),
            ("10.0.0.1:443", "10.0.0.1", false),
            ("10.0.0.0/8", "10.213.217.2", true),
            ("10.0.0.0/8", "11.0.0.1", false),
            ("0.0.0.0/0", "11.0.0.1", true),
            ("10.0.0.0/33", "10.0.0.1", false),
            ("fd00::/8", "[fd00::1]", true),
            ("fd00::1", "[fd00::1]", true),
            ("[fd00::1]:6443", "[fd00::1]", true),
            ("localhost, .svc,", "kubernetes.default.svc", true),
            (".svc", "svc", false),
            ("example.org", "api.example.org", true),
            ("example.org", "Example.org", true),
            ("*.example.org", "api.example.org", true),
            ("example.org", "badexample.org", false),
            ("example.org:6443", "api.example.org", true),
            ("example.org:443", "api.example.org", false),
            (",, ,", "api.example.org", false),
            ("", "api.example.org", false),
        ] {
            assert_eq!(is_listed(list, host, 6443), listed, "{list:?} {host}");
        }
    }

    #[test]
    fn only_the_proxy_of_the_environment_has_exceptions() {
        let env = ProxyEnv {
            http_proxy: None,
            https_proxy: Some("http://proxy:3128".into()),
            no_proxy: Some("10.0.0.0/8".into()),
        };
        assert!(env.excepts("http://proxy:3128/", "10.0.0.1", 6443));
        assert!(!env.excepts("http://proxy:3128/", "11.0.0.1", 6443));
        assert!(!env.excepts("http://other:3128/", "10.0.0.1", 6443));
        assert!(!ProxyEnv::default().excepts("http://proxy:3128/", "10.0.0.1", 6443));
    }

    #[test]
    fn a_server_has_the_proxy_of_its_scheme() {
        let env = ProxyEnv {
            http_proxy: Some("plain:3128".into()),
            https_proxy: Some("http://secure:3128".into()),
            no_proxy: Some("internal.test,10.0.0.0/8".into()),
        };
        assert_eq!(env.of(true, "gitlab.test", 443).as_deref(), Some("http://secure:3128"));
        assert_eq!(env.of(false, "gitlab.test", 80).as_deref(), Some("http://plain:3128"));
        for direct in ["internal.test", "a.internal.test", "10.1.2.3", "localhost", "127.0.0.1", "[::1]"] {
            assert_eq!(env.of(true, direct, 443), None, "{direct}");
        }
        assert_eq!(ProxyEnv::default().of(true, "gitlab.test", 443), None);
    }
}
