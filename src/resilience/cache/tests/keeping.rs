//! What is kept beyond what RFC 9111 says.

use super::*;

#[tokio::test(start_paused = true)]
async fn only_answers_to_the_question_are_kept() {
    use Class::*;
    for (class, answer, kept) in [
        (Success, FRESH, true),
        (Final, FRESH, true),
        (Final, &[("etag", "\"a\"")][..], false),
        (Throttle, FRESH, false),
        (Quota, FRESH, false),
        (Concurrency, FRESH, false),
        (Overload, FRESH, false),
        (Conflict, FRESH, false),
        (Unavailable, FRESH, false),
        (Unauthorized, FRESH, false),
    ] {
        let rig = Rig::new("{}");
        rig.origin.reply(Reply { verdict: verdict(class), ..Reply::ok(answer, "one") });
        rig.get(&[]).await;
        assert_eq!(rig.state.status().stored, u64::from(kept), "{class}");
        assert_eq!(rig.state.status().not_storable, u64::from(!kept), "{class}");
    }
}

#[tokio::test(start_paused = true)]
async fn default_ttl_is_for_answers_that_say_nothing() {
    for (what, status, answer, pass_, hit) in [
        ("nothing said", 200, &[][..], 299, true),
        ("and no longer", 200, &[], 300, false),
        ("in place of a guess", 200, &[("last-modified", "Tue, 15 Nov 2022 11:00:00 GMT")], 299, true),
        ("not against max-age", 200, SHORT, 11, false),
        ("not against Expires", 200, &[("expires", "0")], 1, false),
        ("not against no-cache", 200, &[("cache-control", "no-cache")], 1, false),
        ("not against no-store", 200, &[("cache-control", "no-store")], 1, false),
        ("with private", 200, &[("cache-control", "private")], 299, true),
        ("a lasting redirect", 308, &[], 299, true),
        ("not an error", 404, &[], 1, false),
        ("not a passing redirect", 302, &[], 1, false),
    ] {
        let rig = Rig::new(r#"{"default_ttl": "5m"}"#);
        rig.origin.reply(Reply::with(status, answer, "one"));
        rig.origin.reply(Reply::ok(&[], "two"));
        rig.get(&[]).await;
        pass(pass_).await;
        assert_eq!(rig.get(&[]).await.is_hit(), hit, "{what}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_newer_answer_that_is_not_kept_puts_an_end_to_the_old_one() {
    for (what, reply, ended) in [
        ("gone", Reply::with(404, &[], ""), true),
        ("forbidden", Reply { verdict: verdict(Class::Final), ..Reply::with(403, &[], "") }, true),
        ("not to be kept", Reply::ok(&[("cache-control", "no-store")], ""), true),
        ("a throttle", Reply { verdict: verdict(Class::Throttle), ..Reply::with(429, &[], "") }, false),
        (
            "a refused credential",
            Reply { verdict: verdict(Class::Unauthorized), ..Reply::with(401, &[], "") },
            false,
        ),
        ("a failure", Reply::failing(Fault::Reset), false),
    ] {
        let rig = Rig::new("{}");
        rig.origin.reply(Reply::ok(SHORT, "one"));
        rig.get(&[]).await;
        pass(20).await;
        rig.origin.reply(reply);
        rig.get(&[]).await;
        let then = rig.send(request(Method::GET, "/v1/items", &[])).await;
        assert_eq!(then.is_err(), ended, "{what}: whether the old answer still stands in for a failure");
    }
}
