//! Several hosts, reloads, and what the admin listener forces.

use std::thread;

use tokio::time::advance;

use super::super::outcome::Outcome;
use super::*;

const FAILED: Outcome = Outcome::Failure { retry_after: None };

fn fail(breakers: &Breakers, request: &EgressRequest, times: u32) {
    for _ in 0..times {
        if let Ok(Some(running)) = breakers.take(&request.target) {
            running.finish(FAILED);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn each_host_and_port_has_its_own() {
    let breakers = breakers(rules());
    fail(&breakers, &to("a.example", 443), 5);
    assert!(breakers.look(&to("a.example", 443).target).is_err());
    assert!(breakers.look(&to("a.example", 8443).target).is_ok());
    assert!(breakers.look(&to("b.example", 443).target).is_ok());
    assert_eq!(breakers.status().known_hosts, 1, "a look makes nothing");
}

#[tokio::test(start_paused = true)]
async fn the_number_of_hosts_is_bounded_and_open_ones_are_forgotten_last() {
    let breakers = breakers(rules());
    fail(&breakers, &to("dead.example", 443), 5);
    for number in 0..5 * MAX_HOSTS {
        let request = to(&format!("h{number}.example"), 443);
        breakers.take(&request.target).unwrap();
        assert!(breakers.status().known_hosts <= MAX_HOSTS);
    }
    assert!(breakers.look(&to("dead.example", 443).target).is_err());
    let status = breakers.status();
    assert_eq!((status.hosts.len(), &*status.hosts[0].host), (50, "dead.example"));
    // All open: the bound holds all the same.
    for number in 0..2 * MAX_HOSTS {
        fail(&breakers, &to(&format!("o{number}.example"), 443), 5);
    }
    assert!(breakers.status().known_hosts <= MAX_HOSTS);
}

#[tokio::test(start_paused = true)]
async fn a_reload_does_not_close_it() {
    let breakers = breakers(rules());
    let request = to("a.example", 443);
    fail(&breakers, &request, 5);
    let answer = StaticAnswer { status: StatusCode::OK, headers: Vec::new(), body: "x".into() };
    let fallback = Fallback::Static(Arc::new(answer));
    breakers.update(BreakerSettings { fallback, ..settings(Rules { failures: 2, ..rules() }) });
    let stack = both(Provider::new(200).service(), &breakers);
    let answer = stack.clone().call(to("a.example", 443)).await.unwrap();
    assert!(answer.extensions().get::<FallbackAnswer>().is_some(), "open, with the new fallback");
    let other = to("b.example", 443);
    fail(&breakers, &other, 2);
    assert!(breakers.look(&other.target).is_err(), "new hosts have the new numbers");
    advance(30 * SECOND).await;
    for _ in 0..2 {
        breakers.take(&request.target).unwrap().unwrap().finish(Outcome::Success);
    }
    fail(&breakers, &request, 2);
    assert!(breakers.look(&request.target).is_err(), "and so have old ones");
}

#[tokio::test(start_paused = true)]
async fn forced_open_everything_is_refused_and_forced_closed_everything_passes() {
    let (provider, breakers) = (Provider::new(200), breakers(rules()));
    let stack = both(provider.service(), &breakers);
    breakers.force(Some(Forced::Open));
    assert_eq!(send(&stack).await, Err(None), "nobody knows for how long");
    assert_eq!((provider.reached(), breakers.status().forced), (0, Some("open")));
    breakers.force(Some(Forced::Closed));
    provider.is(0);
    send_times(&stack, 20).await;
    assert_eq!((provider.reached(), breakers.status().opened), (20, 0));
    breakers.force(None);
    assert_eq!(breakers.status().forced, None);
    send_times(&stack, 20).await;
    assert_eq!((provider.reached(), breakers.status().opened), (25, 1));
}

#[tokio::test(start_paused = true)]
async fn what_was_forced_and_is_not_any_more_starts_anew() {
    let breakers = breakers(rules());
    let request = to("a.example", 443);
    fail(&breakers, &request, 5);
    breakers.force(None);
    assert!(breakers.look(&request.target).is_err(), "nothing was forced, nothing is released");
    breakers.force(Some(Forced::Closed));
    assert!(breakers.look(&request.target).is_ok());
    breakers.force(None);
    assert!(breakers.look(&request.target).is_ok());
    assert_eq!(breakers.status().hosts[0].state, "closed");
}

/// Many threads and a breaker that changes all the time: its places neither leak nor multiply.
#[test]
fn many_threads() {
    let open_for = Duration::from_micros(50);
    let quick = Rules { failures: 3, probes: 2, open_for, max_open_for: 4 * open_for, ..rules() };
    let breakers = breakers(quick);
    thread::scope(|scope| {
        for seed in 0..4 {
            let breakers = &breakers;
            scope.spawn(move || {
                let mut random = fastrand::Rng::with_seed(seed);
                let request = to("a.example", 443);
                for _ in 0..20_000 {
                    let Ok(Some(running)) = breakers.take(&request.target) else { continue };
                    assert!(breakers.status().hosts[0].probes_running <= 2);
                    match random.u8(0..10) {
                        0..6 => drop(running.finish(FAILED)),
                        6..9 => drop(running.finish(Outcome::Success)),
                        _ => drop(running),
                    }
                }
            });
        }
    });
    let status = breakers.status();
    assert_eq!(status.hosts[0].probes_running, 0);
    assert!(status.opened > 0 && status.half_opened > 0 && status.closed > 0, "{status:?}");
}
