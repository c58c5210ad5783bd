//! Checks everything that peers send before the sockets read it. Anyone who can reach a port may send, with or without
//! the key, and the ZeroMQ library allocates as many bytes as a frame's header announces, so a few bytes could end the
//! kernel.
//!
//! The kernel listens at the addresses of the connection file; its sockets are bound behind that, in a folder that only
//! the user can read.
//! See <https://rfc.zeromq.org/spec/23/> for the frames.

use std::io;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use jupyter_protocol::{ConnectionInfo, Transport};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpListener, UnixListener, UnixStream};
use tokio::sync::mpsc::{Receiver, channel};

/// Limits on the length and the number of frames; no front end's message exceeds them.
const LONGEST: u64 = 256 << 20;
const MOST_FRAMES: u32 = 1000;
/// The length in bytes of the greeting that begins a connection.
const GREETING: u64 = 64;
/// The pause after a listener reports an error.
const PAUSE: Duration = Duration::from_millis(10);
/// The number of bytes read at once.
const PIECE: usize = 64 << 10;
/// The number of pieces that may be queued for a peer.
const WAITING: usize = 512;
/// How long a peer with a full queue may accept nothing.
const PATIENCE: Duration = Duration::from_secs(5);
/// A socket path has at most 108 bytes, some of which the sockets' own names take.
const PATH: usize = 90;

/// Returns where the kernel's sockets are to be bound; `folder` is the kernel's own.
pub fn behind(connection: &ConnectionInfo, folder: &Path) -> io::Result<ConnectionInfo> {
    Ok(ConnectionInfo {
        transport: Transport::IPC,
        ip: private(folder)?.join("to").display().to_string(),
        ..connection.clone()
    })
}

/// Listens at the addresses of `outside`, and forwards to the sockets that are bound to `inside`.
pub async fn open(outside: &ConnectionInfo, inside: &ConnectionInfo) -> io::Result<()> {
    for port in [
        outside.shell_port,
        outside.iopub_port,
        outside.stdin_port,
        outside.control_port,
        outside.hb_port,
    ] {
        let behind = socket(inside, port);
        match outside.transport {
            Transport::TCP => {
                let listener = TcpListener::bind((address(&outside.ip), port)).await?;
                tokio::spawn(async move {
                    loop {
                        match listener.accept().await {
                            Ok((peer, _)) => {
                                let _ = peer.set_nodelay(true);
                                tokio::spawn(relay(peer, behind.clone()));
                            }
                            Err(_) => tokio::time::sleep(PAUSE).await,
                        }
                    }
                });
            }
            Transport::IPC => {
                let place = socket(outside, port);
                // The kernel leaves it behind when it restarts.
                if std::fs::symlink_metadata(&place).is_ok_and(|it| it.file_type().is_socket()) {
                    std::fs::remove_file(&place)?;
                }
                let listener = UnixListener::bind(place)?;
                tokio::spawn(async move {
                    loop {
                        match listener.accept().await {
                            Ok((peer, _)) => drop(tokio::spawn(relay(peer, behind.clone()))),
                            Err(_) => tokio::time::sleep(PAUSE).await,
                        }
                    }
                });
            }
        }
    }
    Ok(())
}

fn socket(connection: &ConnectionInfo, port: u16) -> PathBuf {
    format!("{}-{port}", connection.ip).into()
}

/// Returns an empty folder that only the user can access.
fn private(folder: &Path) -> io::Result<PathBuf> {
    let folder = match folder.as_os_str().len() < PATH {
        true => {
            let own = folder.join("wire");
            let _ = std::fs::remove_dir_all(&own);
            std::fs::create_dir_all(&own)?;
            own
        }
        false => tempfile::Builder::new().prefix("cloze-").tempdir()?.keep(),
    };
    std::fs::set_permissions(&folder, std::fs::Permissions::from_mode(0o700))?;
    Ok(folder)
}

/// Returns the address as the operating system expects it: `*` means any, and IPv6 addresses may be in brackets.
fn address(ip: &str) -> &str {
    match ip {
        "*" => "0.0.0.0",
        ip => ip.trim_start_matches('[').trim_end_matches(']'),
    }
}

/// Forwards between a peer and the kernel until one of them disconnects.
async fn relay(peer: impl AsyncRead + AsyncWrite, behind: PathBuf) -> io::Result<()> {
    let kernel = UnixStream::connect(behind).await?;
    let (mut from_peer, to_peer) = tokio::io::split(peer);
    let (mut from_kernel, mut to_kernel) = kernel.into_split();
    let (waiting, to_send) = channel(WAITING);
    let heard = async {
        let mut frames = Frames::default();
        let mut bytes = vec![0; PIECE];
        loop {
            let length = from_peer.read(&mut bytes).await?;
            if length == 0 || !frames.pass(&bytes[..length]) {
                return Ok(());
            }
            if to_kernel.write_all(&bytes[..length]).await.is_err() {
                // The kernel disconnected; what it said before is still on its way.
                return std::future::pending().await;
            }
        }
    };
    // Owns the queue, which ends with it: what the kernel said before it disconnected is still delivered.
    let said = async move {
        let mut bytes = vec![0; PIECE];
        loop {
            let length = from_kernel.read(&mut bytes).await?;
            if length == 0 || waiting.send(bytes[..length].to_vec()).await.is_err() {
                return Ok(());
            }
        }
    };
    let told = async { tokio::try_join!(said, deliver(to_send, to_peer)).map(drop) };
    tokio::select! {
        left = heard => left,
        left = told => left,
    }
}

/// Sends a peer its queued pieces. A slow peer is waited for. A peer that accepts nothing while its queue is full would
/// block everyone else; it is taken to be suspended and disconnected, and may reconnect. So is one that accepts nothing
/// after the kernel has disconnected.
async fn deliver(
    mut to_send: Receiver<Vec<u8>>,
    mut peer: impl AsyncWrite + Unpin,
) -> io::Result<()> {
    while let Some(piece) = to_send.recv().await {
        let mut rest = &piece[..];
        while !rest.is_empty() {
            match tokio::time::timeout(PATIENCE, peer.write(rest)).await {
                Ok(Ok(0)) => return Ok(()),
                Ok(sent) => rest = &rest[sent?..],
                Err(_) if to_send.len() < WAITING && !to_send.is_closed() => {}
                Err(_) => return Err(io::ErrorKind::TimedOut.into()),
            }
        }
    }
    Ok(())
}

/// The frames of what a peer sends.
struct Frames {
    /// The number of bytes before the next frame's header.
    skip: u64,
    /// The bytes of an incomplete header.
    head: Vec<u8>,
    /// The number of frames in the message so far.
    count: u32,
}

impl Default for Frames {
    fn default() -> Self {
        Self {
            skip: GREETING,
            head: Vec::new(),
            count: 0,
        }
    }
}

impl Frames {
    /// Processes the next bytes. Returns false if they begin something that no front end sends.
    fn pass(&mut self, mut bytes: &[u8]) -> bool {
        while !bytes.is_empty() {
            let passed = self.skip.min(bytes.len() as u64);
            self.skip -= passed;
            bytes = &bytes[passed as usize..];
            let Some((&byte, rest)) = bytes.split_first() else {
                break;
            };
            bytes = rest;
            self.head.push(byte);
            let (more, long) = (self.head[0] & 1 != 0, self.head[0] & 2 != 0);
            if self.head.len() < if long { 9 } else { 2 } {
                continue;
            }
            self.skip = self.head[1..]
                .iter()
                .fold(0, |length, &byte| length << 8 | u64::from(byte));
            self.head.clear();
            self.count = if more { self.count + 1 } else { 0 };
            if self.skip > LONGEST || self.count > MOST_FRAMES {
                return false;
            }
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whether all of `bytes` passes in pieces of this length.
    fn passes(said: &[u8], piece: usize) -> bool {
        let mut frames = Frames::default();
        said.chunks(piece).all(|piece| frames.pass(piece))
    }

    fn message(frames: &[&[u8]]) -> Vec<u8> {
        let mut said = vec![0xff; GREETING as usize];
        for (at, frame) in frames.iter().enumerate() {
            let more = u8::from(at + 1 < frames.len());
            match u8::try_from(frame.len()) {
                Ok(length) => said.extend([more, length]),
                Err(_) => {
                    said.push(more | 2);
                    said.extend((frame.len() as u64).to_be_bytes());
                }
            }
            said.extend(*frame);
        }
        said
    }

    #[test]
    fn valid_messages_pass_in_pieces_of_any_length() {
        let long = vec![0xff; 70_000];
        let said = message(&[b"", b"<IDS|MSG>", &long, &[0xff; 255], b"{}"]);
        let said = [&said[..], &said[GREETING as usize..]].concat();
        for piece in [1, 7, 64, 65, 1 << 16] {
            assert!(passes(&said, piece), "{piece}");
        }
    }

    #[test]
    fn what_the_kernel_says_before_it_disconnects_is_delivered() {
        let folder = tempfile::tempdir().unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        let said = vec![7; 3 * PIECE];
        runtime.block_on(async {
            for attempt in 0..100 {
                let behind = folder.path().join(format!("{attempt}"));
                let kernel = UnixListener::bind(&behind).unwrap();
                let (mut peer, outside) = UnixStream::pair().unwrap();
                let relayed = tokio::spawn(relay(outside, behind));
                let (mut inside, _) = kernel.accept().await.unwrap();
                inside.write_all(&said).await.unwrap();
                drop(inside);
                let mut heard = Vec::new();
                peer.read_to_end(&mut heard).await.unwrap();
                assert_eq!(heard.len(), said.len());
                relayed.await.unwrap().unwrap();
            }
        });
    }

    #[test]
    fn oversized_frames_are_stopped_before_they_are_forwarded() {
        for length in [LONGEST + 1, 1 << 40, 1 << 62, u64::MAX] {
            let mut said = message(&[b"a", b"b"]);
            said.push(2);
            said.extend(length.to_be_bytes());
            for piece in [1, 10, 1000] {
                assert!(!passes(&said, piece), "{length}");
            }
            said.pop();
            assert!(passes(&said, 1000), "the head is not complete");
        }
        let many = vec![&b""[..]; 1 + MOST_FRAMES as usize];
        assert!(passes(&message(&many), 1000));
        assert!(!passes(&message(&[&many[..], &many[..1]].concat()), 1000));
    }
}
