//! RFC 9111, section by section, as far as it applies to a private cache.

use super::*;

/// One request fills the cache, time passes, and a second one asks again.
pub(super) struct Case<'a> {
    pub what: &'a str,
    pub status: u16,
    pub answer: Lines<'a>,
    pub pass: u64,
    pub again: Lines<'a>,
    pub hit: bool,
}

pub(super) const OK: Case<'static> =
    Case { what: "", status: 200, answer: &[], pass: 1, again: &[], hit: true };

pub(super) async fn check(section: &str, cases: &[Case<'_>]) {
    for case in cases {
        let rig = Rig::new(r#"{"stale_if_error": "off"}"#);
        rig.origin.reply(Reply::with(case.status, case.answer, "one"));
        rig.origin.reply(Reply::ok(&[], "two"));
        let first = rig.get(&[]).await;
        assert_eq!(first.body, "one", "{section}: {}", case.what);
        pass(case.pass).await;
        let second = rig.get(case.again).await;
        let expected = if case.hit { "one" } else { "two" };
        assert_eq!(second.body, expected, "{section}: {}: {}", case.what, second.note());
        assert_eq!(second.is_hit(), case.hit, "{section}: {}: {}", case.what, second.note());
        let requests = rig.origin.requests();
        assert_eq!(requests, if case.hit { 1 } else { 2 }, "{section}: {}", case.what);
    }
}

#[tokio::test(start_paused = true)]
async fn section_3_what_may_be_stored() {
    let fresh: Lines<'_> = &[("cache-control", "max-age=60")];
    let mut cases = Vec::new();
    for status in [200, 203, 204, 300, 301, 302, 303, 307, 308, 404, 405, 410, 414, 501] {
        cases.push(Case { what: "a status that is understood", status, answer: fresh, ..OK });
    }
    for status in [201, 202, 206, 304, 400, 401, 403, 418, 429, 500, 502, 503, 504] {
        cases.push(Case { what: "a status that is not", status, answer: fresh, hit: false, ..OK });
    }
    // A body with a 204 or 304 is the doing of this test alone.
    cases.retain(|case| case.status != 304);
    for (what, answer, hit) in [
        ("private is for us", [("cache-control", "private, max-age=60")].as_slice(), true),
        ("no-store", &[("cache-control", "no-store, max-age=60")], false),
        ("no-store in capitals", &[("cache-control", "NO-STORE, max-age=60")], false),
        ("in a second field", &[("cache-control", "max-age=60"), ("cache-control", "no-store")], false),
        ("no-store in quotes is no directive", &[("cache-control", "x=\"no-store\", max-age=60")], true),
        ("a field that cannot be read", &[("cache-control", "max-age=60, \u{e9}")], false),
        ("Set-Cookie", &[("cache-control", "max-age=60"), ("set-cookie", "a=b")], false),
        ("Content-Range", &[("cache-control", "max-age=60"), ("content-range", "bytes 0-1/2")], false),
        (
            "an endless stream",
            &[("cache-control", "max-age=60"), ("content-type", "text/event-stream")],
            false,
        ),
        (
            "a length that is not the body's",
            &[("cache-control", "max-age=60"), ("content-length", "9")],
            false,
        ),
    ] {
        cases.push(Case { what, answer, hit, ..OK });
    }
    check("3", &cases).await;
}

#[tokio::test(start_paused = true)]
async fn section_3_1_head_fields_are_kept_as_they_came() {
    let rig = Rig::new("{}");
    rig.origin.reply(Reply::ok(
        &[("cache-control", "max-age=60"), ("link", "<a>"), ("link", "<b>"), ("x-odd", "\u{e9}")],
        "one",
    ));
    let first = rig.get(&[]).await;
    let second = rig.get(&[]).await;
    assert!(second.is_hit());
    for name in ["cache-control", "link", "x-odd", "date"] {
        let all = |got: &Got| got.headers.get_all(name).iter().cloned().collect::<Vec<_>>();
        assert!(!all(&first).is_empty(), "{name}");
        assert_eq!(all(&first), all(&second), "{name}");
    }
    assert_eq!(first.field("date"), Some(BEGIN), "the provider sent none");
}

#[tokio::test(start_paused = true)]
async fn section_4_2_1_lifetime() {
    let (soon, past, late) = (date(60), date(-1), date(3600));
    let rfc850 = "Tuesday, 15-Nov-22 12:01:00 GMT";
    let asctime = "Tue Nov 15 12:01:00 2022";
    let now = date(0);
    type Told<'a> = (&'a str, Vec<(&'a str, &'a str)>, u64, bool);
    let cases: Vec<Told<'_>> = vec![
        ("max-age", vec![("cache-control", "max-age=60")], 59, true),
        ("max-age is over", vec![("cache-control", "max-age=60")], 60, false),
        ("max-age=0", vec![("cache-control", "max-age=0")], 1, false),
        ("a name in capitals", vec![("cache-control", "Max-Age=60")], 59, true),
        ("in quotes", vec![("cache-control", "max-age=\"60\"")], 59, true),
        ("negative", vec![("cache-control", "max-age=-60")], 1, false),
        ("a fraction", vec![("cache-control", "max-age=60.5")], 1, false),
        ("no number", vec![("cache-control", "max-age=NaN")], 1, false),
        ("68 years at least", vec![("cache-control", "max-age=99999999999999999999")], 3_000_000, true),
        ("s-maxage is not for us", vec![("cache-control", "max-age=60, s-maxage=1")], 30, true),
        ("s-maxage alone is none", vec![("cache-control", "s-maxage=60")], 1, false),
        ("proxy-revalidate is not for us", vec![("cache-control", "max-age=60, proxy-revalidate")], 30, true),
        ("Expires", vec![("expires", &soon)], 59, true),
        ("Expires is over", vec![("expires", &soon)], 60, false),
        ("Expires in the past", vec![("expires", &past)], 1, false),
        ("Expires: 0", vec![("expires", "0")], 1, false),
        ("Expires: -1", vec![("expires", "-1")], 1, false),
        ("RFC 850", vec![("expires", rfc850)], 59, true),
        ("asctime", vec![("expires", asctime)], 59, true),
        ("max-age goes before Expires", vec![("cache-control", "max-age=60"), ("expires", &late)], 61, false),
        ("even before a past one", vec![("cache-control", "max-age=60"), ("expires", &past)], 59, true),
        ("Expires counts from Date", vec![("expires", &late), ("date", &soon)], 3500, true),
        ("and is over then", vec![("expires", &late), ("date", &soon)], 3540, false),
        ("no-cache", vec![("cache-control", "no-cache, max-age=60")], 1, false),
        ("no-cache with fields", vec![("cache-control", "no-cache=\"x\", max-age=60")], 1, false),
        ("Pragma", vec![("pragma", "no-cache"), ("expires", &soon)], 1, false),
        (
            "Pragma beside Cache-Control",
            vec![("pragma", "no-cache"), ("cache-control", "max-age=60")],
            1,
            true,
        ),
        ("immutable alone is no lifetime", vec![("cache-control", "immutable")], 1, false),
        ("a date of a second ago", vec![("cache-control", "max-age=60"), ("date", &past)], 58, true),
        (
            "a date in the far past",
            vec![("expires", &soon), ("date", "Thu, 01 Jan 1970 00:00:00 GMT")],
            58,
            true,
        ),
        ("a date that is none", vec![("cache-control", "max-age=60"), ("date", "yesterday")], 59, true),
        ("nothing said", vec![], 1, false),
        ("nothing said, but a date", vec![("date", &now)], 1, false),
    ];
    let cases: Vec<_> = cases
        .iter()
        .map(|(what, answer, pass, hit)| Case { what, answer, pass: *pass, hit: *hit, ..OK })
        .collect();
    check("4.2.1", &cases).await;
}

#[tokio::test(start_paused = true)]
async fn section_4_2_2_heuristic_lifetime() {
    let (hour, year, future) = (date(-3600), date(-365 * 24 * 3600), date(3600));
    for (what, modified, status, pass, hit) in [
        ("a tenth of the time since it was changed", &hour, 200, 359, true),
        ("and no more", &hour, 200, 361, false),
        ("a day at most", &year, 200, 24 * 3600 - 1, true),
        ("and no more", &year, 200, 24 * 3600 + 1, false),
        ("changed in the future", &future, 200, 1, false),
        ("never of an error", &year, 404, 1, false),
        ("not of a plain redirect", &year, 302, 1, false),
        ("of a lasting one", &year, 308, 60, true),
    ] {
        let answer = [("last-modified", modified.as_str())];
        check("4.2.2", &[Case { what, status, answer: &answer, pass, again: &[], hit }]).await;
    }
}

#[tokio::test(start_paused = true)]
async fn section_4_2_3_age() {
    for (what, age, delay, pass_, shown, hit) in [
        ("from its arrival", None, 0, 10, "10", true),
        ("what caches before us said", Some("20"), 0, 10, "30", true),
        ("the time it took to get here", Some("20"), 5, 10, "35", true),
        ("too old on arrival", Some("60"), 0, 1, "", false),
        ("an Age that is no number", Some("old"), 0, 10, "10", true),
        ("an Age beyond every sum", Some("18446744073709551615"), 0, 1, "", false),
        ("the first of several", Some("20, 900"), 0, 10, "30", true),
    ] {
        let rig = Rig::new(r#"{"stale_if_error": "off"}"#);
        let mut answer = vec![("cache-control", "max-age=60")];
        answer.extend(age.map(|age| ("age", age)));
        rig.origin.reply(Reply::ok(&answer, "one").after(delay));
        rig.origin.reply(Reply::ok(&[], "two"));
        assert_eq!(rig.get(&[]).await.field("age"), age, "{what}: the provider's own answer is not changed");
        pass(pass_).await;
        let second = rig.get(&[]).await;
        assert_eq!(second.is_hit(), hit, "{what}");
        assert!(!hit || second.field("age") == Some(shown), "{what}: {:?}", second.field("age"));
    }
}

#[tokio::test(start_paused = true)]
async fn section_4_1_vary() {
    for (what, vary, first, second, hit) in [
        ("the same", "accept", &[("accept", "a")][..], &[("accept", "a")][..], true),
        ("another", "accept", &[("accept", "a")], &[("accept", "b")], false),
        ("absent", "accept", &[("accept", "a")], &[], false),
        ("absent both", "accept", &[], &[], true),
        ("case of the name", "ACCEPT", &[("accept", "a")], &[("accept", "b")], false),
        ("one of two", "x, accept", &[("accept", "a")], &[("accept", "b")], false),
        ("not named", "accept", &[("x", "a")], &[("x", "b")], true),
        ("star", "*", &[], &[], false),
        ("star among others", "accept, *", &[], &[], false),
        ("two fields are a list", "accept", &[("accept", "a"), ("accept", "b")], &[("accept", "a, b")], true),
        (
            "the second differs",
            "accept",
            &[("accept", "a"), ("accept", "b")],
            &[("accept", "a"), ("accept", "c")],
            false,
        ),
        ("no name at all", "acc ept", &[], &[], false),
        ("a name that cannot be read", "\u{e9}", &[], &[], false),
        ("authorization is in the key", "authorization", &[], &[], true),
        ("so are keys of the app's own", "x-api-key", &[("x-api-key", "a")], &[("x-api-key", "a")], true),
        ("whatever they are", "x-api-key", &[("x-api-key", "a")], &[("x-api-key", "b")], false),
    ] {
        let rig = Rig::new("{}");
        rig.origin.reply(Reply::ok(&[("cache-control", "max-age=60"), ("vary", vary)], "one"));
        rig.origin.reply(Reply::ok(&[], "two"));
        rig.get(first).await;
        assert_eq!(rig.get(second).await.is_hit(), hit, "{what}");
    }
}

#[tokio::test(start_paused = true)]
async fn section_4_1_several_variants_are_kept_and_the_oldest_goes() {
    let rig = Rig::new("{}");
    let fresh: Lines<'_> = &[("cache-control", "max-age=60"), ("vary", "accept"), ("vary", "x")];
    let kinds: Vec<String> = (0..9).map(|kind| format!("kind/{kind}")).collect();
    for kind in &kinds {
        rig.origin.reply(Reply::ok(fresh, "one"));
        let got = rig.get(&[("accept", kind)]).await;
        assert!(got.note().starts_with(if kind == "kind/0" { "fwd=uri-miss" } else { "fwd=vary-miss" }));
    }
    for kind in &kinds[1..] {
        assert!(rig.get(&[("accept", kind)]).await.is_hit(), "{kind}");
    }
    rig.origin.reply(Reply::ok(&[], "two"));
    assert!(!rig.get(&[("accept", "kind/0")]).await.is_hit());
}

#[tokio::test(start_paused = true)]
async fn section_4_1_a_coded_answer_without_vary_is_not_for_every_app() {
    let rig = Rig::new("{}");
    rig.origin.reply(Reply::ok(&[("cache-control", "max-age=60"), ("content-encoding", "gzip")], "one"));
    rig.origin.reply(Reply::ok(&[], "two"));
    rig.get(&[("accept-encoding", "gzip")]).await;
    assert!(rig.get(&[("accept-encoding", "gzip")]).await.is_hit());
    assert!(!rig.get(&[]).await.is_hit());
}

#[tokio::test(start_paused = true)]
async fn section_4_2_4_stale_answers_are_not_served_unless_allowed() {
    let fresh: Lines<'_> = &[("cache-control", "max-age=10")];
    let strict: Lines<'_> = &[("cache-control", "max-age=10, must-revalidate")];
    let none: Lines<'_> = &[("cache-control", "no-cache")];
    for (what, answer, again, pass, hit) in [
        ("not by itself", fresh, "", 20, false),
        ("max-stale", fresh, "max-stale=60", 20, true),
        ("max-stale is not enough", fresh, "max-stale=5", 20, false),
        ("any max-stale", fresh, "max-stale", 2000, true),
        ("a max-stale that is no number", fresh, "max-stale=soon", 20, false),
        ("must-revalidate forbids", strict, "max-stale=60", 20, false),
        ("must-revalidate while fresh", strict, "", 5, true),
        ("no-cache forbids", none, "max-stale", 1, false),
    ] {
        let again = [("cache-control", again)];
        let again = if again[0].1.is_empty() { &again[..0] } else { &again[..] };
        check("4.2.4", &[Case { what, status: 200, answer, pass, again, hit }]).await;
    }
}

#[tokio::test(start_paused = true)]
async fn section_4_3_validation() {
    let tag: Lines<'_> = &[("cache-control", "max-age=10"), ("etag", "\"a\""), ("content-length", "3")];
    let modified: Lines<'_> =
        &[("cache-control", "max-age=10"), ("last-modified", "Mon, 14 Nov 2022 12:00:00 GMT")];
    for (answer, field, value) in
        [(tag, "if-none-match", "\"a\""), (modified, "if-modified-since", "Mon, 14 Nov 2022 12:00:00 GMT")]
    {
        let rig = Rig::new("{}");
        rig.origin.reply(Reply::ok(answer, "one"));
        rig.origin.reply(Reply::with(304, &[("cache-control", "max-age=100"), ("x-new", "1")], ""));
        rig.get(&[]).await;
        pass(20).await;
        let second = rig.get(&[]).await;
        assert_eq!((second.status, second.body.as_str()), (200, "one"));
        assert_eq!(second.note(), "fwd=stale; fwd-status=304; ttl=100");
        assert_eq!(rig.origin.seen()[1].headers.get(field).unwrap(), value);
        pass(90).await;
        let third = rig.get(&[]).await;
        assert!(third.is_hit(), "the 304 made it fresh for as long as it said: {}", third.note());
        assert_eq!((third.field("x-new"), third.field("age")), (Some("1"), Some("90")));
        assert_eq!(rig.state.status().revalidated, 1);
    }
}

#[tokio::test(start_paused = true)]
async fn section_4_3_a_changed_answer_takes_the_place_of_the_old_one() {
    let rig = Rig::new("{}");
    rig.origin.reply(Reply::ok(&[("cache-control", "max-age=10"), ("etag", "\"a\"")], "one"));
    rig.origin.reply(Reply::ok(&[("cache-control", "max-age=10"), ("etag", "\"b\"")], "two"));
    rig.get(&[]).await;
    pass(20).await;
    let second = rig.get(&[]).await;
    assert_eq!((second.body.as_str(), second.note().as_str()), ("two", "fwd=stale; stored; ttl=10"));
    assert_eq!(rig.get(&[]).await.body, "two");
}

#[tokio::test(start_paused = true)]
async fn section_4_3_2_conditions_of_the_app_on_a_fresh_answer() {
    let answer: Lines<'_> = &[
        ("cache-control", "max-age=60"),
        ("etag", "\"a\""),
        ("last-modified", "Mon, 14 Nov 2022 12:00:00 GMT"),
        ("content-type", "text/plain"),
        ("vary", "accept"),
    ];
    for (condition, value, status) in [
        ("if-none-match", "\"a\"", 304),
        ("if-none-match", "W/\"a\", \"x\"", 304),
        ("if-none-match", "*", 304),
        ("if-none-match", "\"b\"", 200),
        ("if-modified-since", "Mon, 14 Nov 2022 12:00:00 GMT", 304),
        ("if-modified-since", "Mon, 14 Nov 2022 11:00:00 GMT", 200),
    ] {
        let rig = Rig::new("{}");
        rig.origin.reply(Reply::ok(answer, "one"));
        rig.get(&[]).await;
        let got = rig.get(&[(condition, value)]).await;
        assert!(got.is_hit());
        assert_eq!(got.status, status, "{condition}: {value}");
        if status == 304 {
            assert_eq!(
                (got.body.as_str(), got.field("etag"), got.field("vary")),
                ("", Some("\"a\""), Some("accept"))
            );
            assert_eq!((got.field("content-type"), got.field("last-modified")), (None, None));
        }
    }
}

#[tokio::test(start_paused = true)]
async fn section_4_3_2_conditions_of_the_app_on_a_stale_answer() {
    let stale: Lines<'_> = &[("cache-control", "max-age=10"), ("etag", "\"a\"")];
    for (what, theirs, reply, status, body, sent) in [
        ("both have it", "\"a\"", Reply::with(304, &[("etag", "\"a\"")], ""), 304, "", "\"a\""),
        ("only we have it", "\"b\"", Reply::with(304, &[("etag", "\"a\"")], ""), 200, "one", "\"b\", \"a\""),
        ("only the app has it", "\"b\"", Reply::with(304, &[("etag", "\"b\"")], ""), 304, "", "\"b\", \"a\""),
        ("nobody has it", "\"b\"", Reply::ok(&[("etag", "\"c\"")], "two"), 200, "two", "\"b\", \"a\""),
    ] {
        let rig = Rig::new("{}");
        rig.origin.reply(Reply::ok(stale, "one"));
        rig.origin.reply(reply);
        rig.get(&[]).await;
        pass(20).await;
        let got = rig.get(&[("if-none-match", theirs)]).await;
        assert_eq!((got.status, got.body.as_str()), (status, body), "{what}");
        assert_eq!(rig.origin.seen()[1].headers.get("if-none-match").unwrap(), sent, "{what}");
    }
}

/// It may be ours that the provider means, so the app is asked for alone.
#[tokio::test(start_paused = true)]
async fn section_4_3_2_a_304_that_does_not_say_whose_is_asked_for_again() {
    for (second, expected) in
        [(Reply::ok(&[("etag", "\"a\"")], "one"), (200, "one")), (Reply::with(304, &[], ""), (304, ""))]
    {
        let rig = Rig::new("{}");
        rig.origin.reply(Reply::ok(&[("cache-control", "max-age=10"), ("etag", "\"a\"")], "one"));
        rig.origin.reply(Reply::with(304, &[], ""));
        rig.origin.reply(second);
        rig.get(&[]).await;
        pass(20).await;
        let got = rig.get(&[("if-none-match", "\"b\"")]).await;
        assert_eq!((got.status, got.body.as_str()), expected);
        let asked: Vec<_> =
            rig.origin.seen().iter().map(|seen| seen.headers.get("if-none-match").cloned()).collect();
        assert_eq!(asked, [None, Some("\"b\", \"a\"".parse().unwrap()), Some("\"b\"".parse().unwrap())]);
    }
}

/// What it spent in another cache, or on a slow clock, was spent: nothing outlives its `Expires`.
#[tokio::test(start_paused = true)]
async fn section_4_2_3_the_age_is_counted_from_the_date() {
    for (date_ago, expires_in, after, hit) in
        [(0, 60, 58, true), (3600, 5, 4, true), (3600, 5, 7, false), (-60, 120, 58, true)]
    {
        let rig = Rig::new("{}");
        let (born, ends) = (date(-date_ago), date(expires_in));
        rig.origin.reply(Reply::ok(&[("date", born.as_str()), ("expires", ends.as_str())], "one"));
        rig.origin.reply(Reply::ok(&[], "two"));
        rig.get(&[]).await;
        pass(after).await;
        assert_eq!(rig.get(&[]).await.is_hit(), hit, "{date_ago} {expires_in} {after}");
    }
}

#[tokio::test(start_paused = true)]
async fn section_4_3_4_a_304_about_something_else_makes_nothing_fresh() {
    let rig = Rig::new("{}");
    rig.origin.reply(Reply::ok(&[("cache-control", "max-age=10"), ("etag", "\"a\"")], "one"));
    rig.origin.reply(Reply::with(304, &[("etag", "\"z\"")], ""));
    rig.origin.reply(Reply::ok(&[("cache-control", "max-age=10"), ("etag", "\"z\"")], "two"));
    rig.get(&[]).await;
    pass(20).await;
    let got = rig.get(&[]).await;
    assert_eq!((got.status, got.body.as_str()), (200, "two"));
    assert!(!rig.origin.seen()[2].headers.contains_key("if-none-match"));
}

#[tokio::test(start_paused = true)]
async fn section_4_3_4_a_304_that_forbids_to_keep_is_obeyed() {
    let rig = Rig::new("{}");
    rig.origin.reply(Reply::ok(&[("cache-control", "max-age=10"), ("etag", "\"a\"")], "one"));
    rig.origin.reply(Reply::with(304, &[("etag", "\"a\""), ("cache-control", "no-store")], ""));
    rig.get(&[]).await;
    pass(20).await;
    assert_eq!(rig.get(&[]).await.body, "one");
    rig.origin.reply(Reply::ok(&[], "two"));
    assert_eq!(rig.get(&[]).await.note(), "fwd=uri-miss; stored; ttl=0");
}

#[tokio::test(start_paused = true)]
async fn section_4_3_5_head() {
    let rig = Rig::new("{}");
    rig.origin.reply(Reply::ok(&[("cache-control", "max-age=60"), ("etag", "\"a\"")], "one"));
    rig.get(&[]).await;
    let head = rig.ask(Method::HEAD, "/v1/items", &[]).await;
    assert!(head.is_hit(), "a HEAD is answered from a kept GET");
    assert_eq!((head.body.as_str(), head.field("content-length")), ("", Some("3")));
    assert_eq!(rig.ask(Method::HEAD, "/v1/items", &[("if-none-match", "\"a\"")]).await.status, 304);

    pass(61).await;
    rig.origin.reply(Reply::ok(&[("etag", "\"b\"")], ""));
    let head = rig.ask(Method::HEAD, "/v1/items", &[]).await;
    assert_eq!((head.note().as_str(), rig.origin.requests()), ("fwd=stale", 2));
    assert!(!rig.origin.seen()[1].headers.contains_key("if-none-match"));
    rig.origin.reply(Reply::ok(&[], "two"));
    assert!(rig.get(&[]).await.note().starts_with("fwd=uri-miss"), "the HEAD showed that it is out of date");

    rig.origin.reply(Reply::ok(&[("cache-control", "max-age=60")], ""));
    rig.ask(Method::HEAD, "/other", &[]).await;
    rig.origin.reply(Reply::ok(&[], "three"));
    assert_eq!(rig.ask(Method::GET, "/other", &[]).await.body, "three", "a HEAD fills nothing");
}

#[tokio::test(start_paused = true)]
async fn section_4_4_invalidation() {
    let fresh: Lines<'_> = &[("cache-control", "max-age=60")];
    for (what, method, path, reply, hit) in [
        ("POST", "POST", "/v1/items", Reply::with(201, &[], ""), false),
        ("PUT", "PUT", "/v1/items", Reply::with(204, &[], ""), false),
        ("PATCH", "PATCH", "/v1/items", Reply::ok(&[], ""), false),
        ("DELETE", "DELETE", "/v1/items", Reply::with(303, &[], ""), false),
        ("a method that nobody knows", "MERGE", "/v1/items", Reply::ok(&[], ""), false),
        ("a refused one", "PUT", "/v1/items", Reply::with(409, &[], ""), true),
        ("a failed one", "PUT", "/v1/items", Reply::with(503, &[], ""), true),
        ("a safe one", "OPTIONS", "/v1/items", Reply::ok(&[], ""), true),
        ("another URL", "PUT", "/v1/items?x=1", Reply::ok(&[], ""), true),
        ("Location", "POST", "/v1", Reply::with(201, &[("location", "/v1/items")], ""), false),
        (
            "Content-Location",
            "POST",
            "/v1",
            Reply::ok(&[("content-location", "https://api.example/v1/items")], ""),
            false,
        ),
        (
            "of another origin",
            "POST",
            "/v1",
            Reply::with(201, &[("location", "https://x.example/v1/items")], ""),
            true,
        ),
        ("of a failed one", "POST", "/v1", Reply::with(400, &[("location", "/v1/items")], ""), true),
    ] {
        let rig = Rig::new("{}");
        rig.origin.reply(Reply::ok(fresh, "one"));
        rig.get(&[]).await;
        rig.origin.reply(reply);
        let unsafe_ = rig.ask(Method::from_bytes(method.as_bytes()).unwrap(), path, &[]).await;
        assert_eq!(unsafe_.note(), "fwd=method", "{what}");
        rig.origin.reply(Reply::ok(&[], "two"));
        assert_eq!(rig.get(&[]).await.is_hit(), hit, "{what}");
    }
}

#[tokio::test(start_paused = true)]
async fn section_4_4_holds_for_every_credential_and_for_answers_on_their_way() {
    let fresh: Lines<'_> = &[("cache-control", "max-age=60")];
    let rig = Rig::new("{}");
    let of_tenant = |name: &str| {
        let mut request = request(Method::GET, "/v1/items", &[]);
        request.tenant = Some(name.into());
        request
    };
    for tenant in ["a", "b"] {
        rig.origin.reply(Reply::ok(fresh, "old"));
        rig.send(of_tenant(tenant)).await.unwrap();
        assert!(rig.send(of_tenant(tenant)).await.unwrap().is_hit());
    }
    let (sender, body) = fed();
    rig.origin.reply(Reply::ok(fresh, "").streaming(body));
    let on_its_way = rig.call(of_tenant("c")).await.unwrap();
    rig.origin.reply(Reply::ok(&[], ""));
    rig.ask(Method::PUT, "/v1/items", &[]).await;
    let reading = tokio::spawn(on_its_way.into_body().collect());
    sender.send("old".into()).await.unwrap();
    drop(sender);
    assert_eq!(reading.await.unwrap().unwrap().to_bytes(), "old");
    for tenant in ["a", "b", "c"] {
        rig.origin.reply(Reply::ok(&[], "new"));
        assert_eq!(rig.send(of_tenant(tenant)).await.unwrap().body, "new", "{tenant}");
    }
}

#[tokio::test(start_paused = true)]
async fn section_5_2_1_request_directives() {
    let answer: Lines<'_> = &[("cache-control", "max-age=60")];
    type Told<'a> = (&'a str, Vec<(&'a str, &'a str)>, bool, &'a str);
    let cases: Vec<Told<'_>> = vec![
        ("max-age that is met", vec![("cache-control", "max-age=10")], true, "hit; ttl=50"),
        ("max-age that is not", vec![("cache-control", "max-age=5")], false, "fwd=request; stored; ttl=0"),
        ("max-age=0", vec![("cache-control", "max-age=0")], false, "fwd=request; stored; ttl=0"),
        ("min-fresh that is met", vec![("cache-control", "min-fresh=50")], true, "hit; ttl=50"),
        (
            "min-fresh that is not",
            vec![("cache-control", "min-fresh=51")],
            false,
            "fwd=request; stored; ttl=0",
        ),
        ("no-cache", vec![("cache-control", "no-cache")], false, "fwd=request; stored; ttl=0"),
        ("in capitals", vec![("cache-control", "No-Cache")], false, "fwd=request; stored; ttl=0"),
        ("no-store", vec![("cache-control", "no-store")], false, "fwd=bypass"),
        ("only-if-cached", vec![("cache-control", "only-if-cached")], true, "hit; ttl=50"),
        ("Pragma", vec![("pragma", "no-cache")], false, "fwd=request; stored; ttl=0"),
        (
            "Pragma beside Cache-Control",
            vec![("pragma", "no-cache"), ("cache-control", "max-age=20")],
            true,
            "hit; ttl=50",
        ),
        ("what is not known", vec![("cache-control", "whatever=1")], true, "hit; ttl=50"),
    ];
    for (what, again, hit, note) in cases {
        let rig = Rig::new("{}");
        rig.origin.reply(Reply::ok(answer, "one"));
        rig.origin.reply(Reply::ok(&[], "two"));
        rig.get(&[]).await;
        pass(10).await;
        let got = rig.get(&again).await;
        assert_eq!((got.is_hit(), got.note().as_str()), (hit, note), "{what}");
    }
}

#[tokio::test(start_paused = true)]
async fn section_5_2_1_5_what_a_no_store_request_brings_is_not_kept() {
    let rig = Rig::new("{}");
    rig.origin.reply(Reply::ok(&[("cache-control", "max-age=60")], "one"));
    rig.origin.reply(Reply::ok(&[], "two"));
    rig.get(&[("cache-control", "no-store")]).await;
    assert_eq!(rig.get(&[]).await.body, "two");
}

#[tokio::test(start_paused = true)]
async fn section_5_2_1_7_only_if_cached() {
    let rig = Rig::new("{}");
    let only = || rig.send(request(Method::GET, "/v1/items", &[("cache-control", "only-if-cached")]));
    assert_eq!(only().await.err().map(|failure| failure.fault), Some(Fault::OnlyIfCached));
    rig.origin.reply(Reply::ok(&[("cache-control", "max-age=10")], "one"));
    rig.get(&[]).await;
    pass(20).await;
    assert_eq!(only().await.err().map(|failure| failure.fault), Some(Fault::OnlyIfCached));
    assert!(rig.get(&[("cache-control", "only-if-cached, max-stale=60")]).await.is_hit());
    assert_eq!(rig.origin.requests(), 1);
}

#[tokio::test(start_paused = true)]
async fn partial_requests_and_conditions_for_the_provider_alone_pass_by() {
    for (name, value) in [
        ("range", "bytes=0-1"),
        ("if-match", "\"a\""),
        ("if-unmodified-since", BEGIN),
        ("authorization", "Bearer app"),
        ("cookie", "a=b"),
    ] {
        let rig = Rig::new("{}");
        rig.origin.reply(Reply::ok(&[("cache-control", "max-age=60")], "one"));
        rig.origin.reply(Reply::ok(&[("cache-control", "max-age=60")], "two"));
        rig.origin.reply(Reply::ok(&[], "three"));
        rig.get(&[]).await;
        let got = rig.get(&[(name, value)]).await;
        assert_eq!((got.body.as_str(), got.note().as_str()), ("two", "fwd=bypass"), "{name}");
        assert_eq!(rig.get(&[]).await.body, "one", "{name}: its answer is not kept");
        assert_eq!(rig.state.status().bypassed, 1);
    }
}
