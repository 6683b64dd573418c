//! The client against a scripted server.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::failures::Failures;
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

/// It was not asked; this is how it failed last.
fn held(last: HttpError) -> Option<HttpError> {
    Some(HttpError::Held(Box::new(last)))
}

/// A question that need not wait for others.
fn begun(failures: &Arc<Mutex<Failures>>, name: &str) -> Result<Running, HttpError> {
    Running::begin(failures, name).map(|running| running.unwrap_or_else(|| panic!("{name} has to wait")))
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
        assert_eq!(answer.err().as_ref().map(HttpError::last), Some(&HttpError::Status(503)));
    }
    assert_eq!(server.lines().len(), MAX_FAILURES);
    // What is not asked has the last failure for an answer.
    let good = || HttpCall::get(&target, "/good".into());
    assert_eq!(client.send(good()).await.err(), held(HttpError::Status(503)));
    pass(WINDOW - Duration::from_secs(5)).await;
    assert_eq!(client.send(good()).await.err(), held(HttpError::Status(503)));
    pass(Duration::from_secs(10)).await;
    assert_eq!(client.send(good()).await.map(|answer| answer.status).ok(), Some(StatusCode::OK));
    assert_eq!(server.lines(), ["GET /good"]);
}

#[tokio::test]
async fn what_fails_shares_ten_questions_a_minute_and_what_is_good_goes_on() {
    let server = FakeServer::start(|asked| match &*asked.line {
        line if line.starts_with("GET /good") => ok("good"),
        line if line.starts_with("GET /new") => ok("good"),
        _ => Reply::Answer(500, "CANARY".into()),
    })
    .await;
    let (client, target) = (client(LONG), target(&server.url));
    let ask = async |path: &str| {
        let answer = client.send(HttpCall::get(&target, path.into())).await?;
        let status = answer.status.as_u16();
        answer.verdict.works();
        Ok::<_, HttpError>(status)
    };
    for number in 0..30 {
        // Each fails when it is first asked for, three times; and is one of thirty that fail.
        let failed = ask(&format!("/{}?version={number}", number % 3)).await;
        assert_eq!(failed.err().as_ref().map(HttpError::last), Some(&HttpError::Status(500)));
        assert_eq!(ask(&format!("/good/{}", number % 2)).await, Ok(200));
        assert_eq!(ask(&format!("/new/{number}")).await, Ok(200));
    }
    let bad = server.lines().iter().filter(|line| !line.contains("good") && !line.contains("new")).count();
    assert_eq!(bad, MAX_FAILURES);
    pass(WINDOW).await;
    assert_eq!(ask("/0").await, Err(HttpError::Status(500)));
    assert_eq!(server.lines().len(), 3, "asked again");
}

#[tokio::test]
async fn what_nobody_called_good_has_failed() {
    let server = FakeServer::start(|asked| match &*asked.line {
        "GET /refused" => Reply::Answer(403, "CANARY".into()),
        _ => ok("<html>CANARY</html>"),
    })
    .await;
    let target = target(&server.url);
    for (path, error) in [("/refused", HttpError::Status(403)), ("/garbage", HttpError::Garbled)] {
        let client = client(LONG);
        let mut answers = Vec::new();
        for number in 0..30 {
            let call = HttpCall { subject: Some(number.to_string()), ..HttpCall::get(&target, path.into()) };
            answers.push(client.send(call).await.map(|answer| drop(answer.verdict)));
        }
        assert!(answers[..MAX_FAILURES].iter().all(Result::is_ok), "{path}");
        assert!(
            answers[MAX_FAILURES..].iter().all(|answer| answer.clone().err() == held(error.clone())),
            "{path}"
        );
        assert_eq!(server.lines().len(), MAX_FAILURES, "{path}");
    }
}

#[tokio::test]
async fn a_login_on_the_way_is_a_question_and_no_proof() {
    let server = FakeServer::start(|_| ok("")).await;
    let (client, target) = (client(LONG), target(&server.url));
    let mut asked = 0;
    for number in 0..30 {
        let Ok(answer) = client.send(HttpCall::get(&target, "/".into())).await else { continue };
        asked += 1;
        if number % 2 == 0 {
            answer.verdict.aside();
        }
    }
    assert_eq!((asked, server.lines().len()), (MAX_FAILURES, MAX_FAILURES));
}

#[tokio::test]
async fn a_peer_that_is_not_reached_is_left_alone_whatever_the_path() {
    let server = FakeServer::start(|_| ok("good")).await;
    let (client, there) = (client(LONG), target(&server.url));
    client
        .send(HttpCall::get(&there, "/0".into()))
        .await
        .unwrap_or_else(|error| panic!("{error}"))
        .verdict
        .works();
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let gone = Target { port: closed.port(), ..there.clone() };
    for number in 1..=4 {
        assert!(client.send(HttpCall::get(&gone, format!("/{number}"))).await.is_err());
    }
    let answer = client.send(HttpCall::get(&there, "/5".into())).await;
    assert_eq!(answer.err(), held(HttpError::Failed(Fault::ConnectRefused)), "the tries of four calls");
    // The last question is for what was good.
    assert!(client.send(HttpCall::get(&there, "/0".into())).await.is_ok());
}

#[test]
fn the_subjects_that_are_known_are_bounded() {
    let failures = Arc::<Mutex<Failures>>::default();
    // One that is good of late: as many as like may run.
    begun(&failures, "known").unwrap_or_else(|error| panic!("{error}")).works();
    let begin = |name: usize| begun(&failures, &name.to_string()).unwrap_or_else(|error| panic!("{error}"));
    (0..1000).for_each(|name| begin(name).works());
    let known = |name: usize| lock(&failures).known(&name.to_string());
    let good: Vec<_> = (0..1000).filter(|name| known(*name)).collect();
    assert_eq!(good.len(), failures::MAX_SUBJECTS);
    let running: Vec<_> = good.into_iter().map(begin).collect();
    let further = begin(1000);
    assert!(lock(&failures).known("") && !known(1000), "those beyond are one");
    further.works();
    running.into_iter().for_each(Running::works);
    // Those that were good give way to newcomers, one for each.
    let next = begin(1000);
    assert!(known(1000) && (0..=1000).filter(|name| known(*name)).count() < failures::MAX_SUBJECTS + 1);
    next.works();
}

/// Thirty that fail at the same moment, beside one that was good a moment ago.
#[tokio::test(start_paused = true)]
async fn ten_that_fail_hold_nothing_that_was_good() {
    let failures = Arc::<Mutex<Failures>>::default();
    let forbidden = HttpError::Status(403);
    let good = || begun(&failures, "good").unwrap_or_else(|error| panic!("{error}"));
    good().works();
    for round in 0..20 {
        let name = |number: usize| format!("{round}-{number}");
        let all: Vec<_> = (0..30).map(|number| Running::begin(&failures, &name(number))).collect();
        let running: Vec<_> = all.into_iter().filter_map(|one| one.ok().flatten()).collect();
        assert_eq!(running.len(), if round == 0 { MAX_FAILURES - 1 } else { 0 }, "{round}");
        running.into_iter().for_each(|one| one.failed(forbidden.clone()));
        // Two of it at a time would be one too many, as long as nobody knows.
        let first = good();
        assert!(Running::begin(&failures, "good").is_ok_and(|second| second.is_none()));
        first.aside();
    }
    // Where it fails as well, the peer is down for all.
    good().failed(HttpError::TimedOut);
    assert!(begun(&failures, "good").is_err());
}

/// One that was asked for while the peer was away, and names that the peer forbids ever since.
#[tokio::test(start_paused = true)]
async fn what_was_asked_for_in_an_outage_does_not_wait_behind_what_is_forbidden() {
    let failures = Arc::<Mutex<Failures>>::default();
    let ask = |name: &str| begun(&failures, name);
    for _ in 0..MAX_FAILURES {
        ask("own").unwrap_or_else(|error| panic!("{error}")).failed(HttpError::Status(503));
    }
    for second in 0..75 {
        for number in 0..30 {
            let name = format!("{second}-{number}");
            let _ = ask(&name).map(|running| running.failed(HttpError::Status(403)));
        }
        // It comes last, and seldom.
        if second % 10 == 9
            && let Ok(running) = ask("own")
        {
            return running.works();
        }
        tokio::time::advance(Duration::from_secs(1)).await;
    }
    panic!("it was not asked for");
}

/// Who must not be asked twice keeps most of its time for the answer.
#[tokio::test(start_paused = true)]
async fn what_uses_something_up_waits_a_little_for_others_and_is_not_asked() {
    let (client, target) = (client(LONG), target("http://127.0.0.1:1"));
    let failures = client.counted.of(&target);
    let _running: Vec<_> = (0..MAX_FAILURES).map(|number| begun(&failures, &number.to_string())).collect();
    let began = Instant::now();
    let call = HttpCall { repeat: false, ..HttpCall::get(&target, "/".into()) };
    assert_eq!(client.send(call).await.err(), held(HttpError::TimedOut));
    assert_eq!(began.elapsed().as_secs(), 5);
    let call = HttpCall::get(&target, "/".into());
    assert_eq!(client.send(call).await.err(), Some(HttpError::TimedOut));
}

/// One that is there, beside thirty that are forbidden and are asked for again as often as they may be.
#[tokio::test(start_paused = true)]
async fn what_was_never_asked_for_goes_before_what_failed() {
    let failures = Arc::<Mutex<Failures>>::default();
    let mut asked = Vec::new();
    for second in 0..240 {
        // The one that is there is the last in every round.
        for number in 0..31 {
            let Ok(running) = begun(&failures, &number.to_string()) else { continue };
            asked.push((second, number));
            match number {
                30 => running.works(),
                _ => running.failed(HttpError::Status(403)),
            }
        }
        if asked.iter().any(|(_, number)| *number == 30) {
            break;
        }
        tokio::time::advance(Duration::from_secs(1)).await;
    }
    // Ten in a minute, each of them once.
    let numbers: Vec<_> = asked.iter().map(|(_, number)| *number).collect();
    assert_eq!(numbers, (0..31).collect::<Vec<_>>());
    assert_eq!(asked.last(), Some(&(180, 30)));
}

/// A tenant that was named once does not keep a place in the line.
#[tokio::test(start_paused = true)]
async fn who_does_not_come_again_is_not_waited_for() {
    let failures = Arc::<Mutex<Failures>>::default();
    let ask = |name: &str| begun(&failures, name).map(|running| running.failed(HttpError::Status(403)));
    let pass = async |seconds| tokio::time::advance(Duration::from_secs(seconds)).await;
    assert!((0..9).all(|number| ask(&number.to_string()).is_ok()));
    pass(50).await;
    assert!(ask("0").is_ok());
    pass(8).await;
    assert!(ask("gone").is_err());
    pass(3).await;
    assert!(ask("0").is_err(), "there is room, and it is another's");
    pass(8).await;
    assert!(ask("0").is_ok());
}

/// Names that a peer forbids may be anybody's: they hold one another, and nothing that is good.
#[tokio::test(start_paused = true)]
async fn what_was_good_is_asked_for_whatever_else_fails() {
    let failures = Arc::<Mutex<Failures>>::default();
    let begin = |name: &str| begun(&failures, name);
    begin("own").unwrap_or_else(|error| panic!("{error}")).works();
    let forbidden = HttpError::Status(403);
    let mut asked = 0;
    for number in 0..40 {
        let Ok(running) = begin(&format!("name-{number}")) else { continue };
        running.failed(forbidden.clone());
        asked += 1;
    }
    assert_eq!(asked, MAX_FAILURES - 1);
    // Also one that was never asked for: nobody can tell it from the others.
    assert_eq!(begin("new").err(), held(forbidden.clone()));
    begin("own").unwrap_or_else(|error| panic!("{error}")).works();
    begin("new").unwrap_or_else(|error| panic!("{error}")).works();
    // And where it is not good any more, that was the last question.
    for number in 0..40 {
        let _ = begin(&format!("more-{number}")).map(|running| running.failed(forbidden.clone()));
    }
    begin("own").unwrap_or_else(|error| panic!("{error}")).failed(forbidden.clone());
    assert_eq!((begin("own").err(), begin("new").err()), (held(forbidden.clone()), held(forbidden)));
}

/// Thirty clients that begin at the same moment, before anybody knows.
#[tokio::test]
async fn where_nobody_knows_whether_a_peer_works_ten_find_out_for_all() {
    for (reply, asked) in [(503, MAX_FAILURES), (200, 30)] {
        let gate = Arc::new(tokio::sync::Semaphore::new(0));
        let opened = gate.clone();
        let server =
            FakeServer::start(move |_| Reply::Later(opened.clone(), reply, "CANARY".to_owned())).await;
        let (target, peers) = (target(&server.url), Arc::<Peers>::default());
        let calls = (0..30).map(|number| {
            let (client, target) = (client(LONG).counting_in(&peers), &target);
            async move {
                let subject = Some(number.to_string());
                let call = HttpCall { subject, repeat: false, ..HttpCall::get(target, "/".into()) };
                client.send(call).await.map(|answer| answer.verdict.works())
            }
        });
        let open = async {
            while server.asked().len() < MAX_FAILURES {
                tokio::task::yield_now().await;
            }
            gate.add_permits(30);
        };
        let (answers, ()) = tokio::join!(futures_util::future::join_all(calls), open);
        assert_eq!(answers.iter().filter(|answer| answer.is_ok()).count(), if reply == 200 { 30 } else { 0 });
        assert_eq!(server.asked().len(), asked);
    }
}

#[tokio::test(start_paused = true)]
async fn who_is_refused_for_a_reason_of_its_own_is_asked_ten_times_a_minute_and_holds_nobody() {
    let failures = Arc::<Mutex<Failures>>::default();
    let begin = |name: &str| begun(&failures, name);
    let refused = HttpError::Status(400);
    for number in 0..40 {
        let running = begin(&format!("name-{number}")).unwrap_or_else(|error| panic!("{error}"));
        running.refused(refused.clone());
    }
    for _ in 1..MAX_FAILURES {
        begin("name-0").unwrap_or_else(|error| panic!("{error}")).refused(refused.clone());
    }
    assert_eq!(begin("name-0").err(), held(refused));
    begin("name-1").unwrap_or_else(|error| panic!("{error}")).works();
    begin("new").unwrap_or_else(|error| panic!("{error}")).works();
    tokio::time::advance(WINDOW).await;
    begin("name-0").unwrap_or_else(|error| panic!("{error}")).works();
    // Refusals are forgotten; what was good is remembered.
    assert!(["name-0", "name-1", "new"].iter().all(|name| lock(&failures).known(name)));
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
    assert_eq!(lock(&client.counted.of(&target(&server.url))).counted(), 2);
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
