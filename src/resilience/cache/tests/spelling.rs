//! RFC 9111 where peers spell their fields badly, twice, or in ways that are no longer usual.

use super::rfc9111::{Case, OK, check};
use super::*;

type Told<'a> = (&'a str, Vec<(&'a str, &'a str)>, u64, bool);

async fn check_all(section: &str, told: &[Told<'_>]) {
    let cases: Vec<_> = told
        .iter()
        .map(|(what, answer, pass, hit)| Case { what, answer, pass: *pass, hit: *hit, ..OK })
        .collect();
    check(section, &cases).await;
}

/// Section 4.2.1: of values that contradict each other none is trusted further than the least.
#[tokio::test(start_paused = true)]
async fn section_4_2_1_values_that_stand_there_twice() {
    let (soon, late) = (date(10), date(3600));
    check_all(
        "4.2.1",
        &[
            ("the same twice", vec![("cache-control", "max-age=60, max-age=60")], 59, true),
            (
                "in two fields",
                vec![("cache-control", "max-age=60"), ("cache-control", "max-age=60")],
                59,
                true,
            ),
            ("the longer one last", vec![("cache-control", "max-age=10, max-age=60")], 11, false),
            ("the longer one first", vec![("cache-control", "max-age=60, max-age=10")], 61, false),
            ("one that is no number", vec![("cache-control", "max-age=60, max-age=x")], 61, false),
            ("Expires twice, the later last", vec![("expires", &soon), ("expires", &late)], 11, false),
            ("Expires twice, the later first", vec![("expires", &late), ("expires", &soon)], 3601, false),
        ],
    )
    .await;
}

/// Section 5.2: what is a directive, and what only looks like one.
#[tokio::test(start_paused = true)]
async fn section_5_2_directives_as_they_are_written() {
    check_all(
        "5.2",
        &[
            ("empty members", vec![("cache-control", ", ,max-age=60,,")], 59, true),
            ("no spaces", vec![("cache-control", "private,max-age=60,x=y")], 59, true),
            ("tabs", vec![("cache-control", "private,\tmax-age=60\t")], 59, true),
            ("zeros in front", vec![("cache-control", "max-age=0060")], 59, true),
            ("a sign in front", vec![("cache-control", "max-age=+60")], 1, false),
            ("letters behind", vec![("cache-control", "max-age=60s")], 1, false),
            ("single quotes", vec![("cache-control", "max-age='60'")], 1, false),
            ("no value", vec![("cache-control", "max-age")], 1, false),
            ("an empty value", vec![("cache-control", "max-age=")], 1, false),
            ("semicolons are no commas", vec![("cache-control", "max-age=60; no-store")], 1, false),
            ("another name with its end", vec![("cache-control", "x-max-age=60")], 1, false),
            ("a name with no-store in it", vec![("cache-control", "x-no-store, max-age=60")], 59, true),
            ("a comma in quotes", vec![("cache-control", "x=\"a, no-store\", max-age=60")], 59, true),
            ("a quote in quotes", vec![("cache-control", "x=\"a\\\", no-store\", max-age=60")], 59, true),
            ("a quote that stays open", vec![("cache-control", "max-age=60, x=\"a")], 1, false),
            ("private with fields", vec![("cache-control", "private=\"set-cookie\", max-age=60")], 59, true),
            ("s-maxage=0 is not for us", vec![("cache-control", "s-maxage=0, max-age=60")], 59, true),
            ("public makes nothing fresh", vec![("cache-control", "public")], 1, false),
            (
                "must-understand does not undo",
                vec![("cache-control", "must-understand, no-store, max-age=60")],
                1,
                false,
            ),
            (
                "no-transform is not about keeping",
                vec![("cache-control", "no-transform, max-age=60")],
                59,
                true,
            ),
            ("what nobody knows", vec![("cache-control", "foo, bar=2, max-age=60")], 59, true),
        ],
    )
    .await;
}

/// Section 5.3: only the three forms of HTTP are dates, and whatever is none has passed.
#[tokio::test(start_paused = true)]
async fn section_5_3_dates_that_are_none() {
    let (now, future) = (date(0), date(600));
    check_all(
        "5.3",
        &[
            ("the moment of Date", vec![("expires", &now), ("date", &now)], 1, false),
            ("empty", vec![("expires", "")], 1, false),
            ("another zone", vec![("expires", "Tue, 15 Nov 2022 13:00:00 CET")], 1, false),
            ("an offset", vec![("expires", "Tue, 15 Nov 2022 13:00:00 +0000")], 1, false),
            ("no zone", vec![("expires", "Tue, 15 Nov 2022 13:00:00")], 1, false),
            ("ISO 8601", vec![("expires", "2022-11-15T13:00:00Z")], 1, false),
            ("seconds", vec![("expires", "1668517200")], 1, false),
            (
                "one that is none beside max-age",
                vec![("expires", "never"), ("cache-control", "max-age=60")],
                59,
                true,
            ),
            // The lifetime is the difference; that its clock is ahead makes an answer no older and no younger.
            ("Date is ahead of us", vec![("cache-control", "max-age=60"), ("date", &future)], 59, true),
            ("and over in time", vec![("cache-control", "max-age=60"), ("date", &future)], 60, false),
        ],
    )
    .await;
}

/// Sections 5.4 and 5.5: `Pragma` of an answer has no meaning beside `Cache-Control`, and `Warning` has none at all; both are
/// handed on.
#[tokio::test(start_paused = true)]
async fn sections_5_4_and_5_5_fields_of_former_times() {
    let rig = Rig::new("{}");
    rig.origin.reply(Reply::ok(
        &[
            ("cache-control", "max-age=60"),
            ("pragma", "no-cache, x"),
            ("warning", "110 - \"Response is Stale\""),
        ],
        "one",
    ));
    let first = rig.get(&[]).await;
    let second = rig.get(&[]).await;
    assert!(second.is_hit(), "{}", second.note());
    for name in ["pragma", "warning"] {
        assert!(first.field(name).is_some() && first.field(name) == second.field(name), "{name}");
    }
}

/// Section 5.2.2.2: validated each time, also where it would be fresh; and never used when that cannot be done.
#[tokio::test(start_paused = true)]
async fn section_5_2_2_answers_that_must_be_validated() {
    for (directives, wait) in
        [("max-age=10, must-revalidate", 11), ("no-cache", 1), ("max-age=60, no-cache", 1)]
    {
        let rig = Rig::new("{}");
        rig.origin.reply(Reply::ok(&[("cache-control", directives), ("etag", "\"a\"")], "one"));
        rig.origin.reply(Reply::with(304, &[("etag", "\"a\"")], ""));
        rig.origin.reply(Reply::failing(Fault::ConnectRefused));
        rig.get(&[]).await;
        pass(wait).await;
        let second = rig.get(&[]).await;
        assert_eq!(second.body, "one", "{directives}");
        assert!(second.note().contains("fwd-status=304"), "{directives}: {}", second.note());
        pass(wait).await;
        let third = rig.send(request(Method::GET, "/v1/items", &[])).await;
        assert_eq!(third.err().map(|failure| failure.fault), Some(Fault::ConnectRefused), "{directives}");
    }
}

/// Section 4.1: the values of several fields, their order and their spelling.
#[tokio::test(start_paused = true)]
async fn section_4_1_values_of_selecting_fields() {
    let en_de: Lines<'_> = &[("accept-language", "en, de")];
    for (what, vary, second, hit) in [
        ("another order", "accept-language", &[("accept-language", "de, en")][..], false),
        (
            "the same in two fields",
            "accept-language",
            &[("accept-language", "en"), ("accept-language", "de")],
            true,
        ),
        ("an empty Vary", "", &[("accept-language", "fr")], true),
        ("a name twice", "accept-language, Accept-Language", en_de, true),
    ] {
        let rig = Rig::new("{}");
        rig.origin.reply(Reply::ok(&[("cache-control", "max-age=60"), ("vary", vary)], "one"));
        rig.origin.reply(Reply::ok(&[], "two"));
        rig.get(en_de).await;
        assert_eq!(rig.get(second).await.is_hit(), hit, "{what}");
    }
}

/// Sections 3.3 and 3.4: a part is never kept, nor joined with another; and what is kept whole gives no parts.
#[tokio::test(start_paused = true)]
async fn sections_3_3_and_3_4_parts_are_not_kept_and_not_made() {
    let rig = Rig::new("{}");
    let part: Lines<'_> =
        &[("cache-control", "max-age=60"), ("content-range", "bytes 0-1/3"), ("etag", "\"a\"")];
    rig.origin.reply(Reply::with(206, part, "on"));
    assert_eq!(rig.get(&[("range", "bytes=0-1")]).await.status, 206);
    rig.origin.reply(Reply::ok(&[("cache-control", "max-age=60"), ("etag", "\"a\"")], "one"));
    assert_eq!(rig.get(&[]).await.body, "one", "the part did not count as the whole");
    rig.origin.reply(Reply::with(206, part, "on"));
    let again = rig.get(&[("range", "bytes=0-1"), ("if-range", "\"a\"")]).await;
    assert_eq!((again.status, again.note().as_str()), (206, "fwd=bypass"));
    assert!(rig.get(&[]).await.is_hit(), "and did not push it out");
    assert_eq!(rig.origin.requests(), 3);
}

/// Section 4.3.5: a HEAD whose answer agrees with what is kept leaves it there; each field that can differ is looked at.
#[tokio::test(start_paused = true)]
async fn section_4_3_5_what_a_head_shows() {
    let kept: Lines<'_> = &[
        ("cache-control", "max-age=10, stale-while-revalidate=0"),
        ("etag", "\"a\""),
        ("last-modified", "Mon, 14 Nov 2022 12:00:00 GMT"),
        ("content-length", "3"),
    ];
    for (what, head, stays) in [
        ("the same", &[("etag", "\"a\""), ("content-length", "3")][..], true),
        ("nothing said", &[], true),
        ("another tag", &[("etag", "\"b\"")], false),
        ("another date", &[("last-modified", "Tue, 15 Nov 2022 11:00:00 GMT")], false),
        ("another length", &[("content-length", "4")], false),
    ] {
        let rig = Rig::new("{}");
        rig.origin.reply(Reply::ok(kept, "one"));
        rig.get(&[]).await;
        pass(11).await;
        rig.origin.reply(Reply::ok(head, ""));
        rig.ask(Method::HEAD, "/v1/items", &[]).await;
        rig.origin.reply(Reply::with(304, &[("etag", "\"a\"")], ""));
        let conditional = {
            rig.get(&[]).await;
            rig.origin.seen()[2].headers.contains_key("if-none-match")
        };
        assert_eq!(conditional, stays, "{what}");
    }
}
