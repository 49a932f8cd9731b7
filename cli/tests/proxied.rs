//! `fairlead` and a cluster behind a proxy: the program itself, with proxies and an API server on loopback.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::{
    env, fs,
    io::{self, BufRead as _, BufReader, Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    path::PathBuf,
    process::{Command, Output},
    sync::{Arc, Mutex},
    thread,
};

/// Answers each connection in a thread of its own, as long as the process lives.
fn serve(answer: impl Fn(TcpStream) -> io::Result<()> + Send + Sync + 'static) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let answer = Arc::new(answer);
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let answer = Arc::clone(&answer);
            thread::spawn(move || answer(stream));
        }
    });
    address
}

/// The lines of a head, and where its body begins.
fn head(stream: &mut impl io::BufRead) -> io::Result<Vec<String>> {
    let lines = stream.lines().take_while(|line| line.as_ref().is_ok_and(|line| !line.is_empty()));
    lines.collect()
}

/// An API server that has nothing, of whatever it is asked for.
fn api_server() -> SocketAddr {
    serve(|mut stream| {
        let mut requests = BufReader::new(stream.try_clone()?);
        while !head(&mut requests)?.is_empty() {
            let body =
                r#"{"kind": "List", "apiVersion": "v1", "metadata": {"resourceVersion": "1"}, "items": []}"#;
            write!(
                stream,
                "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
                body.len()
            )?;
        }
        Ok(())
    })
}

/// What a proxy was asked for.
type Asked = Arc<Mutex<Vec<String>>>;

/// Carries both ways until both ends have said all.
fn carry(client: TcpStream, server: TcpStream) -> io::Result<()> {
    let (mut from, mut to) = (client.try_clone()?, server.try_clone()?);
    let there = thread::spawn(move || {
        drop(io::copy(&mut from, &mut to));
        to.shutdown(Shutdown::Write)
    });
    let (mut from, mut to) = (server, client);
    drop(io::copy(&mut from, &mut to));
    drop(to.shutdown(Shutdown::Write));
    drop(there.join());
    Ok(())
}

/// A proxy of HTTP that leads to `server` whatever it is asked for, or refuses.
fn http_proxy(server: Option<SocketAddr>) -> (SocketAddr, Asked) {
    let asked = Asked::default();
    let seen = Arc::clone(&asked);
    let address = serve(move |mut stream| {
        // A client says nothing more before it is answered.
        let lines = head(&mut BufReader::new(stream.try_clone()?))?;
        let wanted = |line: &&String| line.starts_with("CONNECT ") || line.starts_with("Proxy-Authorization");
        let said: Vec<_> = lines.iter().filter(wanted).cloned().collect();
        seen.lock().unwrap().push(said.join("; "));
        let Some(server) = server else { return stream.write_all(b"HTTP/1.1 403 Forbidden\r\n\r\n") };
        let server = TcpStream::connect(server)?;
        stream.write_all(b"HTTP/1.1 200 Connection established\r\n\r\n")?;
        carry(stream, server)
    });
    (address, asked)
}

/// The same of SOCKS 5.
fn socks_proxy(server: SocketAddr) -> (SocketAddr, Asked) {
    let asked = Asked::default();
    let seen = Arc::clone(&asked);
    let address = serve(move |mut stream| {
        let mut greeting = [0; 3];
        stream.read_exact(&mut greeting)?;
        stream.write_all(&[5, 0])?;
        // Version, command, reserved, a name, its length.
        let mut request = [0; 5];
        stream.read_exact(&mut request)?;
        let mut target = vec![0; usize::from(request[4]) + 2];
        stream.read_exact(&mut target)?;
        let (name, port) = target.split_at(target.len() - 2);
        let port = u16::from_be_bytes(port.try_into().unwrap());
        seen.lock().unwrap().push(format!("{}:{port}", String::from_utf8_lossy(name)));
        stream.write_all(&[5, 0, 0, 1, 0, 0, 0, 0, 0, 0])?;
        carry(stream, TcpStream::connect(server)?)
    });
    (address, asked)
}

/// A name that no resolver is asked about, because a part of it is too long: only a proxy can know it.
fn elsewhere() -> String {
    format!("api.{}.example", "x".repeat(64))
}

/// A kubeconfig that goes with the test.
struct File(PathBuf);

impl File {
    fn new(name: &str, server: &str, proxy: Option<&str>) -> Self {
        let proxy = proxy.map(|url| format!(", proxy-url: \"{url}\"")).unwrap_or_default();
        let path = env::temp_dir().join(format!("fairlead-proxied-{name}-{}", std::process::id()));
        let text = format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: a\n\
             contexts: [{{name: a, context: {{cluster: a, user: a}}}}]\nusers: [{{name: a, user: {{}}}}]\n\
             clusters: [{{name: a, cluster: {{server: \"{server}\"{proxy}}}}}]\n"
        );
        fs::write(&path, text).unwrap();
        Self(path)
    }

    /// Asks the cluster for everything, in this environment.
    fn ask(&self, environment: &[(&str, String)]) -> Output {
        let mut command = Command::new(env!("CARGO_BIN_EXE_fairlead"));
        command.args(["render", "endpoints", "--kubeconfig"]).arg(&self.0);
        for name in ["HTTPS_PROXY", "https_proxy", "HTTP_PROXY", "http_proxy", "NO_PROXY", "no_proxy"] {
            command.env_remove(name);
        }
        command.envs(environment.iter().map(|(name, value)| (name, value))).output().unwrap()
    }
}

impl Drop for File {
    fn drop(&mut self) {
        drop(fs::remove_file(&self.0));
    }
}

fn assert_answered(output: &Output) {
    assert!(output.status.success(), "{output:?}");
}

/// Everything that was asked for, each once: how many connections there are for it does not matter.
fn said(asked: &Asked) -> Vec<String> {
    let mut said = asked.lock().unwrap().clone();
    said.dedup();
    said
}

#[test]
fn proxy_of_the_kubeconfig_is_used_whatever_the_environment_says() {
    let server = api_server();
    let (proxy, asked) = http_proxy(Some(server));
    let url = format!("http://user:pa%40ss@{proxy}");
    // This host needs no proxy of the environment.
    let file = File::new("named", &format!("http://{server}"), Some(&url));
    assert_answered(
        &file.ask(&[("NO_PROXY", "*".to_owned()), ("HTTP_PROXY", "http://127.0.0.1:1".to_owned())]),
    );
    assert_eq!(
        said(&asked),
        [format!("CONNECT {server} HTTP/1.1; Proxy-Authorization: Basic dXNlcjpwYUBzcw==")]
    );

    let (proxy, asked) = socks_proxy(server);
    let place = format!("{}:6443", elsewhere());
    let file = File::new("socks", &format!("http://{place}"), Some(&format!("socks5://{proxy}")));
    assert_answered(&file.ask(&[]));
    assert_eq!(said(&asked), [place]);
}

#[test]
fn proxy_of_the_environment_leads_to_other_hosts_only() {
    let server = api_server();
    let (proxy, asked) = http_proxy(Some(server));
    let environment = [("http_proxy", proxy.to_string())];
    let place = format!("{}:6443", elsewhere());
    let file = File::new("elsewhere", &format!("http://{place}"), None);
    assert_answered(&file.ask(&environment));
    assert_eq!(said(&asked), [format!("CONNECT {place} HTTP/1.1")]);

    asked.lock().unwrap().clear();
    let file = File::new("here", &format!("http://{server}"), None);
    assert_answered(&file.ask(&environment));
    assert_eq!(said(&asked), [""; 0]);
}

#[test]
fn proxy_that_refuses_is_named_without_credentials() {
    let (proxy, asked) = http_proxy(None);
    // For certificates a name has to be a good one. This is no loopback address, and leads to this host all the same.
    let place = "0.0.0.0:6443";
    let file = File::new("refused", &format!("https://{place}"), None);
    let output = file.ask(&[("HTTPS_PROXY", format!("http://user:secret@{proxy}"))]);
    let told = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{told}");
    assert!(
        told.contains(&format!("{place}/ through the proxy http://{proxy}/ cannot be reached")),
        "{told}"
    );
    assert!(!told.contains("secret"), "{told}");
    assert!(
        said(&asked)[0].starts_with(&format!("CONNECT {place} HTTP/1.1; Proxy-Authorization")),
        "{asked:?}"
    );

    let output = file.ask(&[("HTTPS_PROXY", "ftp://user:secret@proxy.example".to_owned())]);
    let told = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{told}");
    assert!(told.contains("ftp://proxy.example/") && !told.contains("secret"), "{told}");
}
