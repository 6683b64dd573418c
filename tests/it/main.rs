//! The whole proxy in process: real clients, scripted origins, its own CA, a captured log. One binary, files named by
//! behaviour.

mod abuse;
mod doors;
mod support;
