//! The pool by itself: what a connection leaves behind that ends at the wrong moment.

use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;

use super::*;
use crate::upstream::socket::Written;

fn pool(max_connections: usize) -> Arc<Pool> {
    let settings = PoolSettings { max_connections, ..PoolSettings::default() };
    Pool::new(Scheme::Http, HttpVersion::Http1, settings)
}

fn ask(pool: &Arc<Pool>, account: u64) -> Step {
    let host = Host::parse("api.test").unwrap();
    pool.acquire(&host, 80, Wanted { purpose: Purpose::Ordinary, account }, 0).unwrap()
}

fn place(step: Step) -> Place {
    match step {
        Step::Ticket(Ticket::Dial(place)) => place,
        _ => panic!("no place"),
    }
}

/// A connection in the place; the place goes with its task, as that of a socket does.
async fn connect(pool: &Arc<Pool>, place: Place) -> (Http1Lease, tokio::task::JoinHandle<()>) {
    let (near, far) = tokio::io::duplex(1024);
    let (mut sender, connection) = http1::handshake(TokioIo::new(near)).await.unwrap();
    let peer = "127.0.0.1:80".parse().unwrap();
    let made = Made { id: place.id(), account: place.account(), version: 0, peer };
    let origin = place.origin().clone();
    pool.made_http1(&origin, made.id, Purpose::Ordinary);
    #[expect(clippy::disallowed_methods, reason = "a test")]
    let task = tokio::spawn(async move {
        let _held = (far, place);
        let _ = connection.await;
    });
    sender.ready().await.unwrap();
    (Http1Lease::new(pool.clone(), Http1::new(origin, made, sender, Written::default(), None), true), task)
}

#[tokio::test]
async fn a_connection_that_comes_back_after_its_end_stands_in_nobodys_way() {
    let pool = pool(1);
    let (late, task) = connect(&pool, place(ask(&pool, 1))).await;
    task.abort();
    let _ = task.await;
    assert_eq!(pool.stats().open, 0);
    // The next has its place already.
    let second = place(ask(&pool, 2));
    drop(late);
    assert_eq!(pool.stats().idle, 0, "it is closed");
    let (second, _task) = connect(&pool, second).await;
    drop(second);
    // And so has everyone who comes: the idle one gives way each time.
    for account in 3..6 {
        let Step::Wait(mut waiting) = ask(&pool, account) else { panic!("the cap is reached") };
        let ticket = tokio::time::timeout(std::time::Duration::from_secs(5), waiting.ticket()).await;
        let Ok(Some(Ticket::Dial(place))) = ticket else { panic!("{account} has no place") };
        drop(connect(&pool, place).await.0);
    }
    assert_eq!((pool.stats().open, pool.stats().idle), (1, 1));
}

/// A socket that does not close, whatever it is told.
#[tokio::test(start_paused = true)]
async fn one_that_gives_way_slowly_holds_up_no_other_for_long() {
    let pool = pool(2);
    let mut slow = Vec::new();
    for account in [1, 2] {
        let place = place(ask(&pool, account));
        let (near, far) = tokio::io::duplex(1024);
        let (mut sender, connection) = http1::handshake(TokioIo::new(near)).await.unwrap();
        let peer = "127.0.0.1:80".parse().unwrap();
        let made = Made { id: place.id(), account, version: 0, peer };
        let origin = place.origin().clone();
        #[expect(clippy::disallowed_methods, reason = "a test")]
        tokio::spawn(connection);
        sender.ready().await.unwrap();
        drop(Http1Lease::new(pool.clone(), Http1::new(origin, made, sender, Written::default(), None), true));
        slow.push((place, far));
    }
    let _third = ask(&pool, 3);
    assert_eq!(pool.stats().idle, 1);
    let _fourth = ask(&pool, 4);
    assert_eq!(pool.stats().idle, 1, "one at a time");
    tokio::time::advance(std::time::Duration::from_secs(1)).await;
    let _fifth = ask(&pool, 5);
    assert_eq!(pool.stats().idle, 0);
}
