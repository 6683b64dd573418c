//! The name of a bucket, looked for in the JSON body of a request: what the quota of many providers is counted by stands
//! there and nowhere else (`model`).
//!
//! Looked for once a request, outside of its attempts, in what comes first: at most 64 KiB of it and for at most a second, so
//! that an app which is slow to send holds nothing up. What was read goes on as it came. A body without the text, one that is
//! encoded or no JSON, and one in which the text comes later have no name: such requests share the bucket of the host.

use std::fmt;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::header::CONTENT_ENCODING;
use http::{HeaderMap, Response};
use serde::de::{DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, Visitor};
use tokio::time::Instant;
use tower::Service;

use super::config::{Bucket, QuotaSettings};
use super::state::Quota;
use crate::message::body::Body;
use crate::message::failure::Failure;
use crate::message::request::EgressRequest;
use crate::resilience::pointer::Pointer;
use crate::resilience::responses::look::{Looked, is_json};
use crate::resilience::{Inner, Pending};

/// How long the app may take to send what is looked for.
const LOOK_FOR: Duration = Duration::from_secs(1);
/// How much more there must be before the text is looked for again: a body in small pieces is not read over and over.
const STEP: usize = 4 * 1024;

/// Names the bucket of each request of a route by a text in its body.
#[derive(Clone)]
pub struct NameBucket<S> {
    inner: S,
    field: Arc<Field>,
}

struct Field {
    quota: Arc<Quota>,
    pointer: Pointer,
}

impl<S> NameBucket<S> {
    /// Looks before `inner` for what `pointer` leads to; names are the provider's, and counted in `quota`.
    pub fn new(inner: S, quota: Arc<Quota>, pointer: Pointer) -> Self {
        Self { inner, field: Arc::new(Field { quota, pointer }) }
    }
}

impl NameBucket<()> {
    /// What there is to look for, where the quota of a route wants it.
    pub fn field(quota: &Arc<Quota>, settings: &QuotaSettings) -> Option<(Arc<Quota>, Pointer)> {
        match &settings.bucket {
            Bucket::Field(pointer) if settings.learn => Some((quota.clone(), pointer.clone())),
            _ => None,
        }
    }
}

impl<S: Inner> Service<EgressRequest> for NameBucket<S> {
    type Response = Response<Body>;
    type Error = Failure;
    type Future = Pending;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Failure>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, mut request: EgressRequest) -> Pending {
        use http_body::Body as _;

        if request.body.is_end_stream() || request.upgrade || !can_look(&request.headers) {
            return Box::pin(self.inner.call(request));
        }
        let (mut inner, field) = (self.inner.clone(), self.field.clone());
        Box::pin(async move {
            let mut looked = Looked::new(std::mem::take(&mut request.body));
            // What was read before the time is over stays in `looked`.
            let name = tokio::time::timeout(LOOK_FOR, find(&mut looked, &field.pointer)).await;
            request.body = Body::boxed(looked);
            let name = name.ok().flatten();
            if let Some(name) = name.and_then(|name| field.quota.buckets.given(&name, Instant::now())) {
                request.exchange.set_bucket(name);
            }
            inner.call(request).await
        })
    }
}

fn can_look(headers: &HeaderMap) -> bool {
    is_json(headers) && !headers.contains_key(CONTENT_ENCODING)
}

/// Reads until the text is there, or it is clear that there is none.
async fn find(looked: &mut Looked, pointer: &Pointer) -> Option<String> {
    let keys = pointer.keys()?;
    let (mut seen, mut searched) = (Vec::new(), None);
    loop {
        let more = looked.read_into(&mut seen).await;
        if !more || searched.is_none_or(|searched| seen.len() >= searched + STEP) {
            searched = Some(seen.len());
            match search(&seen, &keys) {
                Search::Found(text) => return Some(text),
                Search::None => return None,
                Search::NotYet if !more => return None,
                Search::NotYet => {}
            }
        }
    }
}

#[derive(Debug, PartialEq, Eq)]
enum Search {
    Found(String),
    /// Nor will there be.
    None,
    /// What is there is the beginning of a document.
    NotYet,
}

/// The text at the end of `keys` in a document of which the beginning is there.
fn search(beginning: &[u8], keys: &[&str]) -> Search {
    let mut found = None;
    let mut reader = serde_json::Deserializer::from_slice(beginning);
    let ended = Step { keys, found: &mut found }.deserialize(&mut reader);
    match (found, ended) {
        (Some(text), _) => Search::Found(text),
        (None, Err(error)) if error.is_eof() => Search::NotYet,
        (None, _) => Search::None,
    }
}

/// Goes down one key after the other, and stops as soon as the text is there.
struct Step<'a> {
    keys: &'a [&'a str],
    found: &'a mut Option<String>,
}

impl<'de> DeserializeSeed<'de> for Step<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, reader: D) -> Result<(), D::Error> {
        // Anything else than a text or a map ends the search.
        if self.keys.is_empty() { reader.deserialize_str(self) } else { reader.deserialize_map(self) }
    }
}

impl<'de> Visitor<'de> for Step<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("what the pointer leads through")
    }

    fn visit_str<E>(self, text: &str) -> Result<(), E> {
        *self.found = Some(text.to_owned());
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let Some((first, rest)) = self.keys.split_first() else { return Ok(()) };
        while let Some(key) = map.next_key::<String>()? {
            if key == *first {
                map.next_value_seed(Step { keys: rest, found: &mut *self.found })?;
                // The rest of the document need not be there.
                return Err(A::Error::custom("no further"));
            }
            map.next_value::<IgnoredAny>()?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use bytes::Bytes;
    use http::HeaderValue;
    use http::header::CONTENT_TYPE;
    use http_body_util::BodyExt;
    use tower::service_fn;

    use super::*;
    use crate::resilience::responses::look::MOST;
    use crate::resilience::timeout::tests::{channel, request_with};

    #[test]
    fn the_text_is_found_in_the_beginning_of_a_document() {
        for (document, keys, expected) in [
            (r#"{"model":"m""#, &["model"][..], Search::Found("m".into())),
            (
                r#" { "a": [1, {"model": "no"}], "model" : "m\u0031", "#,
                &["model"],
                Search::Found("m1".into()),
            ),
            (r#"{"a":{"b":"c"#, &["a", "b"], Search::NotYet),
            (r#"{"a":{"b":"c"}"#, &["a", "b"], Search::Found("c".into())),
            (r#"{"mod"#, &["model"], Search::NotYet),
            (r#"{"model":"#, &["model"], Search::NotYet),
            (r#"{"model":1,"#, &["model"], Search::None),
            (r#"{"model":null}"#, &["model"], Search::None),
            (r#"{"model":{"a":1}}"#, &["model"], Search::None),
            (r#"{"a":"b","model":"m"}"#, &["a", "b"], Search::None),
            (r#"{"other":1}"#, &["model"], Search::None),
            (r#"["model"]"#, &["model"], Search::None),
            ("model=m", &["model"], Search::None),
            ("", &["model"], Search::NotYet),
        ] {
            assert_eq!(search(document.as_bytes(), keys), expected, "{document}");
        }
        let deep = "[".repeat(100_000);
        assert_eq!(search(format!(r#"{{"a":{deep}"#).as_bytes(), &["model"]), Search::NotYet);
    }

    proptest::proptest! {
        #[test]
        fn each_beginning_is_the_same_or_not_there_yet(model in "[a-z\"\\\\é]{0,6}", cut in 0_usize..80) {
            let document = serde_json::json!({ "before": [{ "model": 1 }], "model": model, "z": 1 }).to_string();
            let cut = cut.min(document.len());
            let found = search(&document.as_bytes()[..cut], &["model"]);
            proptest::prop_assert!(found == Search::Found(model.clone()) || found == Search::NotYet);
            proptest::prop_assert_eq!(search(document.as_bytes(), &["model"]), Search::Found(model));
        }
    }

    /// Sends a body through; the name, and what came out of it.
    async fn sent(
        body: Body,
        fields: &[(http::HeaderName, &'static str)],
    ) -> (Option<String>, String, Option<u64>) {
        let out: Arc<Mutex<(String, Option<u64>)>> = Arc::default();
        let log = out.clone();
        let inner = service_fn(move |request: EgressRequest| {
            let log = log.clone();
            async move {
                let length = request.body.exact_length();
                let whole = request.into_parts().body.collect().await.unwrap().to_bytes();
                *log.lock().unwrap() = (String::from_utf8(whole.to_vec()).unwrap(), length);
                Ok::<_, Failure>(Response::new(Body::empty()))
            }
        });
        let pointer = Pointer::parse("/model").unwrap();
        let mut layer = NameBucket::new(inner, Arc::new(Quota::new("p")), pointer);
        let mut request = request_with(body, None);
        for (name, value) in fields {
            request.headers.insert(name, HeaderValue::from_static(value));
        }
        let exchange = request.exchange.clone();
        layer.call(request).await.unwrap();
        let (text, length) = out.lock().unwrap().clone();
        (exchange.bucket().map(|name| name.to_string()), text, length)
    }

    const JSON: (http::HeaderName, &str) = (CONTENT_TYPE, "application/json");

    #[tokio::test(start_paused = true)]
    async fn a_name_is_found_and_the_body_goes_on_as_it_came() {
        let short = r#"{"model":"gpt-4o","messages":[]}"#.to_owned();
        let none = r#"{"messages":[]}"#.to_owned();
        let strange = r#"{"model":"a b"}"#.to_owned();
        let within = format!(r#"{{"messages":"{}","model":"late"}}"#, "x".repeat(MOST - 100));
        let beyond = format!(r#"{{"messages":"{}","model":"late"}}"#, "x".repeat(MOST));
        for (body, fields, name) in [
            (&short, &[JSON][..], Some("gpt-4o")),
            (&short, &[(CONTENT_TYPE, "application/vnd.api+json; charset=utf-8")], Some("gpt-4o")),
            (&short, &[(CONTENT_TYPE, "multipart/form-data")], None),
            (&short, &[], None),
            (&short, &[JSON, (CONTENT_ENCODING, "gzip")], None),
            (&none, &[JSON], None),
            (&strange, &[JSON], None),
            (&within, &[JSON], Some("late")),
            (&beyond, &[JSON], None),
        ] {
            let (named, text, length) = sent(Body::full(body.clone()), fields).await;
            assert_eq!((named.as_deref(), length), (name, Some(body.len() as u64)), "{fields:?} {body:.40}");
            assert!(text == *body, "{body:.40}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_name_in_pieces_is_found_and_one_that_does_not_come_is_not_waited_for() {
        let (sender, body) = channel();
        let whole = format!(r#"{{"a":"{}","model":"m1","b":1}}"#, "y".repeat(6_000));
        let pieces = whole.clone();
        tokio::spawn(async move {
            for piece in pieces.as_bytes().chunks(100) {
                sender.send(Bytes::copy_from_slice(piece)).await.unwrap();
            }
        });
        let (named, text, _) = sent(body, &[JSON]).await;
        assert_eq!((named.as_deref(), text), (Some("m1"), whole));

        let (sender, body) = channel();
        tokio::spawn(async move {
            sender.send(Bytes::from_static(br#"{"a":1"#)).await.unwrap();
            tokio::time::sleep(Duration::from_secs(60)).await;
            sender.send(Bytes::from_static(br#","model":"m"}"#)).await.unwrap();
        });
        let started = Instant::now();
        let (named, text, _) = sent(body, &[JSON]).await;
        assert_eq!((named, text.as_str()), (None, r#"{"a":1,"model":"m"}"#));
        assert_eq!(started.elapsed(), Duration::from_secs(60), "it went on after a second, and streamed");
    }
}
