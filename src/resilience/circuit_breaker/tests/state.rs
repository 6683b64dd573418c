//! The state alone: tables, and any sequence of events.

use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;
use tokio::time::Instant;

use super::super::state::{OpenFor, PROBE_WAIT, Pass, Position, Reason, SHORTEST_ASKED, State};
use super::super::tally::Tally;
use super::{ErrorRate, Ratio, Rules, SECOND, rules};

fn state(rules: Rules, now: Instant) -> State {
    let tally = Tally::new(now, rules.error_rate.map(|rate| rate.window));
    State::new(rules, Arc::new(tally))
}

fn pass(state: &mut State, now: Instant) -> Pass {
    state.take(now).unwrap().0
}

/// Fails until it is open.
fn trip(state: &mut State, now: Instant, retry_after: Option<Duration>) {
    for _ in 0..5 {
        let pass = pass(state, now);
        state.on_failure(&pass, now, retry_after);
    }
    assert_eq!(state.position(), Position::Open);
}

#[test]
fn five_failures_in_a_row_open_it_and_a_success_between_does_not() {
    let now = Instant::now();
    let mut state = state(rules(), now);
    for fails in [true, true, true, true, false, true, true, true, true] {
        let pass = pass(&mut state, now);
        let change = if fails { state.on_failure(&pass, now, None) } else { state.on_success(&pass, now) };
        assert_eq!(change, None);
    }
    let pass = pass(&mut state, now);
    let change = state.on_failure(&pass, now, None).unwrap();
    assert_eq!((change.from, change.to), (Position::Closed, Position::Open));
    assert_eq!((change.reason, change.open_for), (Reason::FailuresInARow, Some(30 * SECOND)));
    assert_eq!(state.look(now + 12 * SECOND), Err(OpenFor(18 * SECOND)));
}

#[test]
fn the_error_rate_opens_it_once_enough_was_asked() {
    let now = Instant::now();
    let mut state = state(rules(), now);
    for number in 1..=20 {
        let pass = pass(&mut state, now);
        // Success first, so that the row never gets long, and the twentieth is the tenth failure.
        let change =
            if number % 2 == 1 { state.on_success(&pass, now) } else { state.on_failure(&pass, now, None) };
        match number {
            20 => assert_eq!(change.unwrap().reason, Reason::ErrorRate),
            _ => assert_eq!(change, None, "{number}"),
        }
    }
}

#[test]
fn without_an_error_rate_only_the_row_counts() {
    let now = Instant::now();
    let mut state = state(Rules { error_rate: None, ..rules() }, now);
    for number in 0..1000 {
        let pass = pass(&mut state, now);
        if number % 5 == 0 {
            state.on_success(&pass, now)
        } else {
            state.on_failure(&pass, now, None)
        };
    }
    assert_eq!(state.position(), Position::Closed);
}

#[test]
fn failures_that_are_long_ago_do_not_count_for_the_rate() {
    let start = Instant::now();
    let mut state = state(Rules { failures: 100, ..rules() }, start);
    for number in 0..60 {
        // Ten in 30 s, never twenty.
        let now = start + number * 3 * SECOND;
        let pass = pass(&mut state, now);
        assert_eq!(state.on_failure(&pass, now, None), None);
    }
}

#[test]
fn the_open_time_doubles_while_probes_fail_and_starts_anew_after_it_closed() {
    let mut now = Instant::now();
    let mut state = state(rules(), now);
    trip(&mut state, now, None);
    for expected in [60, 120, 240, 300, 300] {
        now = state.open_until().unwrap();
        let probe = pass(&mut state, now);
        assert!(probe.is_probe());
        let change = state.on_failure(&probe, now, None).unwrap();
        assert_eq!((change.reason, change.open_for), (Reason::ProbeFailed, Some(expected * SECOND)));
    }
    now = state.open_until().unwrap();
    let probe = pass(&mut state, now);
    assert_eq!(state.on_success(&probe, now), None, "one of two");
    let probe = pass(&mut state, now);
    assert_eq!(state.on_success(&probe, now).unwrap().reason, Reason::ProbesSucceeded);
    trip(&mut state, now, None);
    assert_eq!(state.open_until(), Some(now + 30 * SECOND));
}

#[test]
fn a_retry_after_sets_the_open_time_within_bounds() {
    for (asked, expected) in [
        (7 * SECOND, 7 * SECOND),
        (Duration::ZERO, SECOND),
        (86_400 * SECOND, 300 * SECOND),
        (Duration::MAX, 300 * SECOND),
    ] {
        let now = Instant::now();
        let mut state = state(rules(), now);
        trip(&mut state, now, Some(asked));
        assert_eq!(state.open_until(), Some(now + expected), "{asked:?}");
    }
}

#[test]
fn a_probe_that_says_nothing_gives_its_place_back() {
    let now = Instant::now();
    let mut state = state(rules(), now);
    trip(&mut state, now, None);
    let now = now + 30 * SECOND;
    let (probe, change) = state.take(now).unwrap();
    assert_eq!(change.unwrap().to, Position::HalfOpen);
    assert_eq!(state.look(now), Err(OpenFor(PROBE_WAIT)));
    assert_eq!(state.take(now), Err(OpenFor(PROBE_WAIT)));
    state.on_nothing(&probe);
    assert_eq!(state.look(now), Ok(()));
    assert!(pass(&mut state, now).is_probe());
}

#[test]
fn what_began_before_a_transition_says_nothing_after_it() {
    let now = Instant::now();
    let mut state = state(rules(), now);
    let mut early: Vec<_> = (0..4).map(|_| pass(&mut state, now)).collect();
    trip(&mut state, now, None);
    assert_eq!(state.on_success(&early.pop().unwrap(), now), None);
    let now = now + 30 * SECOND;
    let probe = pass(&mut state, now);
    // As many as would close it, one that would open it, and a body that would.
    assert_eq!(state.on_success(&early.pop().unwrap(), now), None);
    assert_eq!(state.on_success(&early.pop().unwrap(), now), None);
    let last = early.pop().unwrap();
    assert_eq!(state.on_failure(&last, now, None), None);
    assert_eq!(state.on_broken(last.epoch(), now), None);
    assert_eq!((state.position(), state.running()), (Position::HalfOpen, 1));
    state.on_nothing(&probe);
}

#[test]
fn a_body_that_breaks_turns_a_success_into_a_failure() {
    let now = Instant::now();
    let mut state = state(rules(), now);
    let mut opened = None;
    for number in 1..=20 {
        let pass = pass(&mut state, now);
        state.on_success(&pass, now);
        opened = state.on_broken(pass.epoch(), now).map(|change| (number, change.reason));
    }
    // Each request is counted once: the twentieth makes enough for the rate, and all have failed.
    assert_eq!(opened, Some((20, Reason::ErrorRate)));
}

#[test]
fn the_body_of_a_probe_counts_while_the_breaker_is_half_open() {
    let now = Instant::now();
    let mut state = state(rules(), now);
    trip(&mut state, now, None);
    let now = now + 30 * SECOND;
    let probe = pass(&mut state, now);
    state.on_success(&probe, now);
    assert_eq!(state.on_broken(probe.epoch(), now).unwrap().reason, Reason::ProbeFailed);
    assert_eq!(state.running(), 0);
}

#[test]
fn other_numbers_do_not_close_it() {
    let now = Instant::now();
    let mut state = state(rules(), now);
    trip(&mut state, now, None);
    state.update(now, Rules { failures: 50, open_for: 20 * SECOND, error_rate: None, ..rules() });
    assert_eq!(state.open_until(), Some(now + 30 * SECOND));
    state.update(now, Rules { open_for: SECOND, max_open_for: 10 * SECOND, ..rules() });
    assert_eq!(state.open_until(), Some(now + 10 * SECOND), "no longer than they allow");
}

#[derive(Clone, Debug)]
enum Event {
    Later(u64),
    Take,
    Succeeds(prop::sample::Index),
    Fails(prop::sample::Index, Option<u64>),
    SaysNothing(prop::sample::Index),
    Breaks(u64),
    Update(Rules),
    Release,
}

fn any_rules() -> impl Strategy<Value = Rules> {
    let rate = prop::option::of((1u32..=100, 1_000u64..60_000, 1u32..10));
    (1u32..5, rate, 1u64..60_000, 0u64..240_000, 1u32..4, 1u32..4).prop_map(
        |(failures, rate, open_for, more, probes, successes)| Rules {
            failures,
            error_rate: rate.map(|(percent, window, min_requests)| ErrorRate {
                threshold: Ratio::from_percent(percent),
                window: Duration::from_millis(window),
                min_requests,
            }),
            open_for: Duration::from_millis(open_for),
            max_open_for: Duration::from_millis(open_for + more),
            probes,
            successes,
        },
    )
}

fn any_event() -> impl Strategy<Value = Event> {
    let index = any::<prop::sample::Index>;
    prop_oneof![
        4 => (0u64..90_000).prop_map(Event::Later),
        8 => Just(Event::Take),
        3 => index().prop_map(Event::Succeeds),
        4 => (index(), prop::option::of(any::<u64>())).prop_map(|(index, asked)| Event::Fails(index, asked)),
        1 => index().prop_map(Event::SaysNothing),
        1 => (0u64..20).prop_map(Event::Breaks),
        1 => any_rules().prop_map(Event::Update),
        1 => Just(Event::Release),
    ]
}

/// Takes one of the passes that are out.
fn one_of(out: &mut Vec<Pass>, index: prop::sample::Index) -> Option<Pass> {
    (!out.is_empty()).then(|| out.swap_remove(index.index(out.len())))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]
    #[test]
    fn whatever_happens(first in any_rules(), events in prop::collection::vec(any_event(), 1..120)) {
        let mut now = Instant::now();
        let (mut rules, mut state, mut out) = (first, state(first, now), Vec::<Pass>::new());
        for event in events {
            let (before, epoch) = (state.position(), state.epoch());
            let mut change = None;
            match event {
                Event::Later(millis) => now += Duration::from_millis(millis),
                Event::Take => {
                    let looked = state.look(now);
                    let (until, probes) = (state.open_until(), state.running());
                    match state.take(now) {
                        Ok((pass, made)) => {
                            prop_assert!(looked.is_ok());
                            prop_assert!(until.is_none_or(|until| until <= now), "nothing passes an open breaker");
                            prop_assert_eq!(pass.is_probe(), before != Position::Closed);
                            prop_assert!(!pass.is_probe() || probes < rules.probes, "never more than the probes");
                            out.push(pass);
                            change = made;
                        }
                        Err(refusal) => {
                            prop_assert_eq!(looked, Err(refusal));
                            prop_assert_ne!(before, Position::Closed, "a closed breaker never refuses");
                            prop_assert!(!refusal.0.is_zero());
                        }
                    }
                }
                Event::Succeeds(index) => {
                    if let Some(pass) = one_of(&mut out, index) { change = state.on_success(&pass, now); }
                }
                Event::Fails(index, asked) => {
                    if let Some(pass) = one_of(&mut out, index) {
                        change = state.on_failure(&pass, now, asked.map(Duration::from_millis));
                    }
                }
                Event::SaysNothing(index) => {
                    if let Some(pass) = one_of(&mut out, index) { state.on_nothing(&pass); }
                }
                Event::Breaks(age) => change = state.on_broken(state.epoch().saturating_sub(age), now),
                Event::Update(other) => {
                    rules = other;
                    state.update(now, other);
                    prop_assert_eq!(state.position(), before, "a reload changes nothing");
                }
                Event::Release => {
                    change = state.release();
                    prop_assert_eq!(state.position(), Position::Closed);
                    prop_assert!(state.epoch() > epoch);
                }
            }
            let probes = out.iter().filter(|pass| pass.is_probe()).count();
            prop_assert_eq!(state.running() as usize, probes, "no place leaks, none is given twice");
            prop_assert_eq!(change.is_some(), before != state.position());
            if let Some(change) = change {
                prop_assert_eq!((change.from, change.to), (before, state.position()));
                prop_assert_ne!(change.from, change.to);
                prop_assert_eq!(change.open_for.is_some(), change.to == Position::Open);
            }
            if let Some(open_for) = change.and_then(|change| change.open_for) {
                let least = rules.open_for.min(SHORTEST_ASKED).min(rules.max_open_for);
                prop_assert!((least..=rules.max_open_for).contains(&open_for), "{:?}", open_for);
                prop_assert_eq!(state.open_until(), Some(now + open_for));
            }
        }
        // Whatever was, it gets well again: all that is out ends, the time passes, the probes succeed.
        for pass in out.drain(..) { state.on_nothing(&pass); }
        now += rules.max_open_for;
        for _ in 0..rules.successes {
            let (pass, _) = state.take(now).map_err(|open| TestCaseError::fail(format!("{open:?}")))?;
            state.on_success(&pass, now);
        }
        prop_assert_eq!(state.position(), Position::Closed);
    }
}
