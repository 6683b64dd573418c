//! Watches of the Kubernetes API: an answer that stays open, with a line of JSON for each change.
//! <https://kubernetes.io/docs/reference/using-api/api-concepts/#efficient-detection-of-changes>
//!
//! One for each Secret, so that the service account needs no right to list them. What an event holds is not used: the
//! Secret is read as ever, so there is one way in for values. A watch that ends is opened again from where it was; where the
//! server does not remember that any more (410), from what is there now, which is read. Where watching is not allowed it is
//! tried again from time to time, and polling goes on as it does beside every watch.
//!
//! Bounds: [`MOST`] watches, further secrets are polled alone; a line of at most 3 MiB (a Secret has 1 MiB, in base64); five
//! and a half minutes without an end; one read a second; waits of 1 s doubling up to 1 min between watches that bring
//! nothing and do not last.

use std::pin::pin;
use std::time::Duration;

use bytes::Buf;
use futures_util::future::join_all;
use http::StatusCode;
use http_body_util::BodyExt;
use tokio::time::{Instant, sleep, timeout_at};

use super::KubernetesStore;
use crate::message::body::Body;
use crate::secret::SecretBytes;
use crate::secret::error::StoreFault;
use crate::secret::http::HttpError;
use crate::secret::reference::SecretRef;
use crate::secret::stores::document::Document;

/// Watches at once.
pub(super) const MOST: usize = 32;
/// How long the server is asked to keep one open, and how long it is waited for.
const OPEN: Duration = Duration::from_secs(300);
const PATIENCE: Duration = Duration::from_secs(330);
const LONGEST_LINE: usize = 3 * 1024 * 1024;
const WAIT_FIRST: Duration = Duration::from_secs(1);
const WAIT_MOST: Duration = Duration::from_secs(60);
/// How long until a watch that is not allowed is tried again.
const WAIT_REFUSED: Duration = Duration::from_secs(300);

/// How a watch ended.
enum End {
    /// The server closed it, or it broke; whether anything had come.
    Closed { came: bool },
    /// The place where it was to go on is forgotten.
    Forgotten,
    /// Not allowed, or not known to this server.
    Refused,
}

impl KubernetesStore {
    /// Watches the Secrets of these references.
    pub(super) async fn watch_all(
        &self,
        references: &[SecretRef],
        changed: &(dyn Fn(&SecretRef) + Send + Sync),
    ) {
        // Several keys of one Secret are one watch.
        let mut secrets: Vec<Vec<&SecretRef>> = Vec::new();
        for reference in references {
            match secrets.iter_mut().find(|known| known[0].path() == reference.path()) {
                Some(known) => known.push(reference),
                None => secrets.push(vec![reference]),
            }
        }
        if secrets.len() > MOST {
            tracing::info!(
                target: "outgate::secret",
                secrets = secrets.len(),
                watched = MOST,
                "too many Secrets to watch each: the rest is polled alone"
            );
            secrets.truncate(MOST);
        }
        join_all(secrets.iter().map(|references| self.watch_one(references, changed))).await;
    }

    /// Watches one Secret for ever.
    async fn watch_one(&self, references: &[&SecretRef], changed: &(dyn Fn(&SecretRef) + Send + Sync)) {
        let tell = || references.iter().for_each(|reference| changed(reference));
        let (mut version, mut wait, mut told) = (None, WAIT_FIRST, false);
        loop {
            let end = match self.open(references[0], version.as_deref()).await {
                Ok(Some(body)) => follow(body, &mut version, &tell).await,
                Ok(None) => End::Forgotten,
                Err(StoreFault::Status(401 | 403 | 404 | 405) | StoreFault::NotFound) => End::Refused,
                Err(StoreFault::Http(error))
                    if matches!(error.last(), HttpError::Status(401 | 403 | 404 | 405)) =>
                {
                    End::Refused
                }
                Err(_) => End::Closed { came: false },
            };
            wait = match end {
                End::Closed { came: true } => WAIT_FIRST,
                End::Closed { came: false } => wait,
                End::Forgotten => {
                    version = None;
                    tell();
                    wait
                }
                End::Refused => {
                    if !std::mem::replace(&mut told, true) {
                        let reference = references[0].to_string();
                        tracing::info!(target: "outgate::secret", reference, "it cannot be watched, and is polled alone");
                    }
                    WAIT_REFUSED
                }
            };
            sleep(wait.mul_f64(0.75 + fastrand::f64() / 2.0)).await;
            wait = (wait * 2).min(WAIT_MOST);
        }
    }

    /// Opens a watch behind `version`, or of what is there now; none where that version is forgotten.
    async fn open(&self, reference: &SecretRef, version: Option<&str>) -> Result<Option<Body>, StoreFault> {
        let clients = self.clients().await?;
        if clients.reads.fails(&self.address.target).is_some() {
            // Who fails is asked for no watches on top.
            return Err(StoreFault::Http(HttpError::TimedOut));
        }
        let (namespace, name) = self.place(reference).await?;
        let from = version.map(|version| format!("&resourceVersion={version}")).unwrap_or_default();
        let path = format!(
            "/api/v1/namespaces/{namespace}/secrets?watch=true&fieldSelector=metadata.name%3D{name}&allowWatchBookmarks=true&timeoutSeconds={}{from}",
            OPEN.as_secs()
        );
        let response = clients.watches.open(self.call(path).await?).await?;
        match response.status() {
            StatusCode::OK => Ok(Some(response.into_body())),
            StatusCode::GONE => Ok(None),
            status => Err(StoreFault::Status(status.as_u16())),
        }
    }
}

/// Reads events until there are no more.
async fn follow(body: Body, version: &mut Option<String>, tell: &(dyn Fn() + Send + Sync)) -> End {
    let (begun, mut came) = (Instant::now(), false);
    let (mut body, mut line) = (pin!(body), SecretBytes::default());
    loop {
        let Ok(Some(Ok(frame))) = timeout_at(begun + PATIENCE, body.frame()).await else {
            return End::Closed { came: came || begun.elapsed() > WAIT_MOST };
        };
        let Ok(mut data) = frame.into_data() else { continue };
        while data.has_remaining() {
            let end = data.iter().position(|byte| *byte == b'\n');
            let piece = data.split_to(end.map_or(data.len(), |at| at + 1));
            if line.len() + piece.len() > LONGEST_LINE {
                return End::Closed { came: false };
            }
            extend(&mut line, &piece);
            if end.is_none() {
                continue;
            }
            match Event::read(&std::mem::take(&mut line)) {
                Some(Event::Forgotten) => return End::Forgotten,
                Some(Event::At { at, is_change }) => {
                    came = true;
                    // What is there when a watch begins is told as a change too, and is none where it was known.
                    let news = is_change && *version != at;
                    *version = at;
                    if news {
                        tell();
                        // What comes meanwhile is told together.
                        sleep(WAIT_FIRST).await;
                    }
                }
                None => return End::Closed { came: false },
            }
        }
    }
}

/// Adds to a line. When a vector grows by itself, a copy stays behind.
fn extend(line: &mut SecretBytes, piece: &[u8]) {
    if line.capacity() - line.len() < piece.len() {
        let mut larger = Vec::with_capacity((line.len() + piece.len()) * 2);
        larger.extend_from_slice(line);
        *line = SecretBytes::new(larger);
    }
    line.extend_from_slice(piece);
}

/// One line of a watch.
enum Event {
    /// Something was added, changed or deleted; or a bookmark, which only tells how far it is.
    At { at: Option<String>, is_change: bool },
    /// 410: what it was to begin with is forgotten.
    Forgotten,
}

impl Event {
    /// None for what is no event, and for other errors.
    fn read(line: &[u8]) -> Option<Self> {
        let event = Document::parse(line).ok()?;
        // It becomes part of a URL.
        let fits = |version: &&str| {
            (1..=64).contains(&version.len()) && version.bytes().all(|byte| byte.is_ascii_alphanumeric())
        };
        let at = event.text(&["object", "metadata", "resourceVersion"]).filter(fits).map(str::to_owned);
        match event.text(&["type"])? {
            "ADDED" | "MODIFIED" | "DELETED" => Some(Self::At { at, is_change: true }),
            "BOOKMARK" => Some(Self::At { at, is_change: false }),
            "ERROR" if event.number(&["object", "code"]) == Some(410) => Some(Self::Forgotten),
            _ => None,
        }
    }
}
