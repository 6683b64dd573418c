//! The fixed types of the path: what a request, a response, a body and a failure are while they are inside outgate.
//!
//! Every layer speaks [`request::EgressRequest`] -> `http::Response<`[`body::Body`]`>` or [`failure::Failure`]; nothing on
//! the path is generic over a body or an error. Hosts are parsed and normalised in [`target`] and nowhere else.

pub mod body;
pub mod date;
pub mod end;
pub mod failure;
pub mod headers;
pub mod json;
pub mod media;
pub mod quantity;
pub mod record;
pub mod request;
pub mod target;
