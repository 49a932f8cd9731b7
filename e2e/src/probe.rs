//! Clients: what happens to a connection or a datagram that is sent from some namespace to some address.
//!
//! Invariant: an outcome is what the client's kernel said, nothing is inferred. "Refused" is a TCP reset or an ICMP
//! "port unreachable", which clients cannot tell apart.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    io::{self, BufRead, BufReader, ErrorKind, Write},
    net::{IpAddr, SocketAddr, TcpStream, UdpSocket},
    time::{Duration, Instant},
};

use anyhow::{Result, ensure};

use crate::{fairness, netns::Netns, servers::Protocol};

/// How long a client waits for an answer. Everything is on one machine: an answer that takes longer does not come.
pub const PATIENCE: Duration = Duration::from_millis(1500);

/// So many unanswered requests in a row say all there is to say.
const ENOUGH_SILENCE: usize = 3;

/// What a server said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Its name: a Pod's, or that of a server outside.
    pub server: String,
    /// The port it was reached on.
    pub port: u16,
    /// The address it saw the request come from.
    pub client: SocketAddr,
}

/// What became of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Somebody answered.
    Answered(Answer),
    /// The address says that nobody listens there (TCP reset or ICMP port unreachable).
    Refused,
    /// Something on the way says that the address cannot be reached.
    Unreachable(String),
    /// Nothing came back.
    TimedOut,
    /// Something else.
    Failed(String),
}

impl Outcome {
    /// The answer, or an error that says what came instead.
    pub fn answer(self) -> Result<Answer> {
        match self {
            Self::Answered(answer) => Ok(answer),
            other => anyhow::bail!("no answer: {other}"),
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Answered(answer) => write!(f, "{} answered, it saw {}", answer.server, answer.client.ip()),
            Self::Refused => f.write_str("connection refused"),
            Self::Unreachable(why) => write!(f, "unreachable: {why}"),
            Self::TimedOut => f.write_str("timed out"),
            Self::Failed(why) => write!(f, "failed: {why}"),
        }
    }
}

/// The time in which something was sent.
#[derive(Clone, Copy, Debug)]
pub struct Span {
    /// Not before this.
    pub from: Instant,
    /// Not after this.
    pub until: Instant,
}

impl Span {
    /// Does a job and takes the time.
    pub fn of<T>(job: impl FnOnce() -> T) -> (T, Self) {
        let from = Instant::now();
        let result = job();
        (result, Self { from, until: Instant::now() })
    }
}

/// What became of many requests.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    /// Each outcome, in order.
    pub outcomes: Vec<Outcome>,
    /// When each was asked for.
    pub(crate) spans: Vec<Span>,
}

impl Tally {
    /// How many requests each server answered.
    pub fn shares(&self) -> BTreeMap<String, u64> {
        let mut shares = BTreeMap::new();
        for answer in self.answers() {
            *shares.entry(answer.server.clone()).or_default() += 1;
        }
        shares
    }

    /// The addresses that requests were seen to come from.
    pub fn clients(&self) -> BTreeSet<IpAddr> {
        self.answers().map(|answer| answer.client.ip()).collect()
    }

    /// The addresses that one server saw.
    pub fn clients_of(&self, server: &str) -> BTreeSet<IpAddr> {
        self.answers().filter(|answer| answer.server == server).map(|answer| answer.client.ip()).collect()
    }

    /// The ports that answered.
    pub fn ports(&self) -> BTreeSet<u16> {
        self.answers().map(|answer| answer.port).collect()
    }

    /// Fails unless every request was answered, by exactly these servers, in fair shares.
    pub fn check_fair(&self, servers: &[&str]) -> Result<()> {
        self.check_answered()?;
        fairness::check(&self.shares(), servers)
    }

    /// Fails unless every request was answered.
    pub fn check_answered(&self) -> Result<()> {
        let lost = self.outcomes.iter().find(|outcome| !matches!(outcome, Outcome::Answered(_)));
        ensure!(lost.is_none(), "not every request was answered: {self}");
        Ok(())
    }

    /// Fails unless every request came to the same end.
    pub fn check_all(&self, end: &Outcome) -> Result<()> {
        ensure!(self.outcomes.iter().all(|outcome| outcome == end), "wanted only `{end}`, got: {self}");
        Ok(())
    }

    fn answers(&self) -> impl Iterator<Item = &Answer> {
        self.outcomes.iter().filter_map(|outcome| match outcome {
            Outcome::Answered(answer) => Some(answer),
            _ => None,
        })
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut counts: BTreeMap<String, usize> = BTreeMap::new();
        for outcome in &self.outcomes {
            *counts.entry(outcome.to_string()).or_default() += 1;
        }
        let parts: Vec<_> = counts.iter().map(|(outcome, count)| format!("{count} x {outcome}")).collect();
        f.write_str(&parts.join("; "))
    }
}

/// A client in a namespace.
#[derive(Clone, Copy, Debug)]
pub struct Client<'a> {
    namespace: &'a Netns,
}

impl<'a> Client<'a> {
    /// A client in this namespace.
    pub fn new(namespace: &'a Netns) -> Self {
        Self { namespace }
    }

    /// Where it is.
    pub fn namespace(&self) -> &'a Netns {
        self.namespace
    }

    /// One request.
    pub fn ask(&self, protocol: Protocol, target: SocketAddr) -> Result<Outcome> {
        self.namespace.run(|| ask(protocol, target, 0))
    }

    /// One datagram from a given source port: two of them belong to one conntrack entry.
    pub fn ask_from(&self, port: u16, target: SocketAddr) -> Result<Outcome> {
        self.namespace.run(|| ask(Protocol::Udp, target, port))
    }

    /// Many requests, one after the other, each from a source port of its own. Ends early when nothing comes back.
    pub fn ask_many(&self, protocol: Protocol, target: SocketAddr, count: usize) -> Result<Tally> {
        self.namespace.run(|| {
            let mut tally = Tally::default();
            let mut silent = 0;
            while tally.outcomes.len() < count && silent < ENOUGH_SILENCE {
                let (outcome, span) = Span::of(|| ask(protocol, target, 0));
                silent = if outcome == Outcome::TimedOut { silent + 1 } else { 0 };
                tally.outcomes.push(outcome);
                tally.spans.push(span);
            }
            tally
        })
    }

    /// One request to each target.
    pub fn ask_each(&self, protocol: Protocol, targets: &[SocketAddr]) -> Result<Tally> {
        self.namespace.run(|| {
            let asked = targets.iter().map(|target| Span::of(|| ask(protocol, *target, 0)));
            let (outcomes, spans) = asked.unzip();
            Tally { outcomes, spans }
        })
    }

    /// Opens a connection that stays open; or says what came instead.
    pub fn connect(&self, target: SocketAddr) -> Result<std::result::Result<Connection, Outcome>> {
        let stream = match self.namespace.run(|| TcpStream::connect_timeout(&target, PATIENCE))? {
            Ok(stream) => stream,
            Err(error) => return Ok(Err(outcome(Err(error)))),
        };
        stream.set_read_timeout(Some(PATIENCE))?;
        Ok(Ok(Connection { reader: BufReader::new(stream) }))
    }
}

/// An open TCP connection to a server.
#[derive(Debug)]
pub struct Connection {
    reader: BufReader<TcpStream>,
}

impl Connection {
    /// The client's end.
    pub fn local(&self) -> Result<SocketAddr> {
        Ok(self.reader.get_ref().local_addr()?)
    }

    /// Asks the server at the other end who it is.
    pub fn ask(&mut self) -> Outcome {
        outcome(self.exchange())
    }

    fn exchange(&mut self) -> io::Result<String> {
        self.reader.get_mut().write_all(b"who\n")?;
        let mut line = String::new();
        self.reader.read_line(&mut line)?;
        Ok(line)
    }
}

fn ask(protocol: Protocol, target: SocketAddr, port: u16) -> Outcome {
    outcome(match protocol {
        Protocol::Tcp => ask_tcp(target),
        Protocol::Udp => ask_udp(target, port),
    })
}

fn ask_tcp(target: SocketAddr) -> io::Result<String> {
    let stream = TcpStream::connect_timeout(&target, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    Connection { reader: BufReader::new(stream) }.exchange()
}

fn ask_udp(target: SocketAddr, port: u16) -> io::Result<String> {
    let any: SocketAddr = if target.is_ipv4() { ([0; 4], port).into() } else { ([0_u16; 8], port).into() };
    let socket = UdpSocket::bind(any)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.connect(target)?;
    exchange(&socket)
}

fn exchange(socket: &UdpSocket) -> io::Result<String> {
    socket.send(b"who\n")?;
    let mut buffer = [0; 256];
    let length = socket.recv(&mut buffer)?;
    Ok(String::from_utf8_lossy(buffer.get(..length).unwrap_or_default()).into_owned())
}

/// One datagram over a connected socket.
pub(crate) fn ask_over(socket: &UdpSocket) -> Outcome {
    outcome(exchange(socket))
}

fn outcome(result: io::Result<String>) -> Outcome {
    match result {
        Ok(line) => parse(&line)
            .map_or_else(|| Outcome::Failed(format!("strange answer {line:?}")), Outcome::Answered),
        Err(error) => match error.kind() {
            ErrorKind::ConnectionRefused => Outcome::Refused,
            ErrorKind::TimedOut | ErrorKind::WouldBlock => Outcome::TimedOut,
            ErrorKind::HostUnreachable | ErrorKind::NetworkUnreachable => {
                Outcome::Unreachable(error.to_string())
            }
            _ => Outcome::Failed(error.to_string()),
        },
    }
}

fn parse(line: &str) -> Option<Answer> {
    let (line, client) = line.trim_end().rsplit_once(' ')?;
    let (server, port) = line.rsplit_once(' ')?;
    Some(Answer { server: server.to_owned(), port: port.parse().ok()?, client: client.parse().ok()? })
}

/// The body of a plain HTTP GET inside a namespace, for health and metrics pages; the status code comes first.
pub fn http_get(namespace: &Netns, address: SocketAddr, path: &str) -> Result<(u16, String)> {
    let text = namespace.run(|| -> io::Result<String> {
        let mut stream = TcpStream::connect_timeout(&address, PATIENCE)?;
        stream.set_read_timeout(Some(Duration::from_secs(5)))?;
        write!(stream, "GET {path} HTTP/1.0\r\nHost: {address}\r\nConnection: close\r\n\r\n")?;
        io::read_to_string(stream)
    })??;
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or((&text, ""));
    let status = head.split(' ').nth(1).and_then(|code| code.parse().ok());
    Ok((status.ok_or_else(|| anyhow::anyhow!("not HTTP: {head:?}"))?, body.to_owned()))
}
