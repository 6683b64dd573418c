use http::Method;
use proptest::prelude::*;
use proptest::sample::select;

use super::*;
use crate::resilience::mistake::Mistakes;
use crate::resilience::retry::config::RetryConfig;
use crate::resilience::retry::settings::Triggers;

const SECOND: Duration = Duration::from_secs(1);
const BACKOFF: Duration = Duration::from_millis(250);

/// Every fault there is; a new one fails to compile in `trigger_of_failure` and is added here.
const FAULTS: [Fault; 38] = [
    Fault::AddressDenied,
    Fault::OwnListener,
    Fault::Dns,
    Fault::DnsTimeout,
    Fault::ConnectRefused,
    Fault::ConnectUnroutable,
    Fault::Connect,
    Fault::ConnectTimeout,
    Fault::UpstreamProxy,
    Fault::TlsCertificate,
    Fault::TlsAlert,
    Fault::TlsProtocol,
    Fault::TlsTimeout,
    Fault::RateLimited,
    Fault::QuotaHeld,
    Fault::QueueFull,
    Fault::ConcurrencyLimit,
    Fault::BreakerOpen,
    Fault::ConnectionLimit,
    Fault::Reset,
    Fault::Protocol,
    Fault::HeadTooLarge,
    Fault::Upgrade,
    Fault::Withheld,
    Fault::ResponseTimeout,
    Fault::IdleTimeout,
    Fault::Deadline,
    Fault::Total,
    Fault::Credential,
    Fault::TargetTooLong,
    Fault::Unfit(""),
    Fault::BodyTooLargeToRewrite,
    Fault::Forbidden(""),
    Fault::DownstreamGone,
    Fault::DownstreamMalformed,
    Fault::DownstreamStalled,
    Fault::BodyTooLarge,
    Fault::Internal,
];
const PROGRESS: [Progress; 3] = [Progress::NotSent, Progress::Sent, Progress::HeadReceived];
const CLASSES: [Class; 9] = [
    Class::Throttle,
    Class::Quota,
    Class::Concurrency,
    Class::Overload,
    Class::Conflict,
    Class::Unavailable,
    Class::Unauthorized,
    Class::Final,
    Class::Success,
];

fn settings() -> RetrySettings {
    RetryConfig::default().compile(&mut Mistakes::default())
}

fn failed(fault: Fault, progress: Progress) -> Outcome {
    Outcome::Failed { fault, progress }
}

fn answered(class: Class, acted: bool) -> Outcome {
    Outcome::Answered { verdict: Verdict { class, acted, wait: None }, hint: None }
}

fn hinted(class: Class, acted: bool, hint: bool) -> Outcome {
    Outcome::Answered { verdict: Verdict { class, acted, wait: None }, hint: Some(hint) }
}

fn waits(class: Class, seconds: u64) -> Outcome {
    let verdict = Verdict { class, acted: false, wait: Some(SECOND * u32::try_from(seconds).unwrap()) };
    Outcome::Answered { verdict, hint: None }
}

/// A POST without a key, after its first attempt, with all the time there is.
fn post(outcome: Outcome) -> Situation {
    Situation {
        outcome,
        method_listed: false,
        has_key: false,
        upgrade: false,
        attempts: 1,
        body_whole: true,
        budget: true,
        left: Some(120 * SECOND),
        backoff: BACKOFF,
        lateness: 0,
    }
}

fn get(outcome: Outcome) -> Situation {
    Situation { method_listed: true, ..post(outcome) }
}

fn keyed(outcome: Outcome) -> Situation {
    Situation { has_key: true, ..post(outcome) }
}

/// `not_sent throttle`, or `may_have_acted`.
fn word(decision: Decision) -> String {
    match decision {
        Decision::Again { ground, reason, .. } => format!("{ground:?} {reason}"),
        Decision::Stop(why) => format!("{why:?}"),
    }
}

#[test]
fn failures() {
    use Fault::*;
    use Progress::*;
    // Fault, progress: POST, POST with a key, GET.
    let table = [
        (Dns, NotSent, ["NotSent connect"; 3]),
        (DnsTimeout, NotSent, ["NotSent connect"; 3]),
        (ConnectRefused, NotSent, ["NotSent connect"; 3]),
        (ConnectUnroutable, NotSent, ["NotSent connect"; 3]),
        (Connect, NotSent, ["NotSent connect"; 3]),
        (ConnectTimeout, NotSent, ["NotSent connect"; 3]),
        (UpstreamProxy, NotSent, ["NotSent connect"; 3]),
        (TlsAlert, NotSent, ["NotSent connect"; 3]),
        (TlsProtocol, NotSent, ["NotSent connect"; 3]),
        (TlsTimeout, NotSent, ["NotSent connect"; 3]),
        (Reset, NotSent, ["NotSent connect"; 3]),
        (Reset, Sent, ["MayHaveActed", "Key reset", "Method reset"]),
        (Protocol, Sent, ["MayHaveActed", "Key reset", "Method reset"]),
        (Protocol, HeadReceived, ["Final"; 3]),
        (ResponseTimeout, Sent, ["MayHaveActed", "Key timeout", "Method timeout"]),
        (IdleTimeout, Sent, ["MayHaveActed", "Key timeout", "Method timeout"]),
        (IdleTimeout, NotSent, ["NotSent timeout"; 3]),
        (TlsCertificate, NotSent, ["Final"; 3]),
        (HeadTooLarge, Sent, ["Final"; 3]),
        (Upgrade, HeadReceived, ["Final"; 3]),
        (Withheld, Sent, ["Final"; 3]),
        (AddressDenied, NotSent, ["Refused"; 3]),
        (OwnListener, NotSent, ["Refused"; 3]),
        (RateLimited, NotSent, ["Refused"; 3]),
        (QuotaHeld, NotSent, ["Refused"; 3]),
        (QueueFull, NotSent, ["Refused"; 3]),
        (ConcurrencyLimit, NotSent, ["Refused"; 3]),
        (BreakerOpen, NotSent, ["Refused"; 3]),
        (ConnectionLimit, NotSent, ["Refused"; 3]),
        (Deadline, Sent, ["Refused"; 3]),
        (Total, Sent, ["Refused"; 3]),
        (Credential, NotSent, ["Refused"; 3]),
        (TargetTooLong, NotSent, ["Refused"; 3]),
        (Unfit(""), NotSent, ["Refused"; 3]),
        (BodyTooLargeToRewrite, NotSent, ["Downstream"; 3]),
        (Forbidden(""), NotSent, ["Refused"; 3]),
        (Internal, NotSent, ["Refused"; 3]),
        (DownstreamGone, Sent, ["Downstream"; 3]),
        (DownstreamMalformed, Sent, ["Downstream"; 3]),
        (DownstreamStalled, Sent, ["Downstream"; 3]),
        (BodyTooLarge, Sent, ["Downstream"; 3]),
    ];
    for (fault, progress, expected) in table {
        let outcome = failed(fault, progress);
        let found = [post(outcome), keyed(outcome), get(outcome)].map(|one| word(decide(&settings(), &one)));
        assert_eq!(found, expected, "{fault:?} {progress:?}");
    }
    assert!(FAULTS.iter().all(|fault| table.iter().any(|row| row.0 == *fault)));
}

#[test]
fn answers() {
    use Class::*;
    // Class, acted: POST, POST with a key, GET.
    let table = [
        (Throttle, false, ["NotActed throttle"; 3]),
        (Throttle, true, ["MayHaveActed", "Key throttle", "Method throttle"]),
        (Concurrency, false, ["NotActed concurrency"; 3]),
        (Concurrency, true, ["MayHaveActed", "Key concurrency", "Method concurrency"]),
        (Conflict, false, ["NotActed conflict"; 3]),
        (Conflict, true, ["MayHaveActed", "Key conflict", "Method conflict"]),
        (Overload, false, ["NotActed overload"; 3]),
        (Overload, true, ["MayHaveActed", "Key overload", "Method overload"]),
        (Unavailable, false, ["NotActed unavailable"; 3]),
        (Unavailable, true, ["MayHaveActed", "Key unavailable", "Method unavailable"]),
        (Quota, false, ["Quota"; 3]),
        (Quota, true, ["Quota"; 3]),
        (Unauthorized, false, ["Unauthorized"; 3]),
        (Unauthorized, true, ["Unauthorized"; 3]),
        (Final, false, ["Final"; 3]),
        (Final, true, ["Final"; 3]),
        (Success, false, ["Done"; 3]),
        (Success, true, ["Done"; 3]),
    ];
    for (class, acted, expected) in table {
        let outcome = answered(class, acted);
        let found = [post(outcome), keyed(outcome), get(outcome)].map(|one| word(decide(&settings(), &one)));
        assert_eq!(found, expected, "{class} {acted}");
    }
}

/// What the provider's own word changes, for every class: nothing said, yes, no; of a POST, a POST with a key, a GET.
#[test]
fn the_providers_hint() {
    use Class::*;
    let may = |class: &'static str| {
        let key = format!("Key {class}");
        ["MayHaveActed".to_owned(), key, format!("Method {class}")]
    };
    let refused = ["MayHaveActed", "Hint", "Hint"].map(str::to_owned);
    let all = |word: &str| [word, word, word].map(str::to_owned);
    // Class, acted; nothing said; yes; no.
    let table = [
        (Throttle, false, all("NotActed throttle"), all("NotActed throttle"), all("Hint")),
        (Throttle, true, may("throttle"), may("throttle"), refused.clone()),
        (Concurrency, false, all("NotActed concurrency"), all("NotActed concurrency"), all("Hint")),
        (Conflict, true, may("conflict"), may("conflict"), refused.clone()),
        (Overload, true, may("overload"), may("overload"), refused.clone()),
        (Unavailable, true, may("unavailable"), may("unavailable"), refused.clone()),
        // Its yes reopens what the table calls final, on the grounds that there are for everything else.
        (Final, true, all("Final"), may("hint"), all("Final")),
        (Final, false, all("Final"), all("NotActed hint"), all("Final")),
        // A plan that is exhausted, a credential that is refused, and what succeeded are not tried again.
        (Quota, false, all("Quota"), all("Quota"), all("Quota")),
        (Quota, true, all("Quota"), all("Quota"), all("Quota")),
        (Unauthorized, false, all("Unauthorized"), all("Unauthorized"), all("Unauthorized")),
        (Success, true, all("Done"), all("Done"), all("Done")),
    ];
    assert!(CLASSES.iter().all(|class| table.iter().any(|row| row.0 == *class)));
    for (class, acted, silent, yes, no) in table {
        for (outcome, expected) in [
            (answered(class, acted), silent),
            (hinted(class, acted, true), yes),
            (hinted(class, acted, false), no),
        ] {
            let found =
                [post(outcome), keyed(outcome), get(outcome)].map(|one| word(decide(&settings(), &one)));
            assert_eq!(found, expected, "{outcome:?}");
        }
    }
}

/// Its yes stands for a class that is not on the list, and for nothing that bounds a repetition.
#[test]
fn a_yes_permits_what_is_not_listed_and_lifts_no_bound() {
    let only_connect = RetrySettings { on: [Trigger::Connect].into_iter().collect(), ..settings() };
    let all = settings();
    use Class::*;
    let asked = get(hinted(Final, true, true));
    let late = Verdict { class: Final, acted: true, wait: Some(61 * SECOND) };
    let table = [
        (&only_connect, get(answered(Unavailable, true)), "NotListed"),
        (&only_connect, get(hinted(Unavailable, true, true)), "Method unavailable"),
        (&only_connect, keyed(hinted(Conflict, true, true)), "Key conflict"),
        (&only_connect, post(hinted(Throttle, false, true)), "NotActed throttle"),
        (&only_connect, post(hinted(Unavailable, true, true)), "MayHaveActed"),
        (&only_connect, asked, "Method hint"),
        (&all, Situation { attempts: 3, ..asked }, "Attempts"),
        (&all, Situation { body_whole: false, ..asked }, "Body"),
        (&all, Situation { budget: false, ..asked }, "Budget"),
        (&all, Situation { left: Some(BACKOFF), ..asked }, "Deadline"),
        (&all, Situation { upgrade: true, ..asked }, "MayHaveActed"),
        (&all, get(Outcome::Answered { verdict: late, hint: Some(true) }), "Wait"),
    ];
    for (settings, situation, expected) in table {
        assert_eq!(word(decide(settings, &situation)), expected, "{situation:?}");
    }
}

#[test]
fn what_else_stops() {
    let throttled = answered(Class::Throttle, false);
    let reset = failed(Fault::Reset, Progress::Sent);
    let refused = failed(Fault::ConnectRefused, Progress::NotSent);
    let table = [
        (Situation { attempts: 2, ..post(throttled) }, "NotActed throttle"),
        (Situation { attempts: 3, ..post(throttled) }, "Attempts"),
        (Situation { body_whole: false, ..post(throttled) }, "Body"),
        (Situation { budget: false, ..post(throttled) }, "Budget"),
        (Situation { left: None, ..post(throttled) }, "NotActed throttle"),
        (Situation { left: Some(BACKOFF), ..post(throttled) }, "Deadline"),
        (Situation { left: Some(2 * BACKOFF), ..post(throttled) }, "NotActed throttle"),
        (Situation { left: Some(Duration::ZERO), backoff: Duration::ZERO, ..post(throttled) }, "Deadline"),
        (post(waits(Class::Throttle, 60)), "NotActed throttle"),
        (post(waits(Class::Throttle, 61)), "Wait"),
        (Situation { left: Some(30 * SECOND), ..post(waits(Class::Throttle, 30)) }, "Deadline"),
        // An upgrade: on ground (1) alone.
        (Situation { upgrade: true, ..get(reset) }, "MayHaveActed"),
        (Situation { upgrade: true, ..get(throttled) }, "MayHaveActed"),
        (Situation { upgrade: true, ..get(refused) }, "NotSent connect"),
    ];
    for (situation, expected) in table {
        assert_eq!(word(decide(&settings(), &situation)), expected, "{situation:?}");
    }
}

#[test]
fn the_wait_is_the_longer_of_what_the_provider_asks_and_backoff() {
    for (outcome, expected) in [
        (answered(Class::Throttle, false), BACKOFF),
        (waits(Class::Throttle, 0), BACKOFF),
        (waits(Class::Throttle, 7), 7 * SECOND),
    ] {
        let Decision::Again { after, .. } = decide(&settings(), &post(outcome)) else {
            panic!("{outcome:?}");
        };
        assert_eq!(after, expected);
    }
}

fn any_outcome() -> impl Strategy<Value = Outcome> {
    let wait = proptest::option::of(0_u64..200_000);
    let answer = (select(&CLASSES[..]), any::<bool>(), wait, any::<Option<bool>>());
    let answer = answer.prop_map(|(class, acted, wait, hint)| Outcome::Answered {
        verdict: Verdict { class, acted, wait: wait.map(Duration::from_millis) },
        hint,
    });
    let failure = (select(&FAULTS[..]), select(&PROGRESS[..])).prop_map(|(fault, p)| failed(fault, p));
    prop_oneof![answer, failure]
}

prop_compose! {
    fn any_situation()(
        outcome in any_outcome(),
        flags in any::<[bool; 5]>(),
        attempts in 1_u32..12,
        left in proptest::option::of(0_u64..200_000),
        backoff in 0_u64..20_000,
        lateness: u16,
    ) -> Situation {
        let [method_listed, has_key, upgrade, body_whole, budget] = flags;
        Situation {
            outcome, method_listed, has_key, upgrade, attempts, body_whole, budget,
            left: left.map(Duration::from_millis),
            backoff: Duration::from_millis(backoff),
            lateness,
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4096))]

    /// Written out once more, without the code under test.
    #[test]
    fn never_again_without_a_ground_nor_beyond_a_bound(
        situation in any_situation(),
        on in proptest::collection::vec(select(&Trigger::ALL[..]), 0..8),
        attempts in 1_u32..10,
    ) {
        let settings = RetrySettings { attempts, on: on.into_iter().collect(), methods: [Method::GET].into(), ..settings() };
        let Decision::Again { after, .. } = decide(&settings, &situation) else { return Ok(()) };
        let safe = match situation.outcome {
            Outcome::Failed { progress: Progress::NotSent, .. } => true,
            Outcome::Failed { .. } => !situation.upgrade && (situation.has_key || situation.method_listed),
            Outcome::Answered { verdict, .. } => {
                !situation.upgrade && (!verdict.acted || situation.has_key || situation.method_listed)
            }
        };
        prop_assert!(safe);
        prop_assert!(situation.attempts < settings.attempts);
        prop_assert!(situation.body_whole && situation.budget);
        prop_assert!(situation.left.is_none_or(|left| after < left));
        prop_assert!(after >= situation.backoff);
        match situation.outcome {
            Outcome::Answered { verdict, hint } => {
                let never = [Class::Quota, Class::Unauthorized, Class::Success];
                prop_assert!(!never.contains(&verdict.class));
                prop_assert!(verdict.class != Class::Final || hint == Some(true));
                prop_assert!(verdict.wait.is_none_or(|wait| wait <= after && wait <= settings.max_retry_after));
                prop_assert!(hint != Some(false));
                prop_assert!(hint == Some(true) || !settings.on.is_empty());
            }
            Outcome::Failed { .. } => prop_assert!(!settings.on.is_empty()),
        }
    }

    /// Taking something away never makes a request repeatable.
    #[test]
    fn less_never_permits_more(situation in any_situation()) {
        let again = |one: &Situation| matches!(decide(&settings(), one), Decision::Again { .. });
        let none = RetrySettings { on: Triggers::default(), hint: None, ..settings() };
        let unhinted = match situation.outcome {
            Outcome::Answered { verdict, .. } => Outcome::Answered { verdict, hint: None },
            failed @ Outcome::Failed { .. } => failed,
        };
        let unhinted = decide(&none, &Situation { outcome: unhinted, ..situation });
        prop_assert!(matches!(unhinted, Decision::Stop(_)), "{:?}", unhinted);
        for less in [
            Situation { has_key: false, ..situation },
            Situation { method_listed: false, ..situation },
            Situation { body_whole: false, ..situation },
            Situation { budget: false, ..situation },
            Situation { attempts: situation.attempts + 1, ..situation },
            Situation { left: Some(Duration::ZERO), ..situation },
            Situation { upgrade: true, ..situation },
        ] {
            prop_assert!(again(&situation) || !again(&less), "{less:?}");
        }
    }

    /// Who was told the same wait does not come back at the same moment; and chance decides nothing but the moment.
    #[test]
    fn who_was_told_a_wait_comes_a_little_later_and_never_sooner(
        millis in 1_u64..70_000, left in proptest::option::of(0_u64..100_000), lateness: u16,
    ) {
        let wait = Duration::from_millis(millis);
        let outcome = Outcome::Answered { verdict: Verdict { class: Class::Throttle, acted: false, wait: Some(wait) }, hint: None };
        let left = left.map(Duration::from_millis);
        let exact = Situation { backoff: Duration::ZERO, left, ..post(outcome) };
        let after = |situation: &Situation| match decide(&settings(), situation) {
            Decision::Again { after, .. } => Some(after),
            Decision::Stop(_) => None,
        };
        let (first, drawn) = (after(&exact), after(&Situation { lateness, ..exact }));
        let last = after(&Situation { lateness: u16::MAX, ..exact });
        prop_assert_eq!(first.is_some(), drawn.is_some());
        let (Some(first), Some(drawn), Some(last)) = (first, drawn, last) else { return Ok(()) };
        prop_assert_eq!(first, wait);
        prop_assert!(first <= drawn && drawn <= last);
        prop_assert!(last <= settings().max_retry_after && left.is_none_or(|left| last < left));
        prop_assert!(last - wait <= SECOND && last - wait <= wait / 10);
        if left.is_none() && wait < 50 * SECOND {
            prop_assert_eq!(last - wait, SECOND.min(wait / 10), "the range is used");
        }
    }
}
