//! What several integration tests share.
#![allow(dead_code)]

pub mod bench;
pub mod hub_server;
