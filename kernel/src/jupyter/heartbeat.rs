//! The heartbeat: echoes what a client sends, which shows that the kernel is alive.
//! See <https://jupyter-client.readthedocs.io/en/stable/messaging.html#heartbeat-for-kernels>.

use std::time::Duration;

use zeromq::{RouterSocket, Socket, SocketRecv, SocketSend, ZmqError};

/// The pause after a socket reports an error.
const PAUSE: Duration = Duration::from_millis(10);

/// Serves until the kernel exits.
///
/// The protocol specifies a REP socket, but this library's returns the error of one peer and then stops serving all
/// others. To peers a ROUTER looks the same: it sends each message back where it came from, and a peer that has gone
/// affects nobody else.
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
