//! The proxy between us and an API server, found as kubectl finds it.
//!
//! What the kubeconfig names (`proxy-url`) is used whatever else is said. Without that, $HTTPS_PROXY is, for a server at
//! https, and $HTTP_PROXY for one at http, unless the server is this host or $NO_PROXY names it. (The kube crate can read these
//! too, but holds $NO_PROXY against the name of the proxy instead of the server's, and gives up on an entry that it does not
//! understand.)
//!
//! Invariant: credentials in a proxy's URL go to that proxy, and into no text.

use std::{env, net::IpAddr};

use axum::http::{
    HeaderValue, Uri,
    uri::{Authority, InvalidUri, PathAndQuery},
};
use hyper_util::client::{
    legacy::connect::proxy::{SocksV5, Tunnel},
    proxy::matcher::Matcher,
};
use ipnet::IpNet;
use kube::{Config, config::Kubeconfig};

/// Where SOCKS is served unless it is told otherwise.
const SOCKS_PORT: u16 = 1080;

/// What the environment says of proxies; empty where it says nothing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Environment {
    https: String,
    http: String,
    none: String,
}

impl Environment {
    /// Of this process.
    pub(super) fn here() -> Self {
        let first = |names: [&str; 2]| {
            let mut values = names.into_iter().filter_map(|name| env::var(name).ok());
            values.find(|value| !value.is_empty()).unwrap_or_default()
        };
        Self {
            https: first(["HTTPS_PROXY", "https_proxy"]),
            http: first(["HTTP_PROXY", "http_proxy"]),
            none: first(["NO_PROXY", "no_proxy"]),
        }
    }

    /// The proxy for a server.
    fn proxy_to(&self, server: &Uri) -> Option<&str> {
        let is_secure = server.scheme_str() == Some("https");
        let proxy = if is_secure { &self.https } else { &self.http };
        let host = bare_host(server.host().unwrap_or_default());
        let port = server.port_u16().unwrap_or(if is_secure { 443 } else { 80 });
        (!proxy.is_empty() && !self.exempts(&host, port)).then_some(proxy)
    }

    fn exempts(&self, host: &str, port: u16) -> bool {
        let address = host.parse::<IpAddr>().ok();
        host == "localhost"
            || address.is_some_and(|address| address.is_loopback())
            || self.none.split(',').any(|entry| names(entry.trim(), host, address, port))
    }
}

/// As it is compared: without brackets, and names without case and final dot.
fn bare_host(host: &str) -> String {
    let bare = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    bare.trim_end_matches('.').to_lowercase()
}

/// Whether an entry of $NO_PROXY names this host: `*`, a network, or an address or a domain, with a port or without.
fn names(entry: &str, host: &str, address: Option<IpAddr>, port: u16) -> bool {
    if entry == "*" {
        return true;
    }
    if let Ok(network) = entry.parse::<IpNet>() {
        return address.is_some_and(|address| network.contains(&address));
    }
    let (name, only) = split_port(entry);
    let name = bare_host(name);
    if name.is_empty() || only.is_some_and(|only| only != port) {
        return false;
    }
    if let Ok(named) = name.parse::<IpAddr>() {
        return address == Some(named);
    }
    let domain = name.strip_prefix('*').filter(|domain| domain.starts_with('.')).unwrap_or(&name);
    match domain.strip_prefix('.') {
        // What begins with a dot names what is below it only.
        Some(_) => host.ends_with(domain),
        None => host == domain || host.strip_suffix(domain).is_some_and(|below| below.ends_with('.')),
    }
}

fn split_port(entry: &str) -> (&str, Option<u16>) {
    match entry.rsplit_once(':') {
        Some((name, port)) if !name.contains(':') || name.ends_with(']') => (name, port.parse().ok()),
        _ => (entry, None),
    }
}

/// The proxy that a kubeconfig names for the cluster of a context.
pub(super) fn named(kubeconfig: &Kubeconfig, context: Option<&str>) -> Option<String> {
    let context = context.or(kubeconfig.current_context.as_deref())?;
    let context = kubeconfig.contexts.iter().find(|one| one.name == context)?.context.as_ref()?;
    let cluster = kubeconfig.clusters.iter().find(|one| one.name == context.cluster)?.cluster.as_ref()?;
    cluster.proxy_url.clone().filter(|url| !url.is_empty())
}

/// Settles by which proxy `config` leads to its server, if by any.
pub(super) fn settle(
    config: &mut Config,
    named: Option<&str>,
    environment: &Environment,
) -> Result<(), InvalidUri> {
    let url = named.or_else(|| environment.proxy_to(&config.cluster_url));
    config.proxy_url = url.map(str::parse).transpose()?;
    Ok(())
}

/// A proxy's URL without credentials.
pub(super) fn bare(url: &Uri) -> Uri {
    let mut parts = url.clone().into_parts();
    let authority = parts.authority.as_ref().and_then(|all| all.as_str().rsplit_once('@')?.1.parse().ok());
    parts.authority = authority.or(parts.authority);
    Uri::from_parts(parts).unwrap_or_default()
}

/// A proxy, and who we are to it.
#[derive(Clone, Debug)]
pub(super) struct Proxy {
    url: Uri,
    basic: Option<HeaderValue>,
    user: Option<(String, String)>,
}

impl Proxy {
    /// At this URL; `None` if it is of no kind that we know. Without a scheme it is one of HTTP.
    pub(super) fn at(url: &Uri) -> Option<Self> {
        let matcher = Matcher::builder().all(url.to_string()).build();
        let found = matcher.intercept(&Uri::from_static("https://server"))?;
        let user = found.raw_auth().map(|(user, password)| (user.to_owned(), password.to_owned()));
        let basic = found.basic_auth().cloned();
        Some(Self { url: with_socks_port(found.uri().clone()), basic, user })
    }

    /// What it speaks: `http`, `https`, `socks5`, and others that we do not.
    pub(super) fn scheme(&self) -> &str {
        self.url.scheme_str().unwrap_or_default()
    }

    /// Connections through it by CONNECT; those to it are made by `connector`.
    pub(super) fn tunnel<C>(self, connector: C) -> Tunnel<C> {
        let tunnel = Tunnel::new(self.url, connector);
        match self.basic {
            Some(basic) => tunnel.with_auth(basic),
            None => tunnel,
        }
    }

    /// Connections through it by SOCKS; it resolves the server's name, as for kubectl.
    pub(super) fn socks<C>(self, connector: C) -> SocksV5<C> {
        let socks = SocksV5::new(self.url, connector);
        match self.user {
            Some((user, password)) => socks.with_auth(user, password),
            None => socks,
        }
    }
}

fn with_socks_port(url: Uri) -> Uri {
    let is_socks = url.scheme_str().is_some_and(|scheme| scheme.starts_with("socks"));
    if !is_socks || url.port().is_some() {
        return url;
    }
    let authority: Option<Authority> =
        url.host().and_then(|host| format!("{host}:{SOCKS_PORT}").parse().ok());
    let mut parts = url.clone().into_parts();
    parts.authority = authority;
    parts.path_and_query = Some(PathAndQuery::from_static("/"));
    Uri::from_parts(parts).unwrap_or(url)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn environment(none: &str) -> Environment {
        Environment { https: "http://secure:1".to_owned(), http: "plain:2".to_owned(), none: none.to_owned() }
    }

    fn is_direct(none: &str, server: &str) -> bool {
        environment(none).proxy_to(&server.parse().unwrap()).is_none()
    }

    #[test]
    fn scheme_of_the_server_chooses_the_proxy_and_this_host_needs_none() {
        let environment = environment("");
        let to = |server: &str| environment.proxy_to(&server.parse().unwrap()).map(str::to_owned);
        assert_eq!(to("https://10.0.0.1:6443").as_deref(), Some("http://secure:1"));
        assert_eq!(to("http://api.example").as_deref(), Some("plain:2"));
        for here in
            ["https://localhost:6443", "https://127.0.0.1:6443", "https://[::1]:6443", "http://LOCALHOST"]
        {
            assert_eq!(to(here), None, "{here}");
        }
        assert_eq!(Environment::default().proxy_to(&Uri::from_static("https://10.0.0.1")), None);
    }

    /// As golang.org/x/net/http/httpproxy, which kubectl asks.
    #[test]
    fn no_proxy_names_hosts_addresses_and_networks() {
        for (none, server) in [
            ("*", "https://api.example"),
            ("api.example", "https://api.example:6443"),
            ("example", "https://api.example"),
            (".example", "https://api.example"),
            ("*.example", "https://api.example"),
            ("API.Example", "https://api.example."),
            ("x, ,api.example:6443,", "https://api.example:6443"),
            ("api.example:443", "https://api.example"),
            ("10.0.0.0/8", "https://10.1.2.3:6443"),
            ("10.1.2.3", "https://10.1.2.3:6443"),
            ("10.1.2.3:6443", "https://10.1.2.3:6443"),
            ("fd00::/8", "https://[fd00::1]:6443"),
            ("fd00::1", "https://[fd00::1]:6443"),
            ("[fd00::1]:6443", "https://[fd00::1]:6443"),
            ("[fd00::1]", "https://[fd00::1]:6443"),
        ] {
            assert!(is_direct(none, server), "{none:?} names {server}");
        }
        for (none, server) in [
            ("", "https://api.example"),
            (" , ", "https://api.example"),
            (".", "https://api.example"),
            (".api.example", "https://api.example"),
            ("*.api.example", "https://api.example"),
            ("pi.example", "https://api.example"),
            ("api.example:443", "https://api.example:6443"),
            ("10.1.2.3:443", "https://10.1.2.3:6443"),
            ("10.0.0.0/8", "https://11.1.2.3:6443"),
            // Not looked up.
            ("10.0.0.0/8", "https://api.example"),
            ("secure", "https://api.example"),
        ] {
            assert!(!is_direct(none, server), "{none:?} does not name {server}");
        }
    }

    #[test]
    fn kinds_and_credentials_of_proxies_are_read_from_their_urls() {
        let at = |url: &str| Proxy::at(&url.parse().unwrap());
        let proxy = at("proxy.example:3128").unwrap();
        assert_eq!((proxy.scheme(), &proxy.basic, &proxy.user), ("http", &None, &None));
        let proxy = at("http://user:pa%40ss@proxy.example").unwrap();
        assert_eq!(proxy.basic.unwrap(), "Basic dXNlcjpwYUBzcw==");
        assert_eq!(proxy.url.host(), Some("proxy.example"));
        let proxy = at("socks5://user:pass@[fd00::1]").unwrap();
        assert_eq!((proxy.scheme(), proxy.url.port_u16()), ("socks5", Some(1080)));
        assert_eq!(proxy.user, Some(("user".to_owned(), "pass".to_owned())));
        assert!(at("ftp://proxy.example").is_none());
        let bare = bare(&"http://user:pass@proxy.example:3128/".parse().unwrap());
        assert_eq!(bare.to_string(), "http://proxy.example:3128/");
    }
}
