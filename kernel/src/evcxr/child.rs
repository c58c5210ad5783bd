//! The process that runs the cells: our own binary, started again by evcxr.
//!
//! It talks to evcxr over pipes that the kernel keeps apart from stdin and stdout (see [`super::pipes`]), so that what
//! a cell prints reaches the kernel byte by byte; the kernel forwards to evcxr what it needs when the cell is done.

use std::ffi::c_void;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::FromRawFd;
use std::path::Path;
use std::sync::atomic::{AtomicPtr, Ordering};

use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW, Symbol};

use crate::toolchain::environment::LIBRARY_PATH;

/// Set by evcxr for the process that runs the cells.
const IS_CHILD: &str = "EVCXR_IS_RUNTIME";
/// The libraries to load before the first cell, separated by `:`; the first is the cell library.
pub const LIBRARIES: &str = "CLOZE_CELL_LIBRARIES";
/// A secret of the session, by which the kernel tells its own control words from the output of cells. The library reads
/// it before the first cell, and recognises this kernel by it.
pub const MARK: &str = "CLOZE_KERNEL";
/// Variables that evcxr and the kernel change for this process, each with the name under which the user's own value is
/// kept.
pub const RESTORED: [(&str, &str); 2] = [
    ("RUST_BACKTRACE", "CLOZE_ORIGINAL_RUST_BACKTRACE"),
    (LIBRARY_PATH, "CLOZE_ORIGINAL_LIBRARY_PATH"),
];

/// Commands from evcxr, one a line.
pub const COMMANDS_FD: i32 = 200;
/// Answers to evcxr, one a line.
pub const ANSWERS_FD: i32 = 201;
/// The kernel's reply at the end of a cell.
pub const REPLIES_FD: i32 = 202;
/// Reports of panics and errors, for the kernel.
pub const EVENTS_FD: i32 = 203;

/// Written to stdout after the session's mark, after everything that a cell printed.
pub const END_OF_CELL: &str = "CLOZE_END_OF_CELL";
/// Written by the kernel itself, after the mark and after everything that a dead process printed.
pub const END_OF_PROCESS: &str = "CLOZE_END_OF_PROCESS";

type CellFunction = unsafe extern "C" fn(*mut c_void) -> *mut c_void;
type Hook = unsafe extern "C" fn();

static ON_INTERRUPT: AtomicPtr<c_void> = AtomicPtr::new(std::ptr::null_mut());

/// Runs cells until evcxr hangs up, if this process was started for that.
pub fn run_if_child() {
    // The second variable is removed before cells run, so that a cell can start this program itself.
    if std::env::var_os(IS_CHILD).is_none() || std::env::var_os(LIBRARIES).is_none() {
        return;
    }
    // SAFETY: the kernel opened these descriptors for this process alone, before it started.
    let (commands, answers, replies) = unsafe {
        (
            File::from_raw_fd(COMMANDS_FD),
            File::from_raw_fd(ANSWERS_FD),
            File::from_raw_fd(REPLIES_FD),
        )
    };
    match run(commands, answers, replies) {
        // The pipes are closed, so the kernel is gone. They close before the signal of its death is sent, so this line
        // is sometimes reached first; processes started by cells must end here, too.
        Ok(()) => end_own_group(),
        Err(error) if is_closed_pipe(error.as_ref()) => end_own_group(),
        Err(error) => eprintln!("The process that runs the cells failed: {error}"),
    }
    std::process::exit(99);
}

fn is_closed_pipe(error: &(dyn std::error::Error + 'static)) -> bool {
    // What is written breaks; what is read, the kernel's word at the end of a cell, ends too soon.
    let closed = [io::ErrorKind::BrokenPipe, io::ErrorKind::UnexpectedEof];
    error
        .downcast_ref::<io::Error>()
        .is_some_and(|error| closed.contains(&error.kind()))
}

fn run(
    commands: File,
    mut answers: File,
    mut replies: File,
) -> Result<(), Box<dyn std::error::Error>> {
    for fd in [COMMANDS_FD, ANSWERS_FD, REPLIES_FD, EVENTS_FD] {
        // SAFETY: changes a flag of our own descriptors, so that programs started by a cell do not inherit them.
        unsafe {
            libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC);
        }
    }
    // SAFETY: the handlers only do what is safe in a signal handler (see `on_interrupt` and `on_hang_up`).
    unsafe {
        libc::signal(
            libc::SIGINT,
            on_interrupt as *const () as libc::sighandler_t,
        );
        libc::signal(libc::SIGHUP, on_hang_up as *const () as libc::sighandler_t);
    }
    let mark = std::env::var(MARK).unwrap_or_default();
    let hooks = Hooks::load(&std::env::var(LIBRARIES).unwrap_or_default())?;
    leave_the_environment_as_it_was();
    let mut store: *mut c_void = std::ptr::null_mut();
    // Libraries are never unloaded: variables and thread-local destructors live in them.
    let mut cells = Vec::new();
    for line in BufReader::new(commands).lines() {
        let line = line?;
        let Some((path, function)) = line
            .strip_prefix("LOAD_AND_RUN ")
            .and_then(|rest| rest.rsplit_once(' '))
        else {
            return Err(format!("unknown command `{line}`").into());
        };
        // SAFETY: evcxr compiled the library from a cell for this process, against the libraries loaded above.
        // Loaded with global visibility, so that later cells find its shared `static`s (see `super::statics`).
        let library = unsafe { Library::open(Some(path), RTLD_NOW | RTLD_GLOBAL)? };
        hooks.begin();
        // SAFETY: evcxr generates the function with this signature; `store` was returned by the previous cell.
        unsafe {
            let cell: Symbol<CellFunction> = library.get(function.as_bytes())?;
            store = cell(store);
        }
        hooks.end();
        cells.push(std::mem::ManuallyDrop::new(library));
        // The kernel answers, with whatever evcxr must receive, once it has processed everything that was printed.
        std::io::stdout().write_all(format!("\u{1}{mark}{END_OF_CELL}\n").as_bytes())?;
        std::io::stdout().flush()?;
        let mut length = [0; 4];
        replies.read_exact(&mut length)?;
        let mut reply = vec![0; u32::from_le_bytes(length) as usize];
        replies.read_exact(&mut reply)?;
        answers.write_all(&reply)?;
        answers.write_all(b"EVCXR_EXECUTION_COMPLETE\n")?;
    }
    Ok(())
}

/// Removes the variables that were meant for this process from the environment, so that programs started by cells do
/// not see them.
fn leave_the_environment_as_it_was() {
    // SAFETY: the threads that the libraries started do not read the environment, and no cell has run yet.
    unsafe {
        for name in [IS_CHILD, LIBRARIES, MARK] {
            std::env::remove_var(name);
        }
        for (name, original) in RESTORED {
            match std::env::var_os(original) {
                Some(value) => std::env::set_var(name, value),
                None => std::env::remove_var(name),
            }
            std::env::remove_var(original);
        }
    }
}

/// Functions of the cell library and the prelude that this process calls.
struct Hooks {
    begin: Option<Symbol<Hook>>,
    end: Option<Symbol<Hook>>,
    clear_interrupt: Option<Symbol<Hook>>,
}

impl Hooks {
    fn load(libraries: &str) -> Result<Self, libloading::Error> {
        let mut hooks = Self {
            begin: None,
            end: None,
            clear_interrupt: None,
        };
        // Functions of the prelude that the cell library calls: the name of each, and of the setter that receives it.
        const SETTERS: [(&[u8], &[u8]); 2] = [
            (b"cloze_prelude_show", b"cloze_cell_shows"),
            (
                b"cloze_prelude_is_interrupt",
                b"cloze_cell_knows_interrupts",
            ),
        ];
        let mut listeners: [Option<Symbol<unsafe extern "C" fn(Hook)>>; 2] = [None, None];
        for path in libraries.split(':').filter(|path| !path.is_empty()) {
            // SAFETY: the kernel built these libraries, and their functions have the signatures used here; the
            // libraries are leaked below, so the symbols stay valid.
            unsafe {
                let library = Library::open(Some(Path::new(path)), RTLD_NOW | RTLD_GLOBAL)?;
                if let Ok(start) = library.get::<unsafe extern "C" fn(i32)>(b"cloze_cell_start") {
                    start(EVENTS_FD);
                }
                if let Ok(connect) = library.get::<Hook>(b"cloze_kernel_connect") {
                    connect();
                }
                for (&(function, listener), told) in SETTERS.iter().zip(&mut listeners) {
                    *told = library.get(listener).ok().or(told.take());
                    if let (Some(told), Ok(function)) = (&told, library.get::<Hook>(function)) {
                        told(*function);
                    }
                }
                hooks.begin = library.get(b"cloze_cell_begin").ok().or(hooks.begin);
                hooks.end = library.get(b"cloze_cell_end").ok().or(hooks.end);
                hooks.clear_interrupt = library
                    .get(b"cloze_interrupt_clear")
                    .ok()
                    .or(hooks.clear_interrupt);
                if let Ok(request) = library.get::<Hook>(b"cloze_interrupt_request") {
                    ON_INTERRUPT.store(*request as *mut c_void, Ordering::SeqCst);
                }
                std::mem::forget(library);
            }
        }
        Ok(hooks)
    }

    fn begin(&self) {
        for hook in [&self.clear_interrupt, &self.begin].into_iter().flatten() {
            // SAFETY: a function of a loaded library, with this signature.
            unsafe { hook() }
        }
    }

    fn end(&self) {
        if let Some(hook) = &self.end {
            // SAFETY: as above.
            unsafe { hook() }
        }
        // SAFETY: flushes every C stream, since C code in a cell's libraries may have printed.
        unsafe {
            libc::fflush(std::ptr::null_mut());
        }
    }
}

extern "C" fn on_interrupt(_signal: i32) {
    let request = ON_INTERRUPT.load(Ordering::SeqCst);
    if !request.is_null() {
        // SAFETY: only `Hooks::load` stores here, and only a function of this signature that does nothing but set an
        // atomic.
        unsafe { std::mem::transmute::<*mut c_void, Hook>(request)() }
    }
}

/// Ends this process when the kernel is gone, for whatever reason.
extern "C" fn on_hang_up(_signal: i32) {
    end_own_group();
}

/// Ends this process and every process that its cells started.
fn end_own_group() {
    // SAFETY: signals this process's own group, which the kernel created for it; allowed in a signal handler.
    unsafe {
        libc::kill(0, libc::SIGKILL);
    }
}
