//! Reads all pipes of the process that runs the cells, on one thread, keeping the order of its output.

use std::io::{self, Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender};

use super::event::{Event, Sink, Stream};
use super::failure;
use super::output::{Output, Reader};
use super::places::Places;
use super::remote::Remote;
use super::report::{Panic, Report, ReturnedError};
use crate::evcxr::child::END_OF_PROCESS;
use crate::evcxr::pipes::Pipes;

/// How long a display is held for another representation.
const SETTLE: Duration = Duration::from_millis(15);
/// How long the last output of a dead process may take on a busy machine.
const LAST_WORDS: Duration = Duration::from_secs(30);

/// The kernel's end of the pipes.
pub struct Streams {
    reports: Receiver<Report>,
    muted: Arc<AtomicBool>,
    has_value: Arc<AtomicBool>,
    stdout: io::PipeWriter,
    stale: [io::PipeReader; 2],
    /// Precedes the kernel's own control words in what the cells print.
    mark: String,
    /// Whether the cell is running, as opposed to being compiled.
    begun: Arc<AtomicBool>,
}

impl Streams {
    /// Starts to read; events are sent to `events` once [`Streams::unmute`] has been called.
    pub fn listen(
        pipes: Pipes,
        mark: &str,
        places: Places,
        events: Sink,
        remote: Remote,
    ) -> io::Result<Self> {
        let (sender, reports) = crossbeam_channel::unbounded();
        let muted = Arc::new(AtomicBool::new(true));
        let has_value = Arc::new(AtomicBool::new(true));
        let begun = Arc::new(AtomicBool::new(false));
        let streams = Self {
            reports,
            muted: muted.clone(),
            has_value: has_value.clone(),
            stdout: pipes.stdout.writer.try_clone()?,
            stale: [pipes.replies.reader.try_clone()?, pipes.stdin.try_clone()?],
            mark: mark.to_owned(),
            begun: begun.clone(),
        };
        for fd in [
            pipes.stdout.reader.as_raw_fd(),
            pipes.stderr.reader.as_raw_fd(),
            pipes.events.reader.as_raw_fd(),
        ] {
            set_nonblocking(fd, true)?;
        }
        let mut listener = Listener {
            pipes,
            events,
            muted,
            has_value,
            begun,
            remote,
            reports: sender,
            reader: Reader::new(mark),
            places,
            notices: Vec::new(),
            records: Vec::new(),
            report: Report::default(),
            stderr: Vec::new(),
        };
        std::thread::Builder::new()
            .name("streams".into())
            .spawn(move || listener.run())?;
        Ok(streams)
    }

    /// From here on events are sent: evcxr has run its own first cell.
    pub fn unmute(&self) {
        self.reports.try_iter().for_each(drop);
        self.muted.store(false, Ordering::SeqCst);
    }

    /// Called before a cell is compiled; the returned flag becomes true when the cell begins to run.
    pub fn about_to_run(&self) -> Arc<AtomicBool> {
        self.begun.store(false, Ordering::SeqCst);
        self.begun.clone()
    }

    /// Sets whether the next cell ends with an expression, whose value its last display is.
    pub fn expect_value(&self, expected: bool) {
        self.has_value.store(expected, Ordering::SeqCst);
    }

    /// Returns the report of a finished cell, if it ran at all. Its output was sent before.
    pub fn report(&self) -> Report {
        // There is more than one report if evcxr ran the cell again; the last one counts.
        self.reports.try_iter().last().unwrap_or_default()
    }

    /// Returns the report of a cell whose process died.
    pub fn report_of_dead_process(&mut self) -> Report {
        let report = self.last_report();
        // By now the reply to its last cell has been written, if it died just after one. The next process must not read it.
        for pipe in &mut self.stale {
            let _ = drain(pipe);
        }
        report
    }

    fn last_report(&mut self) -> Report {
        if writeln!(self.stdout, "\u{1}{}{END_OF_PROCESS}", self.mark).is_err() {
            return Report::default();
        }
        while let Ok(report) = self.reports.recv_timeout(LAST_WORDS) {
            if report.process_died {
                return report;
            }
        }
        Report::default()
    }
}

/// The pipes besides stdout that can be read.
#[derive(Clone, Copy)]
struct Ready {
    stderr: bool,
    records: bool,
}

/// How much of a pipe to read.
#[derive(Clone, Copy)]
enum Amount {
    /// At most its capacity.
    Piece,
    /// Everything, including what is written meanwhile.
    All,
}

struct Listener {
    pipes: Pipes,
    events: Sink,
    muted: Arc<AtomicBool>,
    has_value: Arc<AtomicBool>,
    begun: Arc<AtomicBool>,
    remote: Remote,
    reports: Sender<Report>,
    reader: Reader,
    places: Places,
    /// Notices for evcxr at the end of the cell.
    notices: Vec<String>,
    /// The bytes of incomplete records of panics and errors.
    records: Vec<u8>,
    report: Report,
    /// The bytes of an incomplete character.
    stderr: Vec<u8>,
}

impl Listener {
    fn run(&mut self) {
        loop {
            let ready = self.wait();
            // The order matters. A cell prints nothing to stdout while the other two pipes hold unread data, so what is
            // in stdout by now came first; and only one piece of the others is read, because the cell may print again
            // as soon as they are empty.
            if self.read_stdout().is_err() {
                return;
            }
            if ready.is_some_and(|ready| ready.records) {
                self.read_records();
            }
            if ready.is_some_and(|ready| ready.stderr) {
                // A display that is still held came first.
                self.flush();
                self.read_stderr(Amount::Piece);
            }
            if ready.is_none() {
                self.flush();
            }
        }
    }

    /// Sends the display that is held for another representation.
    fn flush(&mut self) {
        let mut said = Vec::new();
        self.reader.flush(&mut said);
        self.pass_on(said);
    }

    /// Waits until a pipe can be read; `None` if nothing arrived in time.
    fn wait(&self) -> Option<Ready> {
        let mut polled = [
            self.pipes.stdout.reader.as_raw_fd(),
            self.pipes.stderr.reader.as_raw_fd(),
            self.pipes.events.reader.as_raw_fd(),
        ]
        .map(|fd| libc::pollfd {
            fd,
            events: libc::POLLIN,
            revents: 0,
        });
        let timeout = if self.reader.holds_display() {
            SETTLE.as_millis() as i32
        } else {
            -1
        };
        // SAFETY: an array of valid descriptors, and its length.
        let found =
            unsafe { libc::poll(polled.as_mut_ptr(), polled.len() as libc::nfds_t, timeout) };
        let [_, stderr, records] = polled.map(|one| one.revents != 0);
        (found > 0).then_some(Ready { stderr, records })
    }

    fn read_stdout(&mut self) -> io::Result<()> {
        let mut bytes = [0; 1 << 16];
        match self.pipes.stdout.reader.read(&mut bytes) {
            Ok(0) => Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(length) => {
                let said = self.reader.read(&bytes[..length]);
                self.pass_on(said);
                Ok(())
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(()),
            Err(error) => Err(error),
        }
    }

    fn read_stderr(&mut self, amount: Amount) {
        let pipe = &mut self.pipes.stderr.reader;
        let bytes = match amount {
            Amount::Piece => {
                let mut bytes = vec![0; 1 << 16];
                pipe.read(&mut bytes).map(|length| {
                    bytes.truncate(length);
                    bytes
                })
            }
            Amount::All => drain_nonblocking(pipe),
        };
        let Ok(bytes) = bytes else {
            return;
        };
        self.stderr.extend(bytes);
        let whole = match std::str::from_utf8(&self.stderr) {
            Err(error) if error.error_len().is_none() => error.valid_up_to(),
            _ => self.stderr.len(),
        };
        if whole > 0 {
            let text: Vec<u8> = self.stderr.drain(..whole).collect();
            self.send(Event::Text(
                Stream::Stderr,
                String::from_utf8_lossy(&text).into_owned(),
            ));
        }
    }

    fn read_records(&mut self) {
        let Ok(bytes) = drain_nonblocking(&mut self.pipes.events.reader) else {
            return;
        };
        self.records.extend(bytes);
        while let Some(end) = self.records.iter().position(|&byte| byte == 0x1e) {
            let record: Vec<u8> = self.records.drain(..=end).collect();
            let record = String::from_utf8_lossy(&record[..end]).into_owned();
            let fields: Vec<&str> = record.split('\u{1f}').collect();
            match fields[..] {
                ["panic", ref fields @ ..] => {
                    self.report.panics.extend(Panic::from_fields(fields));
                }
                ["thread-panic", name, ref fields @ ..] => {
                    if let Some(panic) = Panic::from_fields(fields) {
                        let told = failure::panic_of_thread(name, &panic, &self.places);
                        self.send(Event::Text(Stream::Stderr, told));
                        self.report.panics_of_threads.push(panic);
                    }
                }
                ["begin"] => {
                    self.begun.store(true, Ordering::SeqCst);
                    self.remote.begun();
                }
                ["error", type_name, message, interrupted, ref causes @ ..] => {
                    self.report.errors.push(ReturnedError {
                        type_name: type_name.to_owned(),
                        message: message.to_owned(),
                        causes: causes.iter().map(|&cause| cause.to_owned()).collect(),
                        interrupted: interrupted == "interrupted",
                    });
                }
                ["notice", notice] => self.notices.push(notice.to_owned()),
                ["reads"] => self.send(Event::Reads),
                _ => {}
            }
        }
    }

    fn pass_on(&mut self, said: Vec<Output>) {
        for said in said {
            match said {
                Output::Event(event) => self.send(event),
                Output::EndOfCell => self.end_of_cell(),
                Output::EndOfProcess => {
                    self.notices.clear();
                    self.report.process_died = true;
                    self.hand_over_report();
                }
            }
        }
    }

    fn end_of_cell(&mut self) {
        self.read_records();
        self.read_stderr(Amount::All);
        if let Some(mut display) = self.reader.take_result() {
            display.is_result =
                display.display_id.is_none() && self.has_value.load(Ordering::SeqCst);
            self.send(Event::Display(display));
        }
        let notices: String = self.notices.drain(..).map(|notice| notice + "\n").collect();
        self.report.panicked = notices.contains("EVCXR_PANIC_NOTIFICATION");
        self.report.returned = notices.contains("EVCXR_ERROR_OCCURRED");
        self.hand_over_report();
        let mut reply = (notices.len() as u32).to_le_bytes().to_vec();
        reply.extend(notices.as_bytes());
        // The process may have died meanwhile, which evcxr notices itself.
        let _ = self.pipes.replies.writer.write_all(&reply);
    }

    fn hand_over_report(&mut self) {
        self.read_records();
        self.read_stderr(Amount::All);
        let _ = self.reports.send(std::mem::take(&mut self.report));
    }

    fn send(&self, event: Event) {
        if !self.muted.load(Ordering::SeqCst) {
            (self.events)(event);
        }
    }
}

fn set_nonblocking(fd: RawFd, nonblocking: bool) -> io::Result<()> {
    // SAFETY: reads and sets the flags of a descriptor that the caller owns.
    let done = unsafe {
        let flags = libc::fcntl(fd, libc::F_GETFL);
        let flags = if nonblocking {
            flags | libc::O_NONBLOCK
        } else {
            flags & !libc::O_NONBLOCK
        };
        libc::fcntl(fd, libc::F_SETFL, flags)
    };
    if done < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// Reads everything that is available.
fn drain_nonblocking(pipe: &mut io::PipeReader) -> io::Result<Vec<u8>> {
    let mut all = Vec::new();
    match pipe.read_to_end(&mut all) {
        Err(error) if error.kind() != io::ErrorKind::WouldBlock => Err(error),
        _ => Ok(all),
    }
}

/// Discards the unread data of a pipe whose reader has gone.
fn drain(pipe: &mut io::PipeReader) -> io::Result<()> {
    set_nonblocking(pipe.as_raw_fd(), true)?;
    let drained = drain_nonblocking(pipe);
    set_nonblocking(pipe.as_raw_fd(), false)?;
    drained.map(drop)
}
