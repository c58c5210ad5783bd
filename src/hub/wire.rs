//! Connections that can be interrupted in every wait: looking up a name, connecting, sending, receiving.
//!
//! The connections of `ureq` wait in one system call for as long as their time limit allows. These wait in slices and
//! look in between whether the work is to stop.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::{Duration, Instant};

use ureq::config::Config;
use ureq::http::Uri;
use ureq::unversioned::resolver::{DefaultResolver, ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::{
    Buffers, ConnectProxyConnector, ConnectionDetails, Connector, Either, LazyBuffers, NextTimeout,
    RustlsConnector, Transport,
};
use ureq::{Agent, Error, Timeout};

use super::settings::time_for;
use crate::base::interrupt;

/// The longest wait between two looks at the request to stop.
const SLICE: Duration = Duration::from_millis(200);

/// Returns an agent with `config` whose waits hear an interrupt. However its bytes trickle, an answer takes no longer than
/// `transfer`, beside the time that its bytes take on a slow line.
pub(crate) fn agent(config: Config, transfer: Duration) -> Agent {
    let connector =
        ().chain(ConnectProxyConnector::default())
            .chain(Connect { transfer })
            .chain(RustlsConnector::default());
    Agent::with_parts(config, connector, Resolve)
}

/// Returns what a wait ends in when the work is to stop. Callers look at the request itself, and not at these words.
fn interrupted() -> Error {
    Error::Io(std::io::Error::other("interrupted"))
}

/// Waits in slices, for at most `timeout`, for what `work` returns on a thread of its own; on a request to stop the thread
/// is left to itself.
fn wait_for<T: Send + 'static>(
    timeout: Option<Duration>,
    reason: Timeout,
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    let until = timeout.and_then(|timeout| Instant::now().checked_add(timeout));
    let (sender, receiver) = mpsc::sync_channel(1);
    std::thread::Builder::new()
        .name("hub-connection".to_owned())
        .spawn(move || {
            // Nobody listens any more after an interrupt.
            let _ = sender.send(work());
        })?;
    loop {
        match receiver.recv_timeout(SLICE) {
            Ok(result) => return result,
            Err(RecvTimeoutError::Disconnected) => {
                return Err(Error::Io(std::io::Error::other(
                    "the connection's thread ended unexpectedly",
                )));
            }
            Err(RecvTimeoutError::Timeout) => {}
        }
        if interrupt::is_requested() {
            return Err(interrupted());
        }
        if until.is_some_and(|until| Instant::now() >= until) {
            return Err(Error::Timeout(reason));
        }
    }
}

/// Looks names up.
#[derive(Debug)]
struct Resolve;

impl Resolver for Resolve {
    fn resolve(
        &self,
        uri: &Uri,
        config: &Config,
        timeout: NextTimeout,
    ) -> Result<ResolvedSocketAddrs, Error> {
        let (uri, config) = (uri.clone(), config.clone());
        wait_for(limit(timeout), timeout.reason, move || {
            DefaultResolver::default().resolve(&uri, &config, timeout)
        })
    }
}

/// Connects, unless a proxy has.
#[derive(Debug)]
struct Connect {
    transfer: Duration,
}

impl<In: Transport> Connector<In> for Connect {
    type Out = Either<In, Connection>;

    fn connect(
        &self,
        details: &ConnectionDetails,
        chained: Option<In>,
    ) -> Result<Option<Self::Out>, Error> {
        if let Some(chained) = chained {
            return Ok(Some(Either::A(chained)));
        }
        let limit = limit(details.timeout);
        let started = Instant::now();
        let addresses: Vec<_> = details.addrs.iter().copied().collect();
        let stream = wait_for(limit, details.timeout.reason, move || {
            // Every address gets its share of the time, the first ones the larger part.
            let mut left = limit;
            let mut last = Error::Io(ErrorKind::ConnectionRefused.into());
            for (index, address) in addresses.iter().enumerate() {
                let is_last = index + 1 == addresses.len();
                let share = left.map(|left| if is_last { left } else { left / 2 });
                left = left.zip(share).map(|(left, share)| left - share);
                let connected = match share {
                    Some(share) => {
                        TcpStream::connect_timeout(address, share.max(Duration::from_millis(10)))
                    }
                    None => TcpStream::connect(address),
                };
                match connected {
                    Ok(stream) => return Ok(stream),
                    Err(error) if is_timeout(&error) => last = Error::Timeout(Timeout::Connect),
                    Err(error) => last = Error::Io(error),
                }
            }
            Err(last)
        })?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(SLICE))?;
        stream.set_write_timeout(Some(SLICE))?;
        let config = details.config;
        Ok(Some(Either::B(Connection {
            stream,
            buffers: LazyBuffers::new(config.input_buffer_size(), config.output_buffer_size()),
            stands_by: limit.and_then(|limit| started.checked_add(limit)),
            asked: Instant::now(),
            received: 0,
            transfer: self.transfer,
        })))
    }
}

/// A connection that waits in slices.
#[derive(Debug)]
struct Connection {
    stream: TcpStream,
    buffers: LazyBuffers,
    /// When a proxy must have let it through, and the safe connection in it must stand.
    stands_by: Option<Instant>,
    /// When something was sent last, and the bytes that came since.
    asked: Instant,
    received: u64,
    transfer: Duration,
}

impl Connection {
    /// Returns the limits of a wait for input. Those of `timeout` begin again with every wait, so that bytes one by one would
    /// be waited for without end.
    fn wait_for_input(&self, timeout: NextTimeout) -> Wait {
        let mut wait = Wait::new(timeout.for_read());
        if timeout.reason == Timeout::Connect {
            wait.end_by(self.stands_by, Timeout::Connect);
        }
        let longest = time_for(self.transfer, self.received);
        wait.end_by(self.asked.checked_add(longest), Timeout::RecvBody);
        wait
    }
}

impl Transport for Connection {
    fn buffers(&mut self) -> &mut dyn Buffers {
        &mut self.buffers
    }

    fn transmit_output(&mut self, amount: usize, timeout: NextTimeout) -> Result<(), Error> {
        let wait = Wait::new(timeout.for_write());
        (self.asked, self.received) = (Instant::now(), 0);
        let mut sent = 0;
        while sent < amount {
            match self.stream.write(&self.buffers.output()[sent..amount]) {
                Ok(0) => return Err(Error::Io(ErrorKind::WriteZero.into())),
                Ok(written) => sent += written,
                Err(error) => wait.goes_on(error)?,
            }
        }
        Ok(())
    }

    fn await_input(&mut self, timeout: NextTimeout) -> Result<bool, Error> {
        let wait = self.wait_for_input(timeout);
        wait.check()?;
        loop {
            match self.stream.read(self.buffers.input_append_buf()) {
                Ok(read) => {
                    self.received += read as u64;
                    self.buffers.input_appended(read);
                    return Ok(read > 0);
                }
                Err(error) => wait.goes_on(error)?,
            }
        }
    }

    fn is_open(&mut self) -> bool {
        // An idle connection has nothing to say: bytes or an end mean that the server has closed it.
        let quiet = |stream: &TcpStream| -> std::io::Result<bool> {
            stream.set_nonblocking(true)?;
            let quiet = match stream.peek(&mut [0]) {
                Err(error) => error.kind() == ErrorKind::WouldBlock,
                Ok(_) => false,
            };
            stream.set_nonblocking(false)?;
            Ok(quiet)
        };
        quiet(&self.stream).unwrap_or(false)
    }
}

/// A wait that has begun.
struct Wait {
    until: Option<Instant>,
    reason: Timeout,
}

impl Wait {
    fn new(timeout: NextTimeout) -> Self {
        let limit = limit(timeout);
        Self {
            until: limit.and_then(|limit| Instant::now().checked_add(limit)),
            reason: timeout.reason,
        }
    }

    /// Makes the wait end at `until`, if it would not end before.
    fn end_by(&mut self, until: Option<Instant>, reason: Timeout) {
        if let Some(until) = until
            && self.until.is_none_or(|known| until < known)
        {
            (self.until, self.reason) = (Some(until), reason);
        }
    }

    /// Fails where `error` is no pause between two slices, or the wait is over.
    fn goes_on(&self, error: std::io::Error) -> Result<(), Error> {
        if error.kind() != ErrorKind::Interrupted && !is_timeout(&error) {
            return Err(Error::Io(error));
        }
        self.check()
    }

    /// Fails when the wait is over.
    fn check(&self) -> Result<(), Error> {
        if interrupt::is_requested() {
            return Err(interrupted());
        }
        match self.until.is_some_and(|until| Instant::now() >= until) {
            true => Err(Error::Timeout(self.reason)),
            false => Ok(()),
        }
    }
}

fn limit(timeout: NextTimeout) -> Option<Duration> {
    (!timeout.after.is_not_happening()).then(|| *timeout.after)
}

fn is_timeout(error: &std::io::Error) -> bool {
    matches!(error.kind(), ErrorKind::TimedOut | ErrorKind::WouldBlock)
}
