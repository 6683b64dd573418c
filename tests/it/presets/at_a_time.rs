//! How many requests a provider takes at a time: never one more is on its way, and those that wait go when one ends.

use std::sync::{Arc, Mutex};

use bytes::Bytes;
use futures_util::stream;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use serde_json::Value;
use tokio::sync::{Notify, oneshot};

use super::{Mock, ask, facts, provider};
use crate::support::origin::{Answer, HttpOrigin};
use crate::support::proxy::Proxy;
use crate::world::until;

/// Answers that have begun, and end when they are told to.
#[derive(Default)]
struct Open {
    answers: Mutex<Vec<oneshot::Sender<()>>>,
    most: Mutex<usize>,
    changed: Notify,
}

impl Open {
    fn answer(&self) -> Answer {
        let (end, ended) = oneshot::channel::<()>();
        let open = {
            let mut answers = self.answers.lock().unwrap();
            answers.push(end);
            answers.len()
        };
        let mut most = self.most.lock().unwrap();
        *most = open.max(*most);
        self.changed.notify_one();
        let body = stream::once(async move {
            let _ = ended.await;
            Ok(Frame::data(Bytes::from_static(b"done")))
        });
        http::Response::new(StreamBody::new(body).boxed())
    }

    /// Waits for so many open answers, and ends one.
    async fn end_one_of(&self, count: usize) {
        loop {
            let changed = self.changed.notified();
            {
                let mut answers = self.answers.lock().unwrap();
                if answers.len() >= count {
                    answers.pop().unwrap().send(()).unwrap();
                    return;
                }
            }
            changed.await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_more_are_on_their_way_than_the_facts_allow() {
    let mut asked = 0;
    for (preset, fact) in facts() {
        let rows = fact["limits"].as_array().into_iter().flatten();
        for row in rows.filter(|row| row["concurrent"].is_u64() && row["left"].is_null()) {
            let most = usize::try_from(row["concurrent"].as_u64().unwrap()).unwrap();
            let path = row["at"].as_str().unwrap_or("/x").replace("/**", "/x");
            at_a_time(&preset, &fact, &path, most).await;
            asked += 1;
        }
    }
    assert!(asked >= 4, "{asked}");
}

async fn at_a_time(preset: &str, fact: &Value, path: &str, most: usize) {
    const MORE: usize = 3;
    let open = Arc::new(Open::default());
    let at_origin = open.clone();
    let origin = HttpOrigin::with(None, move |_| at_origin.answer()).await;
    let policy = provider(preset, preset, fact, "none", "    limits: off\n    quota: off\n");
    let mock = Mock { origin };
    let proxy = Arc::new(mock.proxy(&policy).await);
    let asks: Vec<_> = (0..most + MORE)
        .map(|_| {
            let (proxy, preset, path): (Arc<Proxy>, _, _) =
                (proxy.clone(), preset.to_owned(), path.to_owned());
            tokio::spawn(async move { ask(&proxy, "GET", &preset, &path, &preset, "", "").await })
        })
        .collect();
    // All are either on their way or wait.
    let settled = || open.answers.lock().unwrap().len() + waiting(&proxy) == most + MORE;
    until(&format!("{preset}: all have come"), settled).await;
    assert_eq!((open.answers.lock().unwrap().len(), waiting(&proxy)), (most, MORE), "{preset}");
    // One ends, and only then the next begins.
    for _ in 0..MORE {
        open.end_one_of(most).await;
    }
    for left in (1..=most).rev() {
        open.end_one_of(left).await;
    }
    for asked in asks {
        let got = asked.await.unwrap();
        assert!(got.status == 200 && got.text() == "done", "{preset}: {got:?}");
    }
    assert_eq!(*open.most.lock().unwrap(), most, "{preset}");
}

/// How many wait for their turn.
fn waiting(proxy: &Proxy) -> usize {
    let metrics = proxy.metrics();
    let levels = metrics.lines().filter(|line| line.starts_with("outgate_concurrency{"));
    let waiting = levels.filter(|line| {
        line.contains("state=\"waiting\"") && !line.ends_with(" 0") && !line.ends_with(" 0.0")
    });
    waiting
        .map(|line| line.rsplit(' ').next().unwrap().trim_end_matches(".0").parse::<usize>().unwrap())
        .sum()
}
