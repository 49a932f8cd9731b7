//! Clients of the API server, from flags.
//!
//! Invariants: nothing here talks to the network; a client that comes out of here may still find the server unreachable,
//! which is for its users to survive. No client retries by itself: whoever asks knows better when to ask again. A connection
//! whose other end has vanished is given up within half a minute, also when nothing is to be sent: a watch on it would be
//! silent for ever.

mod proxy;

use std::{path::PathBuf, time::Duration};

use axum::{
    BoxError,
    http::{HeaderValue, Request, Response, Uri, header::USER_AGENT},
};
use clap::{
    Args,
    builder::{OsStringValueParser, TypedValueParser as _},
};
use hyper::{
    body::Incoming,
    rt::{Read, Write},
};
use hyper_timeout::TimeoutConnector;
use hyper_util::{
    client::legacy::{
        self,
        connect::{Connection, HttpConnector},
    },
    rt::TokioExecutor,
};
use kube::{
    Client, Config,
    client::{Body, ClientBuilder, ConfigExt as _},
    config::{KubeConfigOptions, Kubeconfig, KubeconfigError},
};
use serde::Serialize;
use tower::{
    Layer as _, Service, ServiceExt as _,
    util::{BoxCloneSyncService, option_layer},
};

use self::proxy::{Environment, Proxy};
use crate::{failure, pace::PaceLayer, throttle::Throttle};

/// How long connecting may take.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// How long the server may leave unacknowledged what was sent, before the connection is given up.
const UNACKNOWLEDGED: Duration = Duration::from_secs(20);
/// How long the kernel may need to get a packet through that was lost once.
const PACKET_LOST: Duration = Duration::from_secs(1);
/// How long a connection is silent before the kernel asks whether the other end is still there.
const SILENCE: Duration = Duration::from_secs(10);
/// How often it asks then, until [`UNACKNOWLEDGED`] has passed.
const AGAIN: Duration = Duration::from_secs(5);

/// Set by the kubelet in every container.
const IN_CLUSTER: &str = "KUBERNETES_SERVICE_HOST";

/// Flags of the connection to the API server.
#[derive(Args, Clone, Debug, Default, Serialize)]
#[serde(rename_all = "kebab-case")]
#[command(next_help_heading = "API server")]
pub struct ClientFlags {
    /// File with the address and credentials of the API server. Without it: the Pod's service account, else $KUBECONFIG,
    /// else ~/.kube/config
    #[arg(long, value_name = "FILE", value_parser = OsStringValueParser::new().map(PathBuf::from))]
    pub kubeconfig: Option<PathBuf>,

    /// URL of the API server, overriding the one in the kubeconfig
    #[arg(long, value_name = "URL")]
    pub master: Option<String>,

    /// Requests per second that may be written to the API server on average; 0 means no limit of our own (API Priority
    /// and Fairness protects the server)
    #[arg(long, value_name = "NUMBER", default_value_t = 0.0)]
    pub kube_api_qps: f64,

    /// Requests that may be written at once before --kube-api-qps applies
    #[arg(long, value_name = "NUMBER", default_value_t = 30)]
    pub kube_api_burst: u32,
}

/// Why no client could be made. Every message is one line: what, where, what to do.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The kubeconfig file cannot be read or does not parse.
    #[error("cannot use kubeconfig {}: {reason}; give a readable kubeconfig with --kubeconfig", path.display())]
    File {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// Neither a file nor a service account.
    #[error(
        "no API server configured: {reason}; give one with --kubeconfig or --master, or run in a Pod with a service account"
    )]
    Missing {
        /// What was tried.
        reason: String,
    },
    /// `--master` is not a URL.
    #[error("--master {url:?} is not a URL: {reason}; expected e.g. https://10.0.0.1:6443")]
    Master {
        /// What was given.
        url: String,
        /// What is wrong with it.
        reason: String,
    },
    /// Certificates or credentials cannot be used.
    #[error(
        "cannot set up the connection to {server}: {reason}; check certificates and credentials in the kubeconfig"
    )]
    Setup {
        /// Which server.
        server: String,
        /// What is wrong.
        reason: String,
    },
}

/// Where the API server is, and clients for it.
#[derive(Clone)]
pub struct Clients {
    config: Config,
    /// For lists and watches. A watch that the server closes again and again is resumed at a growing distance.
    pub read: Client,
    /// For writes. Its callers set their own timeouts, and go through a [`Throttle`] first.
    pub write: Client,
}

impl ClientFlags {
    /// Makes clients that call themselves `agent` (`fairlead-controller/0.1.0`). Must run within a tokio runtime.
    pub async fn clients(&self, agent: &str) -> Result<Clients, ClientError> {
        let mut config = self.config().await?;
        config.default_retry = false;
        config.connect_timeout = Some(CONNECT_TIMEOUT);
        if let Ok(agent) = HeaderValue::from_str(agent) {
            config.headers.push((USER_AGENT, agent));
        }
        // A watch that the server closes again and again is not to be resumed in a busy loop.
        let read = connect(config.clone(), UNACKNOWLEDGED)?.with_layer(&PaceLayer).build();
        let write = connect(config.clone(), UNACKNOWLEDGED)?.build();
        Ok(Clients { config, read, write })
    }

    /// The limit that the flags ask for.
    pub fn throttle(&self) -> Throttle {
        Throttle::new(self.kube_api_qps, self.kube_api_burst)
    }

    async fn config(&self) -> Result<Config, ClientError> {
        // Empty text is no value, as in Kubernetes' own programs.
        let master = self.master.as_deref().filter(|url| !url.is_empty()).map(parse_master).transpose()?;
        let kubeconfig = self.kubeconfig.as_ref().filter(|path| !path.as_os_str().is_empty());
        let missing = |error: KubeconfigError| ClientError::Missing { reason: failure::chain(&error) };
        match (kubeconfig, master) {
            (Some(path), master) => from_file(path, master).await,
            (None, Some(url)) => {
                let mut config = Config::new(url);
                let settled = proxy::settle(&mut config, None, &Environment::here());
                settled.map_err(KubeconfigError::ParseProxyUrl).map_err(missing)?;
                Ok(config)
            }
            (None, None) if std::env::var_os(IN_CLUSTER).is_some() => {
                Config::incluster().map_err(|error| ClientError::Missing { reason: failure::chain(&error) })
            }
            (None, None) => {
                let kubeconfig = Kubeconfig::read().map_err(missing)?;
                configuration(kubeconfig, &KubeConfigOptions::default(), None).await.map_err(missing)
            }
        }
    }
}

impl Clients {
    /// The server's URL, for messages.
    pub fn server(&self) -> String {
        place(&self.config)
    }

    /// A client whose requests fail when no answer arrives within `timeout`; not for watches.
    pub fn impatient(&self, timeout: Duration) -> Result<Client, ClientError> {
        let mut config = self.config.clone();
        config.connect_timeout = Some(timeout);
        config.read_timeout = Some(timeout);
        // Else the time that a pooled connection sat idle would count, too.
        config.reset_reader_on_write = true;
        Ok(connect(config, timeout)?.build())
    }

    /// A client for writes that may not arrive late: what the server has not acknowledged within `time` is dropped, by the
    /// kernel too, even when the network comes back later. Less than a second is a second: a lost packet takes that long.
    pub fn prompt(&self, time: Duration) -> Result<Client, ClientError> {
        Ok(connect(self.config.clone(), time.clamp(PACKET_LOST, UNACKNOWLEDGED))?.build())
    }
}

/// What a kubeconfig comes to: its server, or another one, and the proxy on the way there.
pub async fn configuration(
    kubeconfig: Kubeconfig,
    options: &KubeConfigOptions,
    server: Option<Uri>,
) -> Result<Config, KubeconfigError> {
    let named = proxy::named(&kubeconfig, options.context.as_deref());
    let mut config = Config::from_custom_kubeconfig(kubeconfig, options).await?;
    if let Some(server) = server {
        config.cluster_url = server;
    }
    proxy::settle(&mut config, named.as_deref(), &Environment::here())
        .map_err(KubeconfigError::ParseProxyUrl)?;
    Ok(config)
}

/// A client for a configuration, which says how long it waits.
pub fn client(config: Config) -> kube::Result<Client> {
    let stack = stack(&config, UNACKNOWLEDGED)?;
    Ok(ClientBuilder::new(stack, config.default_namespace).build())
}

/// Where requests go, for messages.
pub fn place(config: &Config) -> String {
    let server = &config.cluster_url;
    match &config.proxy_url {
        Some(url) => format!("{server} through the proxy {}", proxy::bare(url)),
        None => server.to_string(),
    }
}

type Stack = BoxCloneSyncService<Request<Body>, Response<Incoming>, BoxError>;

fn connect(config: Config, unacknowledged: Duration) -> Result<ClientBuilder<Stack>, ClientError> {
    let server = place(&config);
    stack(&config, unacknowledged)
        .map(|stack| ClientBuilder::new(stack, config.default_namespace))
        .map_err(|error| unusable(server, &error))
}

/// What kube makes of a configuration, on sockets of our own, through the proxy that it names.
fn stack(config: &Config, unacknowledged: Duration) -> kube::Result<Stack> {
    let mut sockets = HttpConnector::new();
    sockets.enforce_http(false);
    sockets.set_nodelay(true);
    sockets.set_tcp_user_timeout(Some(unacknowledged));
    sockets.set_keepalive(Some(SILENCE));
    sockets.set_keepalive_interval(Some(AGAIN));
    let Some(url) = &config.proxy_url else { return over(config, sockets) };
    let unsupported = || kube::Error::ProxyProtocolUnsupported { proxy_url: Box::new(proxy::bare(url)) };
    let proxy = Proxy::at(url).ok_or_else(unsupported)?;
    match proxy.scheme() {
        "http" => over(config, proxy.tunnel(sockets)),
        "https" => {
            // What the server is to be called is no name of the proxy.
            let mut to_proxy = config.clone();
            to_proxy.tls_server_name = None;
            over(config, proxy.tunnel(to_proxy.rustls_https_connector_with_connector(sockets)?))
        }
        "socks5" | "socks5h" => over(config, proxy.socks(sockets)),
        _ => Err(unsupported()),
    }
}

/// The same on any connections.
fn over<C>(config: &Config, connections: C) -> kube::Result<Stack>
where
    C: Service<Uri> + Clone + Send + Sync + 'static,
    C::Response: Connection + Read + Write + Send + Unpin + 'static,
    C::Future: Send + 'static,
    C::Error: Into<BoxError>,
{
    let mut connector = TimeoutConnector::new(config.rustls_https_connector_with_connector(connections)?);
    connector.set_connect_timeout(config.connect_timeout);
    connector.set_read_timeout(config.read_timeout);
    connector.set_write_timeout(config.write_timeout);
    connector.set_reset_reader_on_write(config.reset_reader_on_write);
    let client: legacy::Client<_, Body> = legacy::Client::builder(TokioExecutor::new()).build(connector);
    let headers = config.extra_headers_layer()?.layer(client.map_err(BoxError::from));
    let authenticated = option_layer(config.auth_layer()?).layer(headers);
    let service = config.base_uri_layer().layer(authenticated);
    Ok(BoxCloneSyncService::new(service))
}

fn unusable(server: String, error: &kube::Error) -> ClientError {
    ClientError::Setup { server, reason: failure::sentence(error) }
}

async fn from_file(path: &PathBuf, server: Option<Uri>) -> Result<Config, ClientError> {
    let error =
        |error: KubeconfigError| ClientError::File { path: path.clone(), reason: failure::chain(&error) };
    let kubeconfig = Kubeconfig::read_from(path).map_err(error)?;
    configuration(kubeconfig, &KubeConfigOptions::default(), server).await.map_err(error)
}

fn parse_master(url: &str) -> Result<Uri, ClientError> {
    let error = |reason: String| ClientError::Master { url: url.to_owned(), reason };
    let uri: Uri = url.parse().map_err(|e: axum::http::uri::InvalidUri| error(e.to_string()))?;
    match uri.scheme_str() {
        Some("http" | "https") if uri.host().is_some() => Ok(uri),
        _ => Err(error("no http or https scheme".to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn missing_kubeconfig_is_named_with_a_remedy() {
        let flags = ClientFlags { kubeconfig: Some("/nonexistent/config".into()), ..ClientFlags::default() };
        let error = flags.clients("test/1").await.err().unwrap().to_string();
        assert!(error.contains("/nonexistent/config") && error.contains("--kubeconfig"), "{error}");
        assert_eq!(error.lines().count(), 1);
    }

    #[tokio::test]
    async fn master_that_is_no_url_is_refused() {
        let flags = ClientFlags { master: Some("localhost:6443".to_owned()), ..ClientFlags::default() };
        let error = flags.clients("test/1").await.err().unwrap().to_string();
        assert!(error.contains("--master") && error.contains("localhost:6443"), "{error}");
    }

    #[tokio::test]
    async fn master_alone_is_enough() {
        let none = ClientFlags {
            kubeconfig: Some(PathBuf::new()),
            master: Some("http://127.0.0.1:1".to_owned()),
            ..ClientFlags::default()
        };
        assert!(none.clients("test/1").await.is_ok());
        let flags = ClientFlags { master: Some("http://127.0.0.1:1".to_owned()), ..ClientFlags::default() };
        assert_eq!(flags.clients("test/1").await.unwrap().server(), "http://127.0.0.1:1/");
    }
}
