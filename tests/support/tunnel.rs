//! What may stand between a client and the stand-in: TLS, and a proxy.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ServerConfig, ServerConnection};

use super::fixture;

/// Accepts connections for as long as the process lives, each on a thread of its own.
fn serve(handle: impl Fn(TcpStream) + Send + Sync + 'static) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let handle = Arc::new(handle);
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let handle = handle.clone();
            std::thread::spawn(move || handle(stream));
        }
    });
    address
}

/// Takes TLS off connections and passes what is in them on to `target`. The certificate is for `localhost`.
pub fn tls_in_front_of(target: SocketAddr) -> SocketAddr {
    let certificate = CertificateDer::from_pem_file(fixture("tls/cert.pem")).unwrap();
    let key = PrivateKeyDer::from_pem_file(fixture("tls/key.pem")).unwrap();
    let config = ServerConfig::builder()
        .with_no_client_auth()
        .with_single_cert(vec![certificate], key)
        .unwrap();
    let config = Arc::new(config);
    serve(move |outside| {
        let inside = TcpStream::connect(target).unwrap();
        let session = ServerConnection::new(config.clone()).unwrap();
        // Whoever does not trust the certificate hangs up.
        let _ = pump(session, outside, inside);
    })
}

/// Passes bytes between the two until either ends.
fn pump(
    mut session: ServerConnection,
    mut outside: TcpStream,
    mut inside: TcpStream,
) -> std::io::Result<()> {
    while session.is_handshaking() {
        session.complete_io(&mut outside)?;
    }
    let tick = Some(Duration::from_millis(2));
    outside.set_read_timeout(tick)?;
    inside.set_read_timeout(tick)?;
    let nothing_yet = |e: &std::io::Error| {
        use std::io::ErrorKind::{TimedOut, WouldBlock};
        matches!(e.kind(), WouldBlock | TimedOut)
    };
    let mut buffer = vec![0; 64 << 10];
    loop {
        match session.read_tls(&mut outside) {
            Ok(0) => return Ok(()),
            Ok(_) => {
                session
                    .process_new_packets()
                    .map_err(std::io::Error::other)?;
            }
            Err(e) if nothing_yet(&e) => {}
            Err(e) => return Err(e),
        }
        loop {
            match session.reader().read(&mut buffer) {
                Ok(0) => return Ok(()),
                Ok(n) => inside.write_all(&buffer[..n])?,
                Err(e) if nothing_yet(&e) => break,
                Err(e) => return Err(e),
            }
        }
        match inside.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(n) => session.writer().write_all(&buffer[..n])?,
            Err(e) if nothing_yet(&e) => {}
            Err(e) => return Err(e),
        }
        while session.wants_write() {
            session.write_tls(&mut outside)?;
        }
    }
}

/// A proxy that makes tunnels, and writes down what it was asked for.
pub struct Proxy {
    pub address: SocketAddr,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Proxy {
    /// `refuses`: it lets nobody through.
    pub fn start(refuses: bool) -> Self {
        let asked = Arc::<Mutex<Vec<String>>>::default();
        let log = asked.clone();
        let address = serve(move |mut outside| {
            let head = read_head(&mut outside);
            log.lock().unwrap().push(head.clone());
            let target = head.split_whitespace().nth(1).unwrap_or_default();
            if refuses {
                let _ = outside.write_all(b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n");
                return;
            }
            let mut inside = TcpStream::connect(target).unwrap();
            outside.write_all(b"HTTP/1.1 200 OK\r\n\r\n").unwrap();
            let (mut from, mut to) = (outside.try_clone().unwrap(), inside.try_clone().unwrap());
            std::thread::spawn(move || std::io::copy(&mut from, &mut to));
            let _ = std::io::copy(&mut inside, &mut outside);
        });
        Self { address, asked }
    }

    /// The heads of the requests so far; the list is emptied.
    pub fn take_log(&self) -> Vec<String> {
        std::mem::take(&mut self.asked.lock().unwrap())
    }
}

fn read_head(stream: &mut TcpStream) -> String {
    let mut head = Vec::new();
    let mut byte = [0];
    while !head.ends_with(b"\r\n\r\n") && stream.read(&mut byte).is_ok_and(|n| n > 0) {
        head.push(byte[0]);
    }
    String::from_utf8_lossy(&head).into_owned()
}
