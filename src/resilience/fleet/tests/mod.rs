//! The fleet without sockets (`sim`), the script against a model of it (`script`), and pods against a real server (`live`).

mod bucket;
mod ledger;
mod live;
mod script;
mod server;
mod sim;
