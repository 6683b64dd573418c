//! Whose an answer is: nobody gets what another credential, tenant or session brought.

use super::*;

#[tokio::test(start_paused = true)]
async fn nobody_gets_the_answer_of_another() {
    type Change = fn(&mut EgressRequest);
    let changes: [Change; 12] = [
        |_| {},
        |request| request.tenant = Some("acme".into()),
        |request| request.tenant = Some("umbrella".into()),
        |request| request.credential_choice = 1,
        |request| drop(request.headers.insert("x-api-key", HeaderValue::from_static("mine"))),
        |request| drop(request.headers.insert("private-token", HeaderValue::from_static("mine"))),
        |request| drop(request.headers.insert("ocp-apim-subscription-key", HeaderValue::from_static("mine"))),
        |request| drop(request.headers.insert("x-password", HeaderValue::from_static("mine"))),
        // One credential serves several accounts.
        |request| drop(request.headers.insert("stripe-account", HeaderValue::from_static("mine"))),
        |request| drop(request.headers.insert("openai-organization", HeaderValue::from_static("mine"))),
        // The policy writes this one; after a reload, something else.
        |request| drop(request.headers.insert("x-region", HeaderValue::from_static("eu"))),
        |request| drop(request.headers.insert("x-region", HeaderValue::from_static("us"))),
    ];
    let rig = Rig::new("{}");
    let asked = |change: Change| {
        let mut request = request(Method::GET, "/v1/items", &[]);
        change(&mut request);
        rig.send(request)
    };
    for change in changes {
        rig.origin.reply(Reply::ok(FRESH, "one"));
        assert!(!asked(change).await.unwrap().is_hit());
    }
    for change in changes {
        assert!(asked(change).await.unwrap().is_hit());
    }
    rig.version.store(2, Ordering::Relaxed);
    rig.origin.reply(Reply::ok(FRESH, "two"));
    assert_eq!(rig.get(&[]).await.body, "two", "a new version of the secret");
}

#[tokio::test(start_paused = true)]
async fn what_another_member_brought_is_not_kept_under_the_first() {
    for (credential, kept) in [(None, true), (Some("env:A"), true), (Some("env:B"), false)] {
        let rig = Rig::new("{}");
        rig.origin.reply(Reply { credential, ..Reply::ok(FRESH, "one") });
        rig.origin.reply(Reply::ok(&[], "two"));
        rig.get(&[]).await;
        assert_eq!(rig.get(&[]).await.is_hit(), kept, "{credential:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_credential_that_is_not_there_refuses_a_hit_unless_stale_answers_may_stand_in() {
    for (config, served) in [(r#"{"stale_if_error": "off"}"#, false), ("{}", true)] {
        let rig = Rig::new(config);
        rig.origin.reply(Reply::ok(FRESH, "one"));
        rig.get(&[]).await;
        rig.available.store(false, Ordering::Relaxed);
        for _ in 0..2 {
            rig.origin.reply(Reply::failing(Fault::Credential));
            let got = rig.send(request(Method::GET, "/v1/items", &[])).await;
            match got {
                Ok(got) => assert!(served && got.is_hit(), "{config}: {}", got.note()),
                Err(failure) => assert!(!served && failure.fault == Fault::Credential, "{config}"),
            }
            pass(61).await;
        }
        assert_eq!(rig.origin.requests(), if served { 1 } else { 3 }, "{config}");
    }
}
