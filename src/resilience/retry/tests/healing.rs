use std::sync::atomic::{AtomicUsize, Ordering};

use futures_util::future::BoxFuture;

use super::*;
use crate::resilience::retry::Heal;

/// A credential whose healing gives `next`; tells what it was asked.
#[derive(Default)]
struct Members {
    next: Option<usize>,
    asked: AtomicUsize,
    tried: Mutex<Vec<usize>>,
    worked: Mutex<Vec<usize>>,
    accepted: Mutex<Vec<(usize, bool)>>,
}

impl Heal for Members {
    fn preferred(&self, _: Option<&str>) -> usize {
        0
    }
    fn heal<'a>(&'a self, _: Option<&'a str>, tried: usize, _: u64) -> BoxFuture<'a, Option<usize>> {
        self.asked.fetch_add(1, Ordering::Relaxed);
        self.tried.lock().unwrap().push(tried);
        Box::pin(std::future::ready(self.next))
    }
    fn worked(&self, _: Option<&str>, choice: usize) {
        self.worked.lock().unwrap().push(choice);
    }
    fn overlaps(&self) -> bool {
        self.next.is_some()
    }
    fn accepted(&self, _: Option<&str>, choice: usize, success: bool) {
        self.accepted.lock().unwrap().push((choice, success));
    }
}

fn healing(service: impl Inner, members: &Arc<Members>, buffer: usize) -> Retry<impl Inner> {
    Retry::new(service, None, Some(members.clone()), None, None, buffer)
}

type Seen = Arc<Mutex<Vec<(usize, String)>>>;

/// A provider that accepts only the given member and records what it got.
fn provider(accepts: usize) -> (impl Inner, Seen) {
    let seen: Seen = Arc::default();
    let log = seen.clone();
    let service = service_fn(move |request: EgressRequest| {
        let log = log.clone();
        async move {
            let choice = request.credential_choice;
            let body = request.into_parts().body.collect().await.unwrap().to_bytes();
            log.lock().unwrap().push((choice, String::from_utf8(body.to_vec()).unwrap()));
            let status = if choice == accepts { StatusCode::OK } else { StatusCode::UNAUTHORIZED };
            let mut response = Response::new(Body::empty());
            *response.status_mut() = status;
            Ok::<_, Failure>(response)
        }
    });
    (service, seen)
}

#[tokio::test]
async fn a_list_is_told_which_member_was_accepted() {
    for (accepts, told) in [(0, vec![(0, true)]), (1, vec![(1, true)]), (2, vec![])] {
        let members = Arc::new(Members { next: Some(1), ..Members::default() });
        let (service, _) = provider(accepts);
        healing(service, &members, 64).call(request(Method::GET, Body::empty())).await.unwrap();
        assert_eq!(*members.accepted.lock().unwrap(), told, "{accepts}");
    }
    let alone = Arc::new(Members::default());
    healing(provider(0).0, &alone, 64).call(request(Method::GET, Body::empty())).await.unwrap();
    assert!(alone.accepted.lock().unwrap().is_empty());
}

#[tokio::test]
async fn the_next_member_is_taken_after_a_401_with_the_same_body() {
    let members = Arc::new(Members { next: Some(1), ..Members::default() });
    let (service, seen) = provider(1);
    let mut retry = healing(service, &members, 64);
    let answer = retry.call(request_with(Body::full("pay"), None)).await.unwrap();
    assert_eq!(answer.status(), StatusCode::OK);
    assert_eq!(*seen.lock().unwrap(), [(0, "pay".to_owned()), (1, "pay".to_owned())]);
    assert_eq!(*members.worked.lock().unwrap(), [1]);
}

#[tokio::test]
async fn a_second_401_goes_to_the_app() {
    let members = Arc::new(Members { next: Some(1), ..Members::default() });
    let (service, seen) = provider(7);
    let answer = healing(service, &members, 64).call(request_with(Body::empty(), None)).await.unwrap();
    assert_eq!(answer.status(), StatusCode::UNAUTHORIZED);
    assert_eq!(seen.lock().unwrap().len(), 2);
    assert!(members.worked.lock().unwrap().is_empty());
}

#[tokio::test]
async fn a_body_that_is_gone_is_not_sent_again() {
    let members = Arc::new(Members { next: Some(1), ..Members::default() });
    let (service, seen) = provider(1);
    let answer = healing(service, &members, 2).call(request_with(Body::full("long"), None)).await.unwrap();
    assert_eq!(answer.status(), StatusCode::UNAUTHORIZED);
    assert_eq!(seen.lock().unwrap().len(), 1);
    assert_eq!(members.asked.load(Ordering::Relaxed), 0);
}

#[tokio::test]
async fn without_another_member_the_401_is_the_answer() {
    let members = Arc::new(Members::default());
    let (service, seen) = provider(1);
    let answer = healing(service, &members, 64).call(request_with(Body::full("x"), None)).await.unwrap();
    assert_eq!(answer.status(), StatusCode::UNAUTHORIZED);
    assert_eq!(seen.lock().unwrap().len(), 1);
}

#[tokio::test]
async fn what_was_really_sent_is_what_was_refused() {
    // The first member cannot be had, so the layer that injects takes the second: that one is refused.
    let members = Arc::new(Members { next: Some(2), ..Members::default() });
    let service = service_fn(|request: EgressRequest| async move {
        let carried = request.credential_choice.max(1);
        request.exchange.facts().credential_choice = carried;
        let status = if carried == 1 { StatusCode::UNAUTHORIZED } else { StatusCode::OK };
        Ok::<_, Failure>(answer(status.as_u16()))
    });
    let got = healing(service, &members, 64).call(request_with(Body::empty(), None)).await.unwrap();
    assert_eq!(got.status(), 200);
    assert_eq!(*members.tried.lock().unwrap(), [1]);
    assert_eq!(*members.worked.lock().unwrap(), [2]);
}

#[tokio::test(start_paused = true)]
async fn healing_stands_outside_attempts_and_budget() {
    let members = Arc::new(Members { next: Some(1), ..Members::default() });
    let refused = Play::answer(401, Class::Unauthorized, false);
    let away = Play::answer(503, Class::Unavailable, true);
    let (service, log) = script([refused, away.clone(), away.clone(), away, Play::ok()]);
    let budget = Arc::new(Budget::new(BudgetSettings { ratio: Ratio::default(), min_per_second: 2 }));
    let mut retry =
        Retry::new(service, Some(settings("{}")), Some(members.clone()), None, Some(budget.clone()), 64);
    let request = request(Method::GET, Body::empty());
    let exchange = request.exchange.clone();
    assert_eq!(retry.call(request).await.unwrap().status(), 503);
    assert_eq!(log.lock().unwrap().len(), 1 + 3);
    assert_eq!(budget.status().granted, 2);
    let expected = ["unauthorized", "unavailable", "unavailable", "not_repeated:attempts"];
    assert_eq!(exchange.facts().retry_reasons, expected);
    assert_eq!(*members.worked.lock().unwrap(), [1], "told once");
}

#[tokio::test]
async fn it_happens_once_and_only_where_the_answer_proves_that_nothing_was_done() {
    for (play, attempts, reason) in [
        (
            Play::answer(401, Class::Unauthorized, false),
            2,
            &["unauthorized", "not_repeated:unauthorized"][..],
        ),
        (Play::answer(401, Class::Unauthorized, true), 1, &["not_repeated:unauthorized"]),
        // The table has the last word on what a 401 is, and on what else is one.
        (Play::answer(401, Class::Final, true), 1, &["not_repeated:final"]),
        (Play::answer(403, Class::Unauthorized, false), 2, &["unauthorized", "not_repeated:unauthorized"]),
    ] {
        let members = Arc::new(Members { next: Some(1), ..Members::default() });
        let (service, log) = script([play.clone(), play.clone(), play.clone()]);
        let request = request(Method::POST, Body::full("pay"));
        let exchange = request.exchange.clone();
        let mut retry = Retry::new(service, Some(settings("{}")), Some(members), None, None, 64);
        retry.call(request).await.unwrap();
        assert_eq!(log.lock().unwrap().len(), attempts, "{play:?}");
        assert_eq!(exchange.facts().retry_reasons, reason, "{play:?}");
    }
}
