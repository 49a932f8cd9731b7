//! Asking, and records of what the genuine program answered.

#![allow(clippy::unwrap_used, unreachable_pub, dead_code, reason = "each test uses a part of it")]

use std::{
    io::{Read, Write},
    net::TcpStream,
    time::{Duration, Instant},
};

const PATIENCE: Duration = Duration::from_secs(30);

/// A request and its answer.
#[derive(Clone, Debug)]
pub struct Sample {
    pub title: String,
    pub method: String,
    pub port: Option<u16>,
    pub path: String,
    /// A header of the request.
    pub header: String,
    pub answer: Answer,
}

/// An answer, without the headers that every server has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    pub status: String,
    pub headers: Vec<String>,
    pub body: String,
}

impl Answer {
    fn of(status: &str, head: &str, body: &str) -> Self {
        const OF_ANY_SERVER: [&str; 4] = ["date:", "connection:", "content-length:", "transfer-encoding:"];
        let named = |line: &str| {
            let (name, value) = line.split_once(':').unwrap();
            format!("{}:{value}", name.to_lowercase())
        };
        let headers = head.lines().map(named);
        let mut headers: Vec<_> =
            headers.filter(|line| !OF_ANY_SERVER.iter().any(|name| line.starts_with(name))).collect();
        headers.sort();
        Self { status: status.to_owned(), headers, body: body.to_owned() }
    }

    /// With what is another at each run replaced.
    #[must_use]
    pub fn without_times(mut self) -> Self {
        const NEVER: &str = "0001-01-01T00:00:00Z";
        let texts = self.body.split('"').map(|text| {
            let is_time = text.len() >= NEVER.len() && text.ends_with('Z') && text != NEVER;
            if is_time && text.starts_with("20") { "TIME" } else { text }
        });
        self.body = texts.collect::<Vec<_>>().join("\"");
        for header in &mut self.headers {
            if header.starts_with("process-start-time-unix:") {
                "process-start-time-unix: ...".clone_into(header);
            }
        }
        self
    }
}

/// Reads a record: `### title  METHOD url  header`, status, headers, an empty line, the body.
pub fn samples(record: &str) -> Vec<Sample> {
    let blocks = record.split("### ").skip(1);
    blocks.map(|block| sample(block.split_once("<EOF>").unwrap().0)).collect()
}

fn sample(block: &str) -> Sample {
    let (first, rest) = block.split_once('\n').unwrap();
    let (status, rest) = rest.split_once('\n').unwrap();
    let (head, body) = rest.split_once("\n\n").unwrap();
    let parts: Vec<_> = first.split("  ").collect();
    let request =
        parts.iter().position(|part| part.split_once(' ').is_some_and(|(method, _)| is_method(method)));
    let request = request.unwrap();
    let (method, url) = parts[request].split_once(' ').unwrap();
    let place = url.trim_start_matches("http://");
    let (host, path) = place.split_at(place.find('/').unwrap());
    Sample {
        title: parts[..request].join(" "),
        method: method.to_owned(),
        port: host.rsplit(':').next().and_then(|port| port.parse().ok()),
        path: path.to_owned(),
        header: parts.get(request + 1).copied().unwrap_or_default().to_owned(),
        answer: Answer::of(status, head, body),
    }
}

fn is_method(word: &str) -> bool {
    ["GET", "POST", "DELETE"].contains(&word)
}

/// The answer, if there is one.
pub fn ask(port: u16, method: &str, path: &str, header: &str) -> Option<Answer> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
    let header = if header.is_empty() { String::new() } else { format!("{header}\r\n") };
    let request = format!("{method} {path} HTTP/1.1\r\nHost: x\r\n{header}Connection: close\r\n\r\n");
    stream.write_all(request.as_bytes()).ok()?;
    let mut text = String::new();
    stream.read_to_string(&mut text).ok()?;
    let (head, body) = text.split_once("\r\n\r\n")?;
    let (status, head) = head.split_once("\r\n")?;
    let length =
        head.lines().find_map(|line| line.to_lowercase().strip_prefix("content-length: ")?.parse().ok());
    assert!(length.is_none_or(|length: usize| length == body.len()), "{text}");
    Some(Answer::of(status.strip_prefix("HTTP/1.1 ")?, head, body))
}

pub fn get(port: u16, path: &str) -> Option<Answer> {
    ask(port, "GET", path, "")
}

/// Waits until an answer is as wanted.
pub async fn until(port: u16, path: &str, wanted: impl Fn(&Answer) -> bool) -> Answer {
    let start = Instant::now();
    loop {
        let answer = get(port, path);
        if let Some(answer) = answer.clone().filter(&wanted) {
            return answer;
        }
        assert!(start.elapsed() < PATIENCE, "{path} on {port}: {answer:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Waits until a port is closed.
pub async fn until_closed(port: u16) {
    let start = Instant::now();
    while TcpStream::connect(("127.0.0.1", port)).is_ok() {
        assert!(start.elapsed() < PATIENCE, "{port} is still open");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
