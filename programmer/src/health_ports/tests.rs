//! Real listeners on loopback, asked as load balancers ask them.

use std::time::Duration;

use fairlead_objects::Family;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::mpsc,
};

use super::*;

struct Bench {
    servers: HealthPortServers,
    health: Arc<Mutex<Health>>,
    notices: mpsc::Receiver<Notice>,
}

fn bench() -> Bench {
    let health = Arc::new(Mutex::new(Health::new(Duration::from_secs(30))));
    let (events, notices) = Events::new();
    Bench { servers: HealthPortServers::new(Arc::clone(&health), events), health, notices }
}

fn wanted(port: u16, endpoints: usize) -> HealthPorts {
    HealthPorts {
        addresses: vec![IpAddr::from([127, 0, 0, 1])],
        services: [(ServiceKey::new("ns1", "svc1"), HealthPort { port, endpoints })].into(),
    }
}

/// A port that is free now.
async fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port()
}

/// Status, sorted headers but for the date, and body.
async fn ask(port: u16, request: &str) -> (String, Vec<String>, String) {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
    let text = format!("{request} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    stream.write_all(text.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let mut lines = head.split("\r\n");
    let status = lines.next().unwrap().to_owned();
    let left_out = |line: &&str| !line.starts_with("date:") && !line.starts_with("connection:");
    let mut headers: Vec<_> = lines.map(str::to_owned).filter(|line| left_out(&line.as_str())).collect();
    headers.sort();
    (status, headers, body.to_owned())
}

fn headers(length: usize, weight: usize) -> Vec<String> {
    vec![
        format!("content-length: {length}"),
        "content-type: application/json".to_owned(),
        "x-content-type-options: nosniff".to_owned(),
        format!("x-load-balancing-endpoint-weight: {weight}"),
    ]
}

#[tokio::test]
async fn answers_are_those_of_kube_proxy() {
    let mut bench = bench();
    let port = free_port().await;
    assert!(bench.servers.reconcile(&wanted(port, 0)));
    let body = "{\n\t\"service\": {\n\t\t\"namespace\": \"ns1\",\n\t\t\"name\": \"svc1\"\n\t},\n\t\
                \"localEndpoints\": 0,\n\t\"serviceProxyHealthy\": true\n}";
    assert_eq!(
        ask(port, "GET /").await,
        ("HTTP/1.1 503 Service Unavailable".to_owned(), headers(111, 0), body.to_owned())
    );

    assert!(bench.servers.reconcile(&wanted(port, 3)));
    let three = body.replace("Endpoints\": 0", "Endpoints\": 3");
    for request in ["GET /any/path", "POST /", "DELETE /x"] {
        assert_eq!(ask(port, request).await, ("HTTP/1.1 200 OK".to_owned(), headers(111, 3), three.clone()));
    }

    let long_ago = Timestamp::now() - Duration::from_secs(61);
    bench.health.lock().updated(Family::V4, long_ago);
    bench.health.lock().queued(Family::V4, long_ago);
    assert_eq!(
        ask(port, "GET /").await,
        (
            "HTTP/1.1 503 Service Unavailable".to_owned(),
            headers(112, 3),
            three.replace("Healthy\": true", "Healthy\": false")
        )
    );
}

#[tokio::test]
async fn port_moves_and_closes_with_its_service() {
    let mut bench = bench();
    let (first, second) = (free_port().await, free_port().await);
    assert!(bench.servers.reconcile(&wanted(first, 1)));
    assert!(bench.servers.reconcile(&wanted(second, 1)));
    assert!(ask(second, "GET /").await.0.contains("200"));
    until_closed(first).await;
    assert!(bench.servers.reconcile(&HealthPorts::default()));
    until_closed(second).await;
}

async fn until_closed(port: u16) {
    let closed = async {
        while TcpStream::connect(("127.0.0.1", port)).await.is_ok() {
            sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), closed).await.unwrap();
}

#[tokio::test]
async fn one_taken_address_closes_all_of_the_service_and_is_told_once() {
    let mut bench = bench();
    let taken = TcpListener::bind("127.0.0.2:0").await.unwrap();
    let port = taken.local_addr().unwrap().port();
    let mut wanted = wanted(port, 1);
    wanted.addresses.push(IpAddr::from([127, 0, 0, 2]));
    assert!(!bench.servers.reconcile(&wanted));
    assert!(!bench.servers.reconcile(&wanted));
    assert!(TcpStream::connect(("127.0.0.1", port)).await.is_err());
    let notice = bench.notices.try_recv().unwrap();
    assert_eq!((notice.reason, notice.action), ("FailedToStartServiceHealthcheck", "Listen"));
    assert!(bench.notices.try_recv().is_err());
    drop(taken);
    assert!(bench.servers.reconcile(&wanted));
    assert!(ask(port, "GET /").await.0.contains("200"));
}

#[tokio::test]
async fn taken_port_is_tried_again_without_a_new_sync() {
    let Bench { servers, .. } = bench();
    let taken = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = taken.local_addr().unwrap().port();
    let (_sender, receiver) = watch::channel(wanted(port, 1));
    let shutdown = CancellationToken::new();
    let task = tokio::spawn(servers.follow(receiver, shutdown.clone()));
    sleep(Duration::from_millis(50)).await;
    drop(taken);
    let open = async {
        while TcpStream::connect(("127.0.0.1", port)).await.is_err() {
            sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), open).await.unwrap();
    shutdown.cancel();
    task.await.unwrap();
}
