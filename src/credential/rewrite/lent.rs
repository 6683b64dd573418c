//! A body that streams, lent to who signs or rewrites it: as long as no byte of it was asked for it can be had back, and
//! then goes with another credential.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body::{Body as HttpBody, Frame, SizeHint};

use crate::message::body::{Body, BodyError};

/// The lender's side.
pub struct Loan(Arc<Mutex<Option<Body>>>);

impl Loan {
    /// Takes the place of `body`, which is lent from now on.
    pub fn of(body: &mut Body) -> Self {
        let (hint, ended) = (body.size_hint(), body.is_end_stream());
        let shared = Arc::new(Mutex::new(Some(std::mem::take(body))));
        *body = Body::boxed(Lent { shared: shared.clone(), begun: None, hint, ended });
        Self(shared)
    }

    /// The body, whole; none where it was begun.
    pub fn back(self) -> Option<Body> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }
}

/// The borrower's side.
struct Lent {
    shared: Arc<Mutex<Option<Body>>>,
    begun: Option<Body>,
    /// What the body said of itself before it was begun.
    hint: SizeHint,
    ended: bool,
}

impl HttpBody for Lent {
    type Data = Bytes;
    type Error = BodyError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, BodyError>>> {
        if self.begun.is_none() {
            let body = self.shared.lock().unwrap_or_else(PoisonError::into_inner).take();
            self.begun = body;
        }
        match &mut self.begun {
            Some(body) => Pin::new(body).poll_frame(cx),
            // It was had back, and goes another way: this one must never be completed.
            None => Poll::Ready(Some(Err(BodyError::Superseded))),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.begun.as_ref().map_or(self.ended, HttpBody::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.begun.as_ref().map_or(self.hint, HttpBody::size_hint)
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;

    use super::*;
    use crate::resilience::timeout::tests::channel;

    #[tokio::test]
    async fn a_lent_body_can_be_had_back_until_it_is_begun() {
        let mut body = Body::full("held");
        let loan = Loan::of(&mut body);
        assert_eq!((body.exact_length(), body.is_end_stream(), body.at_hand()), (Some(4), false, None));
        assert_eq!(loan.back().unwrap().collect().await.unwrap().to_bytes(), "held");
        assert!(matches!(body.frame().await, Some(Err(BodyError::Superseded))));

        let (sender, mut body) = channel();
        let loan = Loan::of(&mut body);
        // It was asked for, though nothing has come yet.
        let polled =
            std::future::poll_fn(|cx| Poll::Ready(Pin::new(&mut body).poll_frame(cx).is_pending())).await;
        assert!(polled && loan.back().is_none());
        sender.send(Bytes::from_static(b"piece")).await.unwrap();
        drop(sender);
        assert_eq!(body.collect().await.unwrap().to_bytes(), "piece");
    }
}
