//! An answer that says so holds all buckets of the host, and no other answer does.

use tower::service_fn;

use super::*;
use crate::resilience::RouteService;
use crate::resilience::concurrency::{Concurrency, ConcurrencySettings, Permits};
use crate::resilience::mistake::Mistakes;
use crate::resilience::quota::Recheck;
use crate::resilience::quota::state::HostPause;
use crate::resilience::responses::config::{RowConfig, compile};

/// A provider whose answers of 403 pause the host, and of 429 the bucket; and the two layers around it.
fn layers(
    script: &[(u16, Fields)],
    settings: QuotaSettings,
    shadow: Option<&str>,
) -> (QuotaLayer<RouteService>, Arc<Quota>, Arc<Mutex<Vec<String>>>) {
    let rows = "[{ when: { status: 403 }, is: throttle, pauses: host }, { when: { status: 402 }, is: quota, pauses: host, wait: { default: 30s } }]";
    let rows: Vec<RowConfig> = serde_yaml::from_str(rows).unwrap();
    let mut mistakes = Mistakes::default();
    let table = Arc::new(Table::new(compile(&rows, &mut mistakes), Arc::default()));
    assert!(mistakes.into_vec().is_empty() && table.pauses_hosts());
    let (origin, seen) = origin(script);
    let judged = RouteService::new(Judge::new(origin, table));
    let quota = Arc::new(Quota::new("p"));
    let settings = QuotaSettings { bucket: Bucket::Path, ..settings };
    let shadow: Option<Arc<str>> = shadow.map(Into::into);
    let inner = QuotaLayer::new(judged, quota.clone(), settings.clone(), source(), shadow.clone(), false);
    let inner = RouteService::new(inner);
    (QuotaLayer::wide(inner, quota.clone(), settings, source(), shadow, false), quota, seen)
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_says_so_holds_all_buckets() {
    for (status, fields, seconds) in
        [(403, wait("20"), 20), (402, vec![], 30), (403, vec![], 10), (403, wait("0"), 10)]
    {
        let (mut layer, quota, seen) = layers(&[(status, fields)], patient(), None);
        layer.call(request("/a")).await.unwrap();
        let started = Instant::now();
        layer.call(request("/b")).await.unwrap();
        assert_eq!(started.elapsed(), seconds * SECOND, "{status}");
        // One asked, and was let in: the others need not wait.
        layer.call(request("/c")).await.unwrap();
        assert_eq!((started.elapsed(), seen.lock().unwrap().len()), (seconds * SECOND, 3));
        let status = quota.status();
        assert_eq!((status.throttled, status.held, status.refused), (1, 1, 0));
    }
}

/// What waits for a permit with a pass of its own bucket is called back, and asks again when the host may be asked.
#[tokio::test(start_paused = true)]
async fn what_waits_further_in_is_called_back_for_the_sake_of_another_bucket() {
    let rows = "[{ when: { status: 403 }, is: throttle, pauses: host }]";
    let rows: Vec<RowConfig> = serde_yaml::from_str(rows).unwrap();
    let table = Arc::new(Table::new(compile(&rows, &mut Mistakes::default()), Arc::default()));
    let (started, reached) = (Instant::now(), Arc::<Mutex<Vec<(String, Duration)>>>::default());
    let (answers, log) = (origin(&[(403, wait("30"))]).0, reached.clone());
    let slow = service_fn(move |request: EgressRequest| {
        log.lock().unwrap().push((request.path_and_query.to_string(), started.elapsed()));
        let mut answers = answers.clone();
        async move {
            tokio::time::sleep(SECOND).await;
            answers.call(request).await
        }
    });
    let one = ConcurrencySettings { max: 1, max_wait: 10 * SECOND, max_queue: 100, shadow: false };
    let permits = Arc::new(Permits::new(one));
    let quota = Arc::new(Quota::new("p"));
    let settings = QuotaSettings { bucket: Bucket::Path, ..patient() };
    let stack = RouteService::new(Recheck::new(RouteService::new(Judge::new(slow, table))));
    let stack = RouteService::new(Concurrency::new(stack, permits.clone(), None));
    let stack = QuotaLayer::new(stack, quota.clone(), settings.clone(), source(), None, true);
    let stack = QuotaLayer::wide(RouteService::new(stack), quota.clone(), settings, source(), None, true);
    let stack = RouteService::new(stack);
    let ask = async |path: &str| stack.send(request(path)).await.map(|answer| answer.status().as_u16()).ok();
    let answers = tokio::join!(ask("/a"), ask("/b"), ask("/c"));
    assert_eq!(answers, (Some(403), Some(200), Some(200)));
    let reached = reached.lock().unwrap();
    assert_eq!(reached[0].1, Duration::ZERO);
    assert!(reached[1..].iter().all(|(_, at)| *at >= 31 * SECOND), "{reached:?}");
    let status = quota.status();
    assert_eq!((status.recalled, status.throttled, status.waiting, permits.status().running), (2, 1, 0, 0));
}

/// The whole host calls it back from the queue for a permit, and meanwhile its bucket is paused and its queue is full.
#[tokio::test(start_paused = true)]
async fn who_is_called_back_for_the_whole_host_keeps_its_place_in_its_bucket() {
    let rows = "[{ when: { status: 403 }, is: throttle, pauses: host }]";
    let rows: Vec<RowConfig> = serde_yaml::from_str(rows).unwrap();
    let table = Arc::new(Table::new(compile(&rows, &mut Mistakes::default()), Arc::default()));
    let (answers, seen) = origin(&[(403, wait("5"))]);
    let slow = service_fn(move |request: EgressRequest| {
        let mut answers = answers.clone();
        async move {
            tokio::time::sleep(SECOND).await;
            answers.call(request).await
        }
    });
    let one = ConcurrencySettings { max: 1, max_wait: 10 * SECOND, max_queue: 100, shadow: false };
    let quota = Arc::new(Quota::new("p"));
    let settings = QuotaSettings { bucket: Bucket::Path, max_queue: 1, ..patient() };
    let stack = RouteService::new(Recheck::new(RouteService::new(Judge::new(slow, table))));
    let stack = RouteService::new(Concurrency::new(stack, Arc::new(Permits::new(one)), None));
    let buckets = QuotaLayer::new(stack, quota.clone(), settings.clone(), source(), None, true);
    let (entry, _) = buckets.route.entry_of(&request("/a"), Instant::now());
    let stack = QuotaLayer::wide(RouteService::new(buckets), quota.clone(), settings, source(), None, true);
    let stack = RouteService::new(stack);
    let ask = async |after: Duration, path: &str| {
        sleep(after).await;
        stack
            .send(request(path))
            .await
            .map(|answer| answer.status().as_u16())
            .map_err(|failure| failure.fault)
    };
    let pause = async {
        sleep(SECOND / 2).await;
        entry.pause(Instant::now(), 20 * SECOND);
    };
    let answers = tokio::join!(
        ask(Duration::ZERO, "/b"),
        ask(SECOND / 10, "/a?1"),
        pause,
        ask(SECOND * 6 / 10, "/a?2"),
        ask(SECOND * 7 / 10, "/a?3")
    );
    assert_eq!(answers, (Ok(403), Ok(200), (), Ok(200), Err(Fault::QueueFull)));
    assert_eq!(*seen.lock().unwrap(), ["/b", "/a?1", "/a?2"]);
}

#[tokio::test(start_paused = true)]
async fn the_pause_of_a_bucket_and_that_of_another_host_hold_nobody_else() {
    let (mut layer, quota, _) = layers(&[(429, wait("20")), (403, wait("20"))], patient(), None);
    layer.call(request("/a")).await.unwrap();
    let started = Instant::now();
    layer.call(request("/b")).await.unwrap();
    assert_eq!(started.elapsed(), Duration::ZERO);
    let mut other = request("/a");
    other.target.host = crate::message::target::Host::parse("other.example.com").unwrap();
    layer.call(other).await.unwrap();
    assert_eq!((started.elapsed(), quota.status().held), (Duration::ZERO, 0));
    layer.call(request("/c")).await.unwrap();
    assert_eq!(started.elapsed(), 20 * SECOND);
}

#[tokio::test(start_paused = true)]
async fn the_host_is_held_as_the_policy_says() {
    let reject = QuotaSettings { on_excess: QuotaExcess::Reject, ..QuotaSettings::default() };
    let (mut layer, quota, seen) = layers(&[(403, wait("20"))], reject.clone(), None);
    layer.call(request("/a")).await.unwrap();
    let failure = layer.call(request("/b")).await.map(drop).unwrap_err();
    assert_eq!((failure.fault, failure.retry_after), (Fault::QuotaHeld, Some(20 * SECOND)));
    assert_eq!((quota.status().refused, seen.lock().unwrap().len()), (1, 1));
    // A pause is cut to the longest hold, and in shadow mode nothing is held.
    let short = QuotaSettings { max_hold: 5 * SECOND, ..patient() };
    let (mut layer, ..) = layers(&[(403, wait("20"))], short, None);
    layer.call(request("/a")).await.unwrap();
    let started = Instant::now();
    layer.call(request("/b")).await.unwrap();
    assert_eq!(started.elapsed(), 5 * SECOND);
    let (mut layer, quota, _) = layers(&[(403, wait("20"))], reject, Some("quota"));
    layer.call(request("/a")).await.unwrap();
    layer.call(request("/b")).await.unwrap();
    assert_eq!((quota.status().shadowed, quota.status().refused), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn the_other_instances_are_told_once() {
    let (mut layer, quota, _) = layers(&[(403, wait("20")), (403, wait("30"))], patient(), None);
    let told = Arc::<Mutex<Vec<(String, Duration)>>>::default();
    let log = told.clone();
    quota.on_throttle(Arc::new(move |name, pause| log.lock().unwrap().push((name.to_owned(), pause))));
    let mut second = layer.clone();
    let (one, other) = tokio::join!(layer.call(request("/a")), second.call(request("/b")));
    assert!(one.is_ok() && other.is_ok());
    let all: Vec<Duration> = {
        let told = told.lock().unwrap();
        told.iter().filter(|(name, _)| name.contains("/all:")).map(|(_, pause)| *pause).collect()
    };
    assert_eq!(all, [20 * SECOND], "{told:?}");
    // Told by another instance, it holds here.
    let (mut layer, quota, _) = layers(&[], patient(), None);
    let name = told.lock().unwrap().iter().find(|(name, _)| name.contains("/all:")).unwrap().0.clone();
    quota.pause(&name, 7 * SECOND);
    let started = Instant::now();
    layer.call(request("/z")).await.unwrap();
    assert_eq!(started.elapsed(), 7 * SECOND);
}

#[tokio::test(start_paused = true)]
async fn what_was_on_its_way_before_begins_no_pause_anew() {
    let (layer, quota, _) = layers(&[], patient(), None);
    let route = layer.route.clone();
    let (entry, _) = route.entry_of(&request("/"), Instant::now());
    let pass = || Some(entry.force(Instant::now()));
    let passes: [Option<Pass>; 4] = std::array::from_fn(|_| pass());
    let answered = |pass: Option<Pass>, seconds: u32, told: bool| {
        let pause = HostPause { length: seconds * SECOND, told };
        quota.answered_for_all(&entry, pass.unwrap(), Some(pause));
        entry.look(|state, _| state.paused_for(Instant::now()))
    };
    assert_eq!(answered(passes[0], 20, true), Some(20 * SECOND));
    advance(15 * SECOND).await;
    assert_eq!(answered(passes[1], 10, false), Some(5 * SECOND), "it named no length");
    assert_eq!(answered(passes[2], 10, true), Some(10 * SECOND), "it knows better");
    advance(11 * SECOND).await;
    assert_eq!(answered(passes[3], 20, true), None);
    assert_eq!(answered(pass(), 7, false), Some(7 * SECOND), "asked after it");
}
