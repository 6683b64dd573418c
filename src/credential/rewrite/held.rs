//! Bodies that are held whole, because a credential goes into them, or is made of them.

use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use zeroize::Zeroizing;

use crate::message::body::Body;
use crate::message::failure::{Failure, Fault};
use crate::message::request::EgressRequest;
use crate::upstream::error::body_fault;

/// Holds a body whole, of at most `max` bytes. What is known to be longer is refused before a byte of it is read. A trailer
/// section is dropped: forms and JSON have no use for one.
///
/// # Errors
/// [`Fault::BodyTooLargeToRewrite`], and what the app's side of it comes to.
pub async fn collect(mut body: Body, max: u64) -> Result<Bytes, Failure> {
    let too_large = || Failure::not_sent(Fault::BodyTooLargeToRewrite);
    if body.exact_length().is_some_and(|length| length > max) {
        return Err(too_large());
    }
    let (mut first, mut more) = (Bytes::new(), BytesMut::new());
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| Failure::not_sent(body_fault(&error)).because(error))?;
        let Ok(data) = frame.into_data() else { continue };
        if (first.len() + more.len() + data.len()) as u64 > max {
            return Err(too_large());
        }
        // Most bodies that are held come in one piece, which need not be copied.
        if first.is_empty() && more.is_empty() {
            first = data;
            continue;
        }
        if more.is_empty() {
            more.extend_from_slice(&std::mem::take(&mut first));
        }
        more.extend_from_slice(&data);
    }
    Ok(if more.is_empty() { first } else { more.freeze() })
}

/// Gives a request another body, which is wiped when its last copy goes; its length follows.
pub fn replace(request: &mut EgressRequest, body: Zeroizing<Vec<u8>>) {
    request.replace_body(Bytes::from_owner(body));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resilience::timeout::tests::channel;

    #[tokio::test]
    async fn a_body_is_held_up_to_its_bound_however_it_comes() {
        let send = |pieces: &'static [&'static str], max: u64| async move {
            let (sender, body) = channel();
            let feed = async {
                for piece in pieces {
                    if sender.send(bytes::Bytes::from_static(piece.as_bytes())).await.is_err() {
                        break;
                    }
                }
                drop(sender);
            };
            let (held, ()) = tokio::join!(collect(body, max), feed);
            held.map(|bytes| String::from_utf8(bytes.to_vec()).unwrap()).map_err(|failure| failure.fault)
        };
        assert_eq!(send(&[], 3).await, Ok(String::new()));
        assert_eq!(send(&["abc"], 3).await.unwrap(), "abc");
        assert_eq!(send(&["a", "b", "c"], 3).await.unwrap(), "abc");
        assert_eq!(send(&["a", "b", "cd"], 3).await, Err(Fault::BodyTooLargeToRewrite));
        assert_eq!(send(&["abcd"], 3).await, Err(Fault::BodyTooLargeToRewrite));
        let known = collect(Body::full("abcd"), 3).await.err().map(|failure| failure.fault);
        assert_eq!(known, Some(Fault::BodyTooLargeToRewrite));
    }
}
