//! A connection carries one account's credential for its whole life.

use std::collections::HashSet;
use std::sync::Mutex;

use tokio::sync::Semaphore;

use crate::upstream::settings::PoolSettings;

use super::http2::{authority, http2_origin, https, say_ok, secured};
use super::*;

const OK: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";

fn capped(max_connections: usize) -> Arc<Upstream> {
    let pool = PoolSettings { max_connections, idle_timeout: Duration::from_secs(60) };
    // A line of many takes its time on a busy machine.
    let connect_timeout = Duration::from_secs(20);
    upstream(UpstreamSettings { pool, connect_timeout, ..settings(Scheme::Http) })
}

/// A request whose path says whose it is.
fn of(account: u64, origin: &Origin) -> EgressRequest {
    let request = get(origin, &format!("/{account}"));
    request.exchange.facts().account = account;
    request
}

/// An origin that keeps, for each connection, who came over it; it answers when the gate lets it.
async fn noting(gate: Arc<Semaphore>) -> (Origin, Arc<Mutex<Vec<HashSet<String>>>>) {
    let seen: Arc<Mutex<Vec<HashSet<String>>>> = Arc::default();
    let all = seen.clone();
    let origin = Origin::new(move |mut stream, number| {
        let (all, gate) = (all.clone(), gate.clone());
        async move {
            while let Some(head) = read_head(&mut stream).await {
                {
                    let mut all = all.lock().unwrap();
                    let length = all.len().max(number + 1);
                    all.resize_with(length, HashSet::new);
                    all[number].insert(head.split(' ').nth(1).unwrap().to_owned());
                }
                gate.acquire().await.unwrap().forget();
                if stream.write_all(OK).await.is_err() {
                    return;
                }
            }
        }
    })
    .await;
    (origin, seen)
}

#[tokio::test]
async fn two_accounts_never_share_a_connection_and_each_uses_its_own_again() {
    let (origin, seen) = noting(Arc::new(Semaphore::new(1000))).await;
    let upstream = capped(100);
    for round in 0..5 {
        for account in 0..4 {
            assert_eq!(fetch(&upstream, of(account, &origin)).await.unwrap().0, 200);
            let idle = if round == 0 { account as usize + 1 } else { 4 };
            eventually("the connection comes back", || upstream.stats().idle == idle).await;
        }
    }
    let seen = seen.lock().unwrap();
    assert!(seen.len() == 4 && seen.iter().all(|who| who.len() == 1), "{seen:?}");
}

#[tokio::test]
async fn at_the_cap_an_idle_connection_of_another_account_gives_way() {
    let (origin, seen) = noting(Arc::new(Semaphore::new(1000))).await;
    let upstream = capped(2);
    for account in [1, 2, 3, 1, 2, 3] {
        assert_eq!(fetch(&upstream, of(account, &origin)).await.unwrap().0, 200);
        assert!(upstream.stats().open <= 2);
        eventually("the connection comes back", || upstream.stats().idle == upstream.stats().open).await;
    }
    assert!(seen.lock().unwrap().iter().all(|who| who.len() == 1));
}

#[tokio::test]
async fn a_line_of_many_accounts_is_served_whole() {
    let gate = Arc::new(Semaphore::new(0));
    let (origin, seen) = noting(gate.clone()).await;
    let upstream = capped(3);
    let mut running = Vec::new();
    for number in 0..60 {
        let (upstream, request) = (upstream.clone(), of(number % 20, &origin));
        running.push(tokio::spawn(async move { fetch(&upstream, request).await.unwrap().0 }));
    }
    eventually("the line is there", || upstream.stats().waiting == 57).await;
    gate.add_permits(60);
    for one in running {
        assert_eq!(one.await.unwrap(), 200);
    }
    assert!(upstream.stats().open <= 3);
    assert!(seen.lock().unwrap().iter().all(|who| who.len() == 1));
}

#[tokio::test]
async fn over_http2_each_account_has_its_connection_and_shares_it_with_itself() {
    let authority = authority(&[b"h2"]);
    let origin = http2_origin(authority.acceptor.clone(), |incoming, _| {
        say_ok(incoming);
        true
    })
    .await;
    let upstream = upstream(secured(&authority));
    let mut running = Vec::new();
    for number in 0..40 {
        let (upstream, request) = (upstream.clone(), https(&origin, "/"));
        request.exchange.facts().account = number % 4;
        running.push(tokio::spawn(async move { fetch(&upstream, request).await.unwrap().0 }));
    }
    for one in running {
        assert_eq!(one.await.unwrap(), 200);
    }
    assert_eq!((origin.accepted(), upstream.stats().http2), (4, 4));
}

#[tokio::test]
async fn at_the_cap_an_idle_http2_connection_gives_way_too() {
    let authority = authority(&[b"h2"]);
    let origin = http2_origin(authority.acceptor.clone(), |incoming, _| {
        say_ok(incoming);
        true
    })
    .await;
    let pool = PoolSettings { max_connections: 1, idle_timeout: Duration::from_secs(60) };
    let upstream = upstream(UpstreamSettings { pool, ..secured(&authority) });
    for account in [1, 2, 2, 1] {
        let request = https(&origin, "/");
        request.exchange.facts().account = account;
        assert_eq!(fetch(&upstream, request).await.unwrap().0, 200, "{account}");
        assert!(upstream.stats().open <= 1);
    }
    assert_eq!(origin.accepted(), 3);
}
