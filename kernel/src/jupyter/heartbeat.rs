//! The heartbeat: what a peer sends comes back, so that it knows that the kernel lives.
//! See <https://jupyter-client.readthedocs.io/en/stable/messaging.html#heartbeat-for-kernels>.

use std::time::Duration;

use zeromq::{RouterSocket, Socket, SocketRecv, SocketSend, ZmqError};

/// How long it looks away from a socket that reports an error.
const PAUSE: Duration = Duration::from_millis(10);

/// Serves until the kernel ends.
///
/// The protocol has a REP socket for it, which hands out the error of one peer and then serves the others no more. For peers
/// a ROUTER looks the same: it sends each message back by the way that it came, and a peer that went away concerns nobody else.
pub async fn start(endpoint: &str) -> Result<(), ZmqError> {
    let mut socket = RouterSocket::new();
    socket.bind(endpoint).await?;
    tokio::spawn(async move {
        loop {
            match socket.recv().await {
                Ok(message) => drop(socket.send(message).await),
                Err(_) => tokio::time::sleep(PAUSE).await,
            }
        }
    });
    Ok(())
}
