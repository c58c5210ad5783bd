//! The way out of a network that has only one: proxies and certificates of your own, by the variables that the Python
//! library's HTTP client reads.

use std::net::Ipv4Addr;

use ureq::http::Uri;
use ureq::tls::{PemItem, RootCerts, parse_pem};

type Get<'a> = &'a dyn Fn(&str) -> Option<String>;

/// Returns the variable `name`, in small letters first; set to nothing it counts as not set.
fn variable(get: Get, name: &str) -> Option<String> {
    let given = [name.to_lowercase(), name.to_uppercase()];
    let mut values = given.iter().filter_map(|name| get(name));
    values
        .find(|text| !text.trim().is_empty())
        .map(|text| text.trim().to_owned())
}

/// Returns the proxy for addresses of `scheme`: `HTTPS_PROXY` or `HTTP_PROXY`, else `ALL_PROXY`.
///
/// # Errors
/// When the variable holds no address of a proxy that can be used. What it holds is not repeated: it may be a password.
pub(crate) fn proxy_for(scheme: &str, get: Get) -> Result<Option<ureq::Proxy>, String> {
    let names = [format!("{scheme}_proxy"), "all_proxy".to_owned()];
    let found = names
        .iter()
        .find_map(|name| Some((name.to_uppercase(), variable(get, name)?)));
    let Some((name, text)) = found else {
        return Ok(None);
    };
    if text.starts_with("socks") {
        return Err(format!(
            "{name} is set to a SOCKS proxy, but Cloze supports only HTTP proxies"
        ));
    }
    match ureq::Proxy::new(&text) {
        Ok(proxy) => Ok(Some(proxy)),
        Err(_) => Err(format!(
            "{name} is not the URL of a proxy; write it like http://proxy.example:8080"
        )),
    }
}

/// The hosts that are reached without a proxy: `NO_PROXY`.
#[derive(Clone, Debug, Default)]
pub(crate) struct Exempt(Vec<String>);

impl Exempt {
    pub(crate) fn from_variables(get: Get) -> Self {
        let text = variable(get, "no_proxy").unwrap_or_default();
        let entries = text.split(',').map(|entry| entry.trim().to_lowercase());
        Self(entries.filter(|entry| !entry.is_empty()).collect())
    }

    /// Returns whether `url` is reached without a proxy: its host, domain or network is listed.
    pub(crate) fn covers(&self, url: &str) -> bool {
        let Ok(uri) = url.parse::<Uri>() else {
            return false;
        };
        let host = uri.host().unwrap_or_default().to_lowercase();
        let with_port = uri.port().map(|port| format!("{host}:{port}"));
        self.0.iter().any(|entry| {
            let name = entry.trim_start_matches('*').trim_start_matches('.');
            let under = |host: &str| {
                let before = host.strip_suffix(name);
                before.is_some_and(|before| before.is_empty() || before.ends_with('.'))
            };
            entry == "*"
                || (!name.is_empty() && (under(&host) || with_port.as_deref().is_some_and(under)))
                || in_network(&host, entry)
        })
    }
}

/// Returns whether `host` is an address in `network`, written like `10.0.0.0/8`.
fn in_network(host: &str, network: &str) -> bool {
    let parse = || {
        let (base, bits) = network.split_once('/')?;
        let (base, host): (Ipv4Addr, Ipv4Addr) = (base.parse().ok()?, host.parse().ok()?);
        let bits: u32 = bits.parse().ok().filter(|&bits| bits <= 32)?;
        let mask = u32::MAX.checked_shl(32 - bits).unwrap_or(0);
        Some(base.to_bits() & mask == host.to_bits() & mask)
    };
    parse().unwrap_or(false)
}

/// Returns the certificates that a company's proxy needs, from the file that the first of these variables names; `None`
/// for the usual ones.
///
/// # Errors
/// When that file can't be read or holds none: the usual ones in their place would only fail later.
pub(crate) fn own_certificates(get: Get) -> Result<Option<RootCerts>, String> {
    let names = ["REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE"];
    let found = names
        .iter()
        .find_map(|name| Some((name, get(name).filter(|path| !path.is_empty())?)));
    let Some((name, path)) = found else {
        return Ok(None);
    };
    let pem = std::fs::read(&path)
        .map_err(|e| format!("{name} is set to {path}, which can't be read: {e}"))?;
    let certificates: Vec<_> = parse_pem(&pem)
        .filter_map(|item| match item {
            Ok(PemItem::Certificate(certificate)) => Some(certificate),
            _ => None,
        })
        .collect();
    if certificates.is_empty() {
        return Err(format!(
            "{name} is set to {path}, which contains no certificate"
        ));
    }
    Ok(Some(RootCerts::new_with_certs(&certificates)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with<'a>(variables: &'a [(&'a str, &'a str)]) -> impl Fn(&str) -> Option<String> + 'a {
        move |name| {
            let found = variables.iter().find(|(known, _)| *known == name);
            found.map(|(_, value)| (*value).to_owned())
        }
    }

    #[test]
    fn each_scheme_has_its_proxy() {
        let host = |scheme: &str, variables: &[(&str, &str)]| {
            let proxy = proxy_for(scheme, &with(variables)).unwrap();
            proxy.map(|proxy| proxy.host().to_owned())
        };
        let both = [("HTTPS_PROXY", "http://a:1"), ("http_proxy", "b:2")];
        assert_eq!(host("https", &both).as_deref(), Some("a"));
        assert_eq!(host("http", &both).as_deref(), Some("b"));
        assert_eq!(host("http", &both[..1]), None);
        let all = [("ALL_PROXY", "http://c:3"), ("https_proxy", "http://a:1")];
        assert_eq!(host("http", &all).as_deref(), Some("c"));
        assert_eq!(host("https", &all).as_deref(), Some("a"));
        assert_eq!(host("https", &[("HTTPS_PROXY", "")]), None);
    }

    #[test]
    fn an_unusable_proxy_is_reported_without_its_password() {
        for text in ["socks5://me:secret@a:1", "http://", "me:secret@"] {
            let variables = [("HTTPS_PROXY", text)];
            let message = proxy_for("https", &with(&variables)).unwrap_err();
            assert!(
                message.contains("HTTPS_PROXY") && !message.contains("secret"),
                "{message}"
            );
        }
    }

    #[test]
    fn hosts_are_exempt_by_name_domain_port_and_network() {
        let covers = |list: &str, url: &str| {
            let variables = [("NO_PROXY", list)];
            Exempt::from_variables(&with(&variables)).covers(url)
        };
        let list = "localhost, .hub.example,other.example:8080,10.0.0.0/8,192.168.1.7";
        for url in [
            "http://localhost:3000/x",
            "https://hub.example/x",
            "https://cdn.HUB.example/x",
            "http://other.example:8080",
            "http://10.20.30.40/x",
            "http://192.168.1.7:80",
        ] {
            assert!(covers(list, url), "{url}");
        }
        for url in [
            "https://nothub.example/x",
            "http://other.example/x",
            "http://11.0.0.1/x",
            "http://192.168.1.70",
            "https://localhost.example",
        ] {
            assert!(!covers(list, url), "{url}");
        }
        assert!(covers("*", "https://hub.example"));
        assert!(!covers("", "https://hub.example"));
    }

    #[test]
    fn a_file_without_certificates_is_reported() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("ca.pem");
        let text = path.to_str().unwrap().to_owned();
        let get = |name: &str| (name == "SSL_CERT_FILE").then(|| text.clone());
        let message = own_certificates(&get).unwrap_err();
        assert!(
            message.contains("can't be read") && message.contains(&text),
            "{message}"
        );
        std::fs::write(&path, "no certificate").unwrap();
        let message = own_certificates(&get).unwrap_err();
        assert!(message.contains("contains no certificate"), "{message}");
        assert!(own_certificates(&|_| None).unwrap().is_none());
    }
}
