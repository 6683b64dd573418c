use std::time::Duration;

use super::{all, compiled, with_each};

/// What a policy writes of a provider wins over every preset, on the preset's routes too, and what it does not write stays.
#[test]
fn every_preset_gives_way_key_by_key() {
    let own = "    timeouts: { response: 77s, deadline: 99s }\n    retry: { attempts: 7 }\n    quota: { max_hold: 20m }\n    concurrency: { max: 3 }\n    max_body: 5MiB\n    headers: { default: { x-own: a } }\n    limits: [{ name: own, rate: 7/s }]\n    responses: [{ when: { status: 418 }, is: overload }]\n";
    for (name, preset) in all() {
        let with = &with_each(&preset)[0];
        let provider = |own: &str| {
            let policy = format!(
                "version: 1\nproviders:\n  p:\n    preset: {name}\n    with: {{ {with} }}\n    credential: none\n{own}"
            );
            compiled(&policy).unwrap_or_else(|told| panic!("{name}: {told}")).providers.remove(0)
        };
        let (before, after) = (provider(""), provider(own));
        assert_eq!(before.routes.len(), after.routes.len(), "{name}");
        for (before, after) in before.routes.iter().zip(&after.routes) {
            let place = format!("{name} {}", after.name);
            let (was, is) = (&before.settings, &after.settings);
            let times = (is.timeouts.response, is.timeouts.deadline);
            assert_eq!(times, (Duration::from_secs(77), Duration::from_secs(99)), "{place}");
            assert_eq!(is.timeouts.idle, was.timeouts.idle, "{place}");
            assert_eq!(is.max_body, Some(5 << 20), "{place}");
            let retry = &is.layers.retry.as_ref().unwrap().settings;
            assert_eq!(retry.attempts, 7, "{place}");
            if let Some(was) = &was.layers.retry {
                assert_eq!(
                    (&retry.hint, &retry.backoff),
                    (&was.settings.hint, &was.settings.backoff),
                    "{place}"
                );
            }
            if let (Some(is), Some(was)) = (&is.layers.quota, &was.layers.quota) {
                assert_eq!(is.max_hold, Duration::from_secs(1200), "{place}");
                assert_eq!((&is.bucket, &is.fields), (&was.bucket, &was.fields), "{place}");
            }
            let most = &is.layers.concurrency.as_ref().unwrap().settings;
            assert_eq!(most.max, 3, "{place}");
            if let Some(was) = &was.layers.concurrency {
                assert_eq!(most.max_wait, was.settings.max_wait, "{place}");
            }
            // Added: lists of limits and of rows.
            assert_eq!(is.layers.limits.len(), was.layers.limits.len() + 1, "{place}");
            assert!(is.layers.responses != was.layers.responses, "{place}");
            assert_eq!(is.layers.idempotency, was.layers.idempotency, "{place}");
            let names = |edits: &crate::policy::compiled::HeaderEdits| edits.default.len();
            assert_eq!(names(&is.headers), names(&was.headers) + 1, "{place}");
        }
    }
}

/// Keys and methods in `defaults` are for providers without a preset: what may be repeated is what a preset knows.
#[test]
fn defaults_make_nothing_repeatable_where_a_preset_knows_better() {
    let defaults = "defaults: { idempotency: { header: Idempotency-Key, methods: [POST], add: true }, retry: { methods: [POST] } }\n";
    for (name, preset) in all() {
        let with = &with_each(&preset)[0];
        let routes = |defaults: &str| {
            let policy = format!(
                "version: 1\n{defaults}providers:\n  p: {{ preset: {name}, with: {{ {with} }}, credential: none }}\n"
            );
            let provider =
                compiled(&policy).unwrap_or_else(|told| panic!("{name}: {told}")).providers.remove(0);
            let layers = provider.routes.iter().map(|route| &route.settings.layers);
            layers
                .map(|layers| {
                    let methods = layers.retry.as_ref().map(|retry| retry.settings.methods.clone());
                    (layers.idempotency.clone(), methods)
                })
                .collect::<Vec<_>>()
        };
        assert_eq!(routes(defaults), routes(""), "{name}");
    }
    let own = "providers: { p: { hosts: [a.example] } }\n";
    let policy = compiled(&format!("version: 1\n{defaults}{own}")).unwrap();
    assert!(policy.providers[0].routes[0].settings.layers.idempotency.is_some(), "without a preset");
}

/// What says no to a repetition is not lost behind a switch.
#[test]
fn retry_of_a_route_over_a_provider_that_has_none_keeps_the_presets_hint() {
    let hint = |retry: &str| {
        let policy = format!(
            "version: 1\nproviders:\n  p:\n    preset: stripe\n    credential: none\n    retry: off\n    routes: [{{ match: {{ path: /a }}, retry: {retry} }}]\n"
        );
        let policy = compiled(&policy).unwrap();
        let chosen = policy.route(0, &http::Method::GET, "/a").unwrap();
        let retry = chosen.settings.settings.layers.retry.clone();
        retry.and_then(|retry| retry.settings.hint.map(|hint| (retry.settings.attempts, hint.to_string())))
    };
    let stripe = |attempts| Some((attempts, "stripe-should-retry".to_owned()));
    assert_eq!(hint("{ attempts: 4 }"), stripe(4));
    assert_eq!(hint("off"), stripe(1));
    assert_eq!(hint("{ attempts: 4, hint: null }"), None);
    assert_eq!(hint("{ hint: { header: x-own } }"), Some((3, "x-own".to_owned())));
}

/// A route's limit of the same name takes the place of the account's, and follows the account's parameter.
#[test]
fn meter_events_have_a_rate_of_their_own() {
    let limits = |with: &str, path: &str| {
        let policy = format!(
            "version: 1\nproviders: {{ p: {{ preset: stripe, credential: none, with: {{ {with} }} }} }}"
        );
        let policy = compiled(&policy).unwrap();
        let chosen = policy.route(0, &http::Method::POST, path).unwrap();
        let limits = chosen.settings.settings.layers.limits.iter();
        limits.map(|limit| format!("{} {}", limit.settings.name, limit.settings.rate)).collect::<Vec<_>>()
    };
    let events = "/v1/billing/meter_events";
    assert_eq!(limits("", events), ["account 1000/s"]);
    assert_eq!(limits("", "/v1/charges"), ["account 100/s"]);
    assert_eq!(limits("mode: sandbox", events), ["account 25/s"]);
    assert_eq!(limits("mode: sandbox, meter_events: live", events), ["account 1000/s"]);
}
