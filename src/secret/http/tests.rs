//! The client against a scripted server.

use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;
use crate::message::target::{Authority, Host};
use crate::secret::fake::{FakeServer, Reply, ok, pass, upstream_env};

fn client(total: Duration) -> HttpClient {
    let settings = ClientSettings {
        name: "secrets.test".into(),
        scheme: Scheme::Http,
        ca: None,
        connect: Duration::from_secs(2),
        total,
        addresses: configured_addresses(),
    };
    HttpClient::new(settings, &upstream_env()).unwrap()
}

fn target(url: &str) -> Target {
    let Authority { host, port } = Authority::parse(url.trim_start_matches("http://")).unwrap();
    Target { scheme: Scheme::Http, host, port: port.unwrap() }
}

const LONG: Duration = Duration::from_secs(20);

#[tokio::test]
async fn an_answer_is_whole_and_bounded() {
    let server = FakeServer::start(|asked| match &*asked.line {
        "GET /a?b=c" => ok("hello"),
        "GET /largest" => ok("x".repeat(MAX_BODY)),
        "GET /larger" => ok("x".repeat(MAX_BODY + 1)),
        "GET /moved" => Reply::With(302, "location: /a".to_owned(), String::new()),
        _ => Reply::Answer(404, "CANARY".into()),
    })
    .await;
    let (client, target) = (client(LONG), target(&server.url));
    let get = async |path: &str| {
        let answer = client.send(HttpCall::get(&target, path.into())).await?;
        Ok::<_, HttpError>((answer.status.as_u16(), answer.body.len()))
    };
    assert_eq!(get("/a?b=c").await, Ok((200, 5)));
    assert_eq!(get("/largest").await, Ok((200, MAX_BODY)));
    assert_eq!(get("/larger").await, Err(HttpError::TooLarge));
    assert_eq!(get("/moved").await, Ok((302, 0)), "not followed");
    assert_eq!(get("/none").await, Ok((404, 6)));
    assert_eq!(get("/a b").await, Err(HttpError::Request));
    assert!(server.lines().iter().all(|line| line != "GET /a"));
}

#[tokio::test]
async fn what_may_be_repeated_is_tried_three_times() {
    let count = Arc::new(AtomicUsize::new(0));
    let seen = count.clone();
    let server = FakeServer::start(move |asked| {
        let number = seen.fetch_add(1, Ordering::SeqCst);
        match &*asked.line {
            "GET /third" | "POST /third" if number < 2 => {
                [Reply::Answer(503, "CANARY".into()), Reply::Close].into_iter().nth(number).unwrap()
            }
            "GET /never" | "POST /never" => Reply::Answer(500, "CANARY".into()),
            "GET /later" => Reply::With(429, "retry-after: 3600".to_owned(), String::new()),
            _ => ok(&asked.body),
        }
    })
    .await;
    let target = target(&server.url);
    // path, body (of a login), may be repeated, tries, the result
    type Row = (&'static str, &'static str, bool, usize, Result<&'static [u8], HttpError>);
    let table: [Row; 6] = [
        ("/third", "", true, 3, Ok(b"")),
        ("/third", "in", true, 3, Ok(b"in")),
        ("/never", "", true, 3, Err(HttpError::Status(500))),
        ("/never", "in", false, 1, Err(HttpError::Status(500))),
        ("/third", "in", false, 1, Err(HttpError::Status(503))),
        ("/later", "", true, 1, Err(HttpError::Status(429))),
    ];
    for (path, body, repeat, tries, expected) in table {
        let client = client(LONG);
        count.store(0, Ordering::SeqCst);
        let call = match body {
            "" => HttpCall::get(&target, path.into()),
            body => HttpCall::login(&target, path.into(), Zeroizing::new(body.into())),
        };
        let answer = client.send(HttpCall { repeat, ..call }).await;
        assert_eq!(answer.map(|answer| answer.body.to_vec()), expected.map(<[u8]>::to_vec), "{path}");
        assert_eq!(count.load(Ordering::SeqCst), tries, "{path} {body}");
    }
}

#[tokio::test]
async fn a_peer_that_fails_is_asked_ten_times_a_minute() {
    let server = FakeServer::start(|asked| match &*asked.line {
        "GET /good" => ok("good"),
        _ => Reply::Answer(503, "CANARY".into()),
    })
    .await;
    let (client, target) = (client(LONG), target(&server.url));
    let calls = (0..30).map(|_| client.send(HttpCall::get(&target, "/bad".into())));
    for answer in futures_util::future::join_all(calls).await {
        assert_eq!(answer.err(), Some(HttpError::Status(503)));
    }
    assert_eq!(server.lines().len(), MAX_FAILURES);
    // What is not asked has the last failure for an answer.
    let good = || HttpCall::get(&target, "/good".into());
    assert_eq!(client.send(good()).await.err(), Some(HttpError::Status(503)));
    pass(WINDOW - Duration::from_secs(5)).await;
    assert_eq!(client.send(good()).await.err(), Some(HttpError::Status(503)));
    pass(Duration::from_secs(10)).await;
    assert_eq!(client.send(good()).await.map(|answer| answer.status).ok(), Some(StatusCode::OK));
    assert_eq!(server.lines(), ["GET /good"]);
}

#[tokio::test]
async fn a_path_that_fails_takes_no_other_with_it() {
    let server = FakeServer::start(|asked| match &*asked.line {
        line if line.starts_with("GET /good") => ok("good"),
        _ => Reply::Answer(500, "CANARY".into()),
    })
    .await;
    let (client, target) = (client(LONG), target(&server.url));
    let ask = async |path: &str| {
        let answer = client.send(HttpCall::get(&target, path.into())).await;
        answer.map(|answer| answer.status.as_u16())
    };
    assert_eq!(ask("/good").await, Ok(200));
    for path in ["/a", "/b?version=1", "/c"] {
        for _ in 0..8 {
            assert_eq!(ask(path).await, Err(HttpError::Status(500)), "{path}");
        }
    }
    assert_eq!(server.lines().len(), 1 + 3 * MAX_FAILURES, "each has its own ten");
    assert_eq!(ask("/good").await, Ok(200));
    assert_eq!(ask("/good/never/asked").await, Ok(200));
    // Another version of the same path is the same path.
    server.lines();
    assert_eq!(ask("/b?version=2").await, Err(HttpError::Status(500)));
    assert_eq!(server.lines().len(), 0);
}

#[tokio::test]
async fn a_peer_that_is_not_reached_is_left_alone_whatever_the_path() {
    let server = FakeServer::start(|_| ok("good")).await;
    let (client, there) = (client(LONG), target(&server.url));
    assert!(client.send(HttpCall::get(&there, "/0".into())).await.is_ok());
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let gone = Target { port: closed.port(), ..there.clone() };
    for number in 1..=4 {
        assert!(client.send(HttpCall::get(&gone, format!("/{number}"))).await.is_err());
    }
    let answer = client.send(HttpCall::get(&there, "/0".into())).await;
    assert_eq!(answer.err(), Some(HttpError::Failed(Fault::ConnectRefused)), "ten tries of four calls");
}

#[test]
fn the_counts_of_paths_are_bounded() {
    let failed = Failed { error: HttpError::TooLarge, unreached: false };
    let failures = Mutex::<Failures>::default();
    Running::begin(&failures, "/good").unwrap_or_else(|_| unreachable!()).end(None);
    for number in 0..1000 {
        if let Ok(running) = Running::begin(&failures, &format!("/{number}")) {
            running.end(Some(failed));
        }
    }
    let known = (0..1000).filter(|number| lock(&failures).counted(&format!("/{number}")) > 0).count();
    assert_eq!((known, lock(&failures).counted("")), (failures::MAX_PATHS, MAX_FAILURES));
}

#[tokio::test]
async fn a_peer_that_hangs_costs_no_more_than_the_time_that_was_given() {
    let server = FakeServer::start(|_| Reply::Hang).await;
    let client = client(Duration::from_millis(100));
    let began = Instant::now();
    let answer = client.send(HttpCall::get(&target(&server.url), "/".into())).await;
    assert_eq!(answer.err(), Some(HttpError::TimedOut));
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    assert_eq!(server.lines().len(), 1, "what may still be worked on is not sent again");
    // Dropped in the middle: that is a failure too.
    let call = client.send(HttpCall::get(&target(&server.url), "/".into()));
    let _ = tokio::time::timeout(Duration::from_millis(20), call).await;
    assert_eq!(lock(&client.failures).counted("/"), 2);
}

#[tokio::test]
async fn metadata_services_are_out_of_reach() {
    let client = client(LONG);
    for host in ["169.254.169.254", "[fd00:ec2::254]", "100.100.100.200"] {
        let target = Target { scheme: Scheme::Http, host: Host::parse(host).unwrap(), port: 80 };
        let answer = client.send(HttpCall::get(&target, "/".into())).await;
        assert_eq!(answer.err(), Some(HttpError::Failed(Fault::AddressDenied)), "{host}");
    }
}

#[test]
fn the_wait_before_the_next_try_grows() {
    let millis = |tried, random| backoff(tried, random).as_millis();
    assert_eq!([millis(1, 0.0), millis(1, 1.0), millis(2, 0.0), millis(2, 1.0)], [75, 225, 150, 450]);
}
