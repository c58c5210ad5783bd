//! The library that every cell links against: the part of the kernel that lives in the process that runs the cells.
//!
//! The notebook's compiler compiles it separately, as a dynamic library that shares the standard library with the
//! cells, because the panic hook and the buffer of stdout belong to that copy, not to the kernel's own.
#![warn(missing_docs)]

use std::alloc::Layout;
use std::any::{Any, TypeId};
use std::collections::HashMap;
use std::error::Error;
use std::ffi::{c_int, c_ulong, c_void};
use std::fmt::{Debug, Display};
use std::fs::File;
use std::io::Write;
use std::marker::PhantomData;
use std::mem::ManuallyDrop;
use std::ops::Range;
use std::os::fd::{AsFd, FromRawFd, IntoRawFd};
use std::panic::PanicHookInfo;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::thread::ThreadId;
use std::time::{Duration, Instant};

/// Separates the fields of an event; fields never contain it.
const FIELD: char = '\u{1f}';
/// Ends an event.
const END: char = '\u{1e}';

/// How often text without a final newline is flushed while a cell runs.
const FLUSH_EVERY: Duration = Duration::from_millis(80);

/// How long printing to stdout waits for the kernel to read what was written to other pipes before.
const SETTLE_FOR: Duration = Duration::from_millis(50);

static EVENTS: AtomicI32 = AtomicI32::new(-1);
/// A duplicate of stderr's descriptor, whatever a cell does with descriptor 2.
static STDERR: AtomicI32 = AtomicI32::new(-1);
/// Whether the kernel was too slow to wait for in this cell.
static KERNEL_IS_SLOW: AtomicBool = AtomicBool::new(false);
static RUNNING: AtomicBool = AtomicBool::new(false);
static CELL_THREAD: Mutex<Option<ThreadId>> = Mutex::new(None);

/// Precedes the kernel's own control words in what is printed: a byte 1 and the session's mark.
static MARK: OnceLock<String> = OnceLock::new();

/// Called once, before the first cell. `events` is the descriptor to which events are written.
#[unsafe(no_mangle)]
pub extern "C" fn cloze_cell_start(events: i32) {
    EVENTS.store(events, Ordering::SeqCst);
    if let Ok(stderr) = std::io::stderr().as_fd().try_clone_to_owned() {
        STDERR.store(stderr.into_raw_fd(), Ordering::SeqCst);
    }
    let mark = std::env::var("CLOZE_KERNEL").unwrap_or_default();
    let _ = MARK.set(format!("\u{1}{mark}"));
    std::panic::set_hook(Box::new(|panic| {
        let thread = std::thread::current();
        let in_cell = CELL_THREAD.lock().is_ok_and(|id| *id == Some(thread.id()));
        match in_cell {
            true => report_panic(&["panic"], panic),
            false => report_panic(&["thread-panic", thread.name().unwrap_or_default()], panic),
        }
    }));
    std::thread::spawn(|| {
        let mut reads = Reads::default();
        loop {
            std::thread::sleep(FLUSH_EVERY);
            if RUNNING.load(Ordering::Relaxed) {
                // The thread that holds the lock is writing, which may take any amount of time.
                let _ = std::io::stdout().flush();
                reads.look();
            } else {
                reads = Reads::default();
            }
        }
    });
}

/// Detects a thread of this process that waits for standard input; the user must then be asked.
#[derive(Default)]
struct Reads {
    /// The number of consecutive checks that found it waiting.
    seen: usize,
}

impl Reads {
    /// A thread found waiting this often waits for input that will not come by itself.
    const SURE: usize = 2;

    fn look(&mut self) {
        match waits_for_input() {
            true => self.seen += 1,
            false => self.seen = 0,
        }
        // Reported repeatedly: the kernel knows whether it has already asked for this read.
        if self.seen >= Self::SURE {
            self.seen = 0;
            event(&["reads"]);
        }
    }
}

/// Whether a thread of this process is in `read` of descriptor 0. False where the system does not report it.
fn waits_for_input() -> bool {
    // The number of the system call `read`, and the descriptor, as the system prints them.
    const READ: &str = if cfg!(target_arch = "x86_64") { "0 0x0 " } else { "63 0x0 " };
    let tasks = std::fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
    tasks.into_iter().any(|task| {
        let call = std::fs::read_to_string(task.path().join("syscall"));
        call.is_ok_and(|call| call.starts_with(READ))
    })
}

/// Called on the thread that runs the cells, before each cell.
#[unsafe(no_mangle)]
pub extern "C" fn cloze_cell_begin() {
    if let Ok(mut thread) = CELL_THREAD.lock() {
        *thread = Some(std::thread::current().id());
    }
    RUNNING.store(true, Ordering::Relaxed);
    KERNEL_IS_SLOW.store(false, Ordering::Relaxed);
    event(&["begin"]);
}

/// Called after each cell: its output has been written when this returns.
#[unsafe(no_mangle)]
pub extern "C" fn cloze_cell_end() {
    RUNNING.store(false, Ordering::Relaxed);
    let _ = std::io::stdout().flush();
}

/// Reports a panic: its message, its place, and the calls in cells that led to it.
fn report_panic(kind: &[&str], panic: &PanicHookInfo) {
    let (file, line, column) =
        panic.location().map_or(("", 0, 0), |at| (at.file(), at.line(), at.column()));
    let message = panic.payload_as_str().unwrap_or("the panic carried no message");
    let mut fields: Vec<String> = kind.iter().map(|word| (*word).to_owned()).collect();
    fields.extend([file.to_owned(), line.to_string(), column.to_string(), message.to_owned()]);
    fields.extend(frames_in_cells());
    event(&fields.iter().map(String::as_str).collect::<Vec<_>>());
}

/// Returns the calls in cells on this thread's stack, the innermost first, each as an address in the cell's library and
/// the path of that library. The kernel finds the lines: std's own backtraces do not see libraries loaded after the
/// first backtrace.
fn frames_in_cells() -> Vec<String> {
    // Where this file does not exist, only the place of the panic itself is reported.
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap_or_default();
    let cells: Vec<(Range<usize>, &str)> = maps.lines().filter_map(cell_mapping).collect();
    let frames = return_addresses().into_iter().filter_map(|address| {
        let (_, path) = cells.iter().find(|(addresses, _)| addresses.contains(&address))?;
        // Addresses of a library are relative to its first mapping.
        let (first, _) = cells.iter().find(|(_, other)| other == path)?;
        // The return address minus one is inside the call itself.
        Some(format!("{:x} {path}", address - first.start - 1))
    });
    frames.collect()
}

/// Parses the addresses and the path in a line of `/proc/self/maps`, if they belong to a cell.
fn cell_mapping(line: &str) -> Option<(Range<usize>, &str)> {
    let path = &line[line.find('/')?..];
    if !path.rsplit('/').next()?.starts_with("libcode_") {
        return None;
    }
    let (start, end) = line.split_once(' ')?.0.split_once('-')?;
    let address = |text| usize::from_str_radix(text, 16).ok();
    Some((address(start)?..address(end)?, path))
}

/// Returns the return addresses on this thread's stack, the innermost first.
fn return_addresses() -> Vec<usize> {
    unsafe extern "C" {
        // The platform's unwinder, which std uses for panics.
        fn _Unwind_Backtrace(
            visit: extern "C" fn(*mut c_void, *mut c_void) -> c_int,
            argument: *mut c_void,
        ) -> c_int;
        fn _Unwind_GetIP(frame: *mut c_void) -> usize;
    }
    extern "C" fn visit(frame: *mut c_void, addresses: *mut c_void) -> c_int {
        // SAFETY: only the unwinder calls this, below, with a frame of its own and with the list, which nothing else
        // touches meanwhile.
        unsafe { (*addresses.cast::<Vec<usize>>()).push(_Unwind_GetIP(frame)) };
        0
    }
    let mut addresses: Vec<usize> = Vec::new();
    // SAFETY: declared as in the unwinder's interface; `visit` does not unwind, and the list outlives the call.
    unsafe { _Unwind_Backtrace(visit, (&raw mut addresses).cast()) };
    addresses
}

/// The error type of cells: an error that leaves a cell through `?` is reported to the kernel.
///
/// It has evcxr's name for it, which compiler messages mention.
pub struct EvcxrUserCodeError;

impl<T: Into<Box<dyn Error>>> From<T> for EvcxrUserCodeError {
    fn from(error: T) -> Self {
        report_returned(std::any::type_name::<T>(), error.into());
        Self
    }
}

/// Reports an error with its causes. A function of its own, because it is the same for all types.
fn report_returned(kind: &str, error: Box<dyn Error>) {
    let mut causes = Vec::new();
    let mut source = error.source();
    while let Some(cause) = source {
        causes.push(cause.to_string());
        source = cause.source();
    }
    let interrupted = IS_INTERRUPT.get().is_some_and(|is_interrupt| is_interrupt(&*error));
    report_error(kind, error.to_string(), interrupted, causes);
}

/// The same for types that are not errors but can be displayed; their `Debug` may show causes.
pub struct Shown;

impl<T: Display + Debug> From<T> for Shown {
    fn from(error: T) -> Self {
        report_shown(std::any::type_name::<T>(), &error, &error);
        Self
    }
}

/// Reports a value that is not an error, with the causes that its `Debug` shows.
fn report_shown(kind: &str, error: &dyn Display, debug: &dyn Debug) {
    let debug = format!("{debug:?}");
    let mut causes = Vec::new();
    if let Some((_, listed)) = debug.split_once("Caused by:\n") {
        let listed = listed.split("\n\nStack backtrace").next().unwrap_or_default();
        causes.extend(listed.lines().map(|cause| {
            let cause = cause.trim();
            let unnumbered = cause.trim_start_matches(|c: char| c.is_ascii_digit());
            unnumbered.strip_prefix(": ").unwrap_or(cause).to_owned()
        }));
    }
    report_error(kind, error.to_string(), false, causes);
}

/// Whether an error reports that the prelude's own work was interrupted.
#[allow(improper_ctypes_definitions)] // Both sides are Rust code, from one compiler.
type IsInterrupt = extern "C" fn(&(dyn Error + 'static)) -> bool;

static IS_INTERRUPT: OnceLock<IsInterrupt> = OnceLock::new();

/// Called once, before the first cell, with the prelude's function that recognises interruptions.
#[unsafe(no_mangle)]
#[allow(improper_ctypes_definitions)] // Both sides are Rust code, from one compiler.
pub extern "C" fn cloze_cell_knows_interrupts(is_interrupt: IsInterrupt) {
    let _ = IS_INTERRUPT.set(is_interrupt);
}

/// Reports the error that `?` returned from a cell.
fn report_error(kind: &str, message: String, interrupted: bool, causes: Vec<String>) {
    let interrupted = if interrupted { "interrupted" } else { "" };
    let mut fields = vec!["error".to_owned(), short_type_name(kind), message, interrupted.to_owned()];
    fields.extend(causes);
    event(&fields.iter().map(String::as_str).collect::<Vec<_>>());
    notice("EVCXR_ERROR_OCCURRED");
}

/// Shortens `alloc::boxed::Box<dyn core::error::Error>` to `Box<dyn Error>`, but `std::io::error::Error` to
/// `std::io::Error`, because many types are called just `Error`.
fn short_type_name(full: &str) -> String {
    if full.ends_with("::Error") && !full.contains('<') {
        return full.replace("::error::Error", "::Error");
    }
    let mut short = String::new();
    let mut word = String::new();
    for c in full.chars() {
        if c.is_alphanumeric() || c == '_' {
            word.push(c);
        } else if c == ':' {
            word.clear();
        } else {
            short.push_str(&word);
            word.clear();
            short.push(c);
        }
    }
    short + &word
}

fn event(fields: &[&str]) {
    let fd = EVENTS.load(Ordering::SeqCst);
    if fd < 0 {
        return;
    }
    let fields: Vec<String> = fields.iter().map(|field| field.replace([FIELD, END], " ")).collect();
    let record = fields.join(&FIELD.to_string()) + &END.to_string();
    // SAFETY: the kernel opened this descriptor for events, and it stays open as long as the process lives; it is not
    // closed here.
    let mut pipe = ManuallyDrop::new(unsafe { File::from_raw_fd(fd) });
    let _ = pipe.write_all(record.as_bytes());
}

/// Sends evcxr a notice for the end of the cell; not over stdout, where a cell may print the same.
pub fn notice(text: &str) {
    event(&["notice", text]);
}

/// Waits until the kernel has read what this process wrote to its other pipes, because the order across several pipes
/// is unknown. This way, what a library or a thread writes to stderr appears before what the cell prints afterwards.
fn settle() {
    let pending = || {
        [&STDERR, &EVENTS].into_iter().any(|pipe| {
            let pipe = pipe.load(Ordering::Relaxed);
            pipe >= 0 && unread(pipe) > 0
        })
    };
    if !pending() || KERNEL_IS_SLOW.load(Ordering::Relaxed) || !RUNNING.load(Ordering::Relaxed) {
        return;
    }
    let start = Instant::now();
    while pending() {
        if start.elapsed() > SETTLE_FOR {
            KERNEL_IS_SLOW.store(true, Ordering::Relaxed);
            return;
        }
        std::thread::yield_now();
    }
}

/// Returns the number of unread bytes in a pipe.
fn unread(pipe: c_int) -> c_int {
    unsafe extern "C" {
        fn ioctl(fd: c_int, request: c_ulong, ...) -> c_int;
    }
    const FIONREAD: c_ulong = if cfg!(target_os = "linux") { 0x541b } else { 0x4004_667f };
    let mut bytes: c_int = 0;
    // SAFETY: the request writes one `int`, and nothing where it fails.
    match unsafe { ioctl(pipe, FIONREAD, &raw mut bytes) } {
        0 => bytes,
        _ => 0,
    }
}

/// Prints to stdout, after everything that was written to stderr before.
pub fn to_stdout(arguments: std::fmt::Arguments) {
    settle();
    std::print!("{arguments}");
}

/// Prints to stderr, after everything that was printed to stdout before, and before everything printed to it
/// afterwards. The two are separate pipes, whose relative order is otherwise unknown.
pub fn to_stderr(arguments: std::fmt::Arguments) {
    let text = arguments.to_string();
    let Some(mark) = MARK.get().filter(|_| RUNNING.load(Ordering::Relaxed)) else {
        std::eprint!("{text}");
        return;
    };
    settle();
    let mut stdout = std::io::stdout().lock();
    let _ = write!(stdout, "{mark}CLOZE_STDERR {}\n{text}", text.len());
    let _ = stdout.flush();
}

/// Like the standard library's, but in order with what goes to stderr.
#[macro_export]
macro_rules! print {
    ($($text:tt)*) => { $crate::to_stdout(::std::format_args!($($text)*)) };
}

/// Like the standard library's, but in order with what goes to stderr.
#[macro_export]
macro_rules! println {
    () => { $crate::to_stdout(::std::format_args!("\n")) };
    ($($text:tt)*) => { $crate::to_stdout(::std::format_args!("{}\n", ::std::format_args!($($text)*))) };
}

/// Like the standard library's, but in order with what goes to stdout.
#[macro_export]
macro_rules! eprint {
    ($($text:tt)*) => { $crate::to_stderr(::std::format_args!($($text)*)) };
}

/// Like the standard library's, but in order with what goes to stdout.
#[macro_export]
macro_rules! eprintln {
    () => { $crate::to_stderr(::std::format_args!("\n")) };
    ($($text:tt)*) => { $crate::to_stderr(::std::format_args!("{}\n", ::std::format_args!($($text)*))) };
}

/// Like the standard library's, but with the position in the notebook.
#[macro_export]
macro_rules! dbg {
    ($place:literal) => { $crate::to_stderr(::std::format_args!("[{}]\n", $place)) };
    ($place:literal, $value:expr $(,)?) => {
        match $value {
            value => {
                $crate::to_stderr(::std::format_args!(
                    "[{}] {} = {:#?}\n", $place, ::std::stringify!($value), &value as &dyn ::std::fmt::Debug
                ));
                value
            }
        }
    };
    ($place:literal, $($value:expr),+ $(,)?) => { ($($crate::dbg!($place, $value)),+,) };
}

/// Statements that stay in the cell: later statements of the cell see their definitions, later cells do not.
#[macro_export]
macro_rules! here {
    ($($statement:tt)*) => { $($statement)* };
}

/// The session's variables between cells, by name.
///
/// Replaces the store that evcxr writes into every cell, with the same methods. Code that does not depend on the
/// variables' types is compiled once, here.
#[derive(Default)]
pub struct VariableStore {
    variables: HashMap<String, Box<dyn Any>>,
    /// Hashes of the definitions that the variables' types mentioned when they were stored, for those that mention any.
    shapes: HashMap<String, String>,
}

impl VariableStore {
    /// Creates an empty store.
    pub fn new() -> Self {
        Self::default()
    }

    /// Stores a variable.
    pub fn put_variable<T: 'static>(&mut self, name: &str, value: T) {
        self.shapes.remove(name);
        self.put(name, Box::new(value));
    }

    /// Stores a variable of a type that mentions definitions of the cells or of a local crate.
    pub fn put_variable_of<T: 'static>(&mut self, name: &str, value: T, shape: &str) {
        self.shapes.insert(name.to_owned(), shape.to_owned());
        self.put(name, Box::new(value));
    }

    /// Whether a variable has this type or does not exist; otherwise notifies evcxr.
    pub fn check_variable<T: 'static>(&mut self, name: &str) -> bool {
        self.check(name, TypeId::of::<T>())
    }

    /// Like [`check_variable`](Self::check_variable), where the definitions that the type mentions may have changed.
    pub fn check_variable_of<T: 'static>(&mut self, name: &str, shape: &str) -> bool {
        if self.shapes.get(name).is_some_and(|stored| stored != shape) {
            return self.lost(name, true);
        }
        self.check_variable::<T>(name)
    }

    /// Takes a variable out of the store.
    ///
    /// # Panics
    /// Panics if there is no variable of this name and type, which after `check_variable` is a bug of the kernel.
    pub fn take_variable<T: 'static>(&mut self, name: &str) -> T {
        let value = self.take(name, TypeId::of::<T>());
        // SAFETY: `take` has checked that the value has this type, and returns it only once.
        let taken = unsafe { value.cast::<T>().read() };
        // SAFETY: the box that contained the value, which is empty by now.
        unsafe { free(value, Layout::new::<T>()) };
        taken
    }

    /// Takes a variable out of the store, creating it if it does not exist.
    ///
    /// # Panics
    /// As [`take_variable`](Self::take_variable).
    pub fn lazy_arc<T: 'static, F: FnOnce() -> T>(&mut self, name: &str, create: F) -> Arc<T> {
        let other = self.variables.get(name).is_some_and(|value| !value.is::<Arc<T>>());
        if other && let Some(old) = self.variables.remove(name) {
            // The crate that defines its type was built again, so the type is a different one. Threads that use it
            // continue.
            std::mem::forget(old);
        }
        if !self.variables.contains_key(name) {
            self.put(name, Box::new(Arc::new(create())));
        }
        match self.variables.get(name).and_then(|value| value.downcast_ref::<Arc<T>>()) {
            Some(value) => value.clone(),
            None => gone(name),
        }
    }

    /// Takes over all variables of another store.
    pub fn merge(&mut self, other: VariableStore) {
        self.variables.extend(other.variables);
        self.shapes.extend(other.shapes);
    }

    fn put(&mut self, name: &str, value: Box<dyn Any>) {
        self.variables.insert(name.to_owned(), value);
    }

    fn check(&mut self, name: &str, kind: TypeId) -> bool {
        let found = self.variables.get(name).map(|value| (**value).type_id());
        found == Some(kind) || self.lost(name, found.is_some())
    }

    /// Reports that a variable can't be loaded: it has another type now, or does not exist.
    fn lost(&mut self, name: &str, exists: bool) -> bool {
        match exists {
            true => eprintln!(
                "The variable `{name}` is lost: its type was defined again, or the crate that it comes from was built again."
            ),
            // A cell that is left early keeps none of the variables that it would have defined.
            false => eprintln!("There is no variable `{name}`: the cell that defines it returned early."),
        }
        notice(&format!("EVCXR_VARIABLE_CHANGED_TYPE:{name}"));
        false
    }

    /// Returns a variable of this type: the pointer to its value.
    fn take(&mut self, name: &str, kind: TypeId) -> *mut u8 {
        match self.variables.remove(name) {
            Some(value) if (*value).type_id() == kind => Box::into_raw(value).cast(),
            _ => gone(name),
        }
    }
}

/// Frees a box of this layout whose value has been moved out.
///
/// # Safety
/// As for [`std::alloc::dealloc`].
unsafe fn free(memory: *mut u8, layout: Layout) {
    if layout.size() > 0 {
        // SAFETY: promised by the caller; a box of size 0 has no memory.
        unsafe { std::alloc::dealloc(memory, layout) };
    }
}

#[cold]
fn gone(name: &str) -> ! {
    panic!("the variable `{name}` has gone missing")
}

/// Displays a value whose type the prelude has a display for; false if it has none.
type Show = unsafe extern "C" fn(*const c_void, *const c_void) -> bool;

static SHOW: OnceLock<Show> = OnceLock::new();

/// Called once, before the first cell, with the prelude's function that displays types of other crates.
#[unsafe(no_mangle)]
pub extern "C" fn cloze_cell_shows(show: Show) {
    let _ = SHOW.set(show);
}

/// Returns the id of a type, ignoring lifetimes.
fn type_id<T>() -> TypeId {
    trait Numbered {
        fn number(&self) -> TypeId
        where
            Self: 'static;
    }
    impl<T> Numbered for PhantomData<T> {
        fn number(&self) -> TypeId
        where
            Self: 'static,
        {
            TypeId::of::<T>()
        }
    }
    let phantom = PhantomData::<T>;
    // SAFETY: changes only the lifetime in the type of a reference. The value behind it has size 0, and the method
    // requires nothing to live that long.
    let phantom = unsafe {
        std::mem::transmute::<&(dyn Numbered + '_), &(dyn Numbered + 'static)>(&phantom)
    };
    phantom.number()
}

/// Displays the value of a cell's last expression if its type has no `evcxr_display` of its own: as the prelude
/// displays it, or through its `Debug`.
///
/// An inherent method of the same name takes precedence over this one, so one compilation serves both.
pub trait ShowValue {
    /// Sends the value to the front end.
    fn evcxr_display(&self);
}

impl<T: Debug> ShowValue for T {
    fn evcxr_display(&self) {
        let kind = type_id::<T>();
        // The unit value of a statement is not displayed.
        if kind == TypeId::of::<()>() || is_shown((&raw const kind).cast(), (&raw const *self).cast()) {
            return;
        }
        show_debug(self);
    }
}

/// Whether the prelude has displayed the value.
fn is_shown(kind: *const c_void, value: *const c_void) -> bool {
    // SAFETY: the prelude's function, called with a type's id and a value of that type.
    SHOW.get().is_some_and(|show| unsafe { show(kind, value) })
}

fn show_debug(value: &dyn Debug) {
    let mark = MARK.get().map_or("", String::as_str);
    std::println!("{mark}EVCXR_BEGIN_CONTENT text/plain\n{value:?}\n{mark}EVCXR_END_CONTENT");
}
