//! What every cell links against: the part of the kernel that lives in the process that runs the cells.
//!
//! Compiled on its own by the notebook's compiler as a dynamic library that shares the standard library with the
//! cells, because the panic hook and the buffer of stdout belong to that copy, not to the kernel's own.
#![warn(missing_docs)]

use std::any::{Any, TypeId};
use std::collections::HashMap;
use std::error::Error;
use std::ffi::{c_int, c_void};
use std::fmt::{Debug, Display};
use std::fs::File;
use std::io::Write;
use std::mem::ManuallyDrop;
use std::ops::Range;
use std::os::fd::FromRawFd;
use std::panic::PanicHookInfo;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::ThreadId;
use std::time::Duration;

/// Separates the fields of an event; never part of a field.
const FIELD: char = '\u{1f}';
/// Ends an event.
const END: char = '\u{1e}';

/// How often text that has no newline yet is passed on while a cell runs.
const FLUSH_EVERY: Duration = Duration::from_millis(80);

static EVENTS: AtomicI32 = AtomicI32::new(-1);
static RUNNING: AtomicBool = AtomicBool::new(false);
static CELL_THREAD: Mutex<Option<ThreadId>> = Mutex::new(None);

/// Called once, before the first cell. `events` is the descriptor that events are written to.
#[unsafe(no_mangle)]
pub extern "C" fn cloze_cell_start(events: i32) {
    EVENTS.store(events, Ordering::SeqCst);
    let default_hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        let in_cell = CELL_THREAD.lock().is_ok_and(|id| *id == Some(std::thread::current().id()));
        report_panic(if in_cell { "panic" } else { "thread-panic" }, panic);
        if !in_cell {
            default_hook(panic);
        }
    }));
    std::thread::spawn(|| {
        loop {
            std::thread::sleep(FLUSH_EVERY);
            if RUNNING.load(Ordering::Relaxed) {
                let _ = std::io::stdout().flush();
            }
        }
    });
}

/// Called on the thread that runs the cells, before each of them.
#[unsafe(no_mangle)]
pub extern "C" fn cloze_cell_begin() {
    if let Ok(mut thread) = CELL_THREAD.lock() {
        *thread = Some(std::thread::current().id());
    }
    RUNNING.store(true, Ordering::Relaxed);
}

/// Called after each cell: what it printed is on its way when this returns.
#[unsafe(no_mangle)]
pub extern "C" fn cloze_cell_end() {
    RUNNING.store(false, Ordering::Relaxed);
    let _ = std::io::stdout().flush();
}

/// Reports a panic, where it was raised, and from where in cells it was reached.
fn report_panic(kind: &str, panic: &PanicHookInfo) {
    let (file, line, column) =
        panic.location().map_or(("", 0, 0), |at| (at.file(), at.line(), at.column()));
    let message = panic.payload_as_str().unwrap_or("the panic carried no message");
    let mut fields = vec![
        kind.to_owned(),
        file.to_owned(),
        line.to_string(),
        column.to_string(),
        message.to_owned(),
    ];
    fields.extend(frames_in_cells());
    event(&fields.iter().map(String::as_str).collect::<Vec<_>>());
}

/// The calls on this thread's stack that are in cells, the innermost first: each as the address in the cell's library, and
/// the path of that. The kernel finds out the lines: std's own backtraces know no library that was loaded after the first.
fn frames_in_cells() -> Vec<String> {
    // Where there is no such file the place of the panic itself must do.
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap_or_default();
    let cells: Vec<(Range<usize>, &str)> = maps.lines().filter_map(cell_mapping).collect();
    let frames = return_addresses().into_iter().filter_map(|address| {
        let (_, path) = cells.iter().find(|(addresses, _)| addresses.contains(&address))?;
        // A library's first mapping is where its own addresses count from.
        let (first, _) = cells.iter().find(|(_, other)| other == path)?;
        // Of the call, not of what follows it.
        Some(format!("{:x} {path}", address - first.start - 1))
    });
    frames.collect()
}

/// The addresses and the path in a line of `/proc/self/maps`, if they are those of a cell.
fn cell_mapping(line: &str) -> Option<(Range<usize>, &str)> {
    let path = &line[line.find('/')?..];
    if !path.rsplit('/').next()?.starts_with("libcode_") {
        return None;
    }
    let (start, end) = line.split_once(' ')?.0.split_once('-')?;
    let address = |text| usize::from_str_radix(text, 16).ok();
    Some((address(start)?..address(end)?, path))
}

/// Where the calls on this thread's stack return to, the innermost first.
fn return_addresses() -> Vec<usize> {
    unsafe extern "C" {
        // The platform's unwinder, which std unwinds panics with.
        fn _Unwind_Backtrace(
            visit: extern "C" fn(*mut c_void, *mut c_void) -> c_int,
            argument: *mut c_void,
        ) -> c_int;
        fn _Unwind_GetIP(frame: *mut c_void) -> usize;
    }
    extern "C" fn visit(frame: *mut c_void, addresses: *mut c_void) -> c_int {
        // SAFETY: called by the unwinder only, below: with a frame of its own, and with the list, which nothing else
        // touches meanwhile.
        unsafe { (*addresses.cast::<Vec<usize>>()).push(_Unwind_GetIP(frame)) };
        0
    }
    let mut addresses: Vec<usize> = Vec::new();
    // SAFETY: declared as the unwinder's interface has it; `visit` does not unwind, and the list outlives the call.
    unsafe { _Unwind_Backtrace(visit, (&raw mut addresses).cast()) };
    addresses
}

/// What an error becomes that leaves a cell by `?`: a report to the kernel.
///
/// Of the name that evcxr has for it, which messages of the compiler tell.
pub struct EvcxrUserCodeError;

impl<T: Display + Debug + 'static> From<T> for EvcxrUserCodeError {
    fn from(error: T) -> Self {
        report_error(&error);
        println!("EVCXR_ERROR_OCCURRED");
        Self
    }
}

/// Reports the error that `?` returned from a cell.
fn report_error<T: Display + Debug + 'static>(error: &T) {
    let mut fields = vec!["error".to_owned(), short_type_name::<T>(), error.to_string()];
    let mut source = (error as &dyn Any)
        .downcast_ref::<Box<dyn Error>>()
        .and_then(|error| error.source())
        .or_else(|| {
            let error = (error as &dyn Any).downcast_ref::<Box<dyn Error + Send + Sync>>()?;
            error.source()
        })
        .or_else(|| (error as &dyn Any).downcast_ref::<std::io::Error>()?.source());
    while let Some(error) = source {
        fields.push(error.to_string());
        source = error.source();
    }
    // An error that knows its causes only through its Debug (anyhow's and its kin) lists them there.
    if fields.len() == 3
        && let Some((_, causes)) = format!("{error:?}").split_once("Caused by:\n")
    {
        let causes = causes.split("\n\nStack backtrace").next().unwrap_or_default();
        fields.extend(causes.lines().map(|cause| {
            let cause = cause.trim();
            let unnumbered = cause.trim_start_matches(|c: char| c.is_ascii_digit());
            unnumbered.strip_prefix(": ").unwrap_or(cause).to_owned()
        }));
    }
    event(&fields.iter().map(String::as_str).collect::<Vec<_>>());
}

/// `alloc::boxed::Box<dyn core::error::Error>` → `Box<dyn Error>`, but `std::io::error::Error` → `std::io::Error`, because
/// there are many types called just `Error`.
fn short_type_name<T>() -> String {
    let full = std::any::type_name::<T>();
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
    // SAFETY: the kernel opened this descriptor for events and keeps it open as long as the process lives; it is not
    // closed here.
    let mut pipe = ManuallyDrop::new(unsafe { File::from_raw_fd(fd) });
    let _ = pipe.write_all(record.as_bytes());
}

/// The session's variables between cells, under their names.
///
/// Stands in for the one that evcxr writes into every cell, of the same methods: what of it does not depend on the
/// variables' types is compiled here, once.
#[derive(Default)]
pub struct VariableStore {
    variables: HashMap<String, Box<dyn Any>>,
}

impl VariableStore {
    /// An empty one.
    pub fn new() -> Self {
        Self::default()
    }

    /// Keeps a variable.
    pub fn put_variable<T: 'static>(&mut self, name: &str, value: T) {
        self.put(name, Box::new(value));
    }

    /// Whether a variable is of this type, or there is none of the name; if not, evcxr is told.
    pub fn check_variable<T: 'static>(&mut self, name: &str) -> bool {
        self.check(name, TypeId::of::<T>())
    }

    /// Hands out a variable.
    ///
    /// # Panics
    /// If there is none of this name and type, after `check_variable` a fault of the kernel.
    pub fn take_variable<T: 'static>(&mut self, name: &str) -> T {
        match self.take(name).downcast() {
            Ok(value) => *value,
            Err(_) => gone(name),
        }
    }

    /// A variable that is made when it is first asked for.
    ///
    /// # Panics
    /// As [`take_variable`](Self::take_variable).
    pub fn lazy_arc<T: 'static, F: FnOnce() -> T>(&mut self, name: &str, create: F) -> Arc<T> {
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
    }

    fn put(&mut self, name: &str, value: Box<dyn Any>) {
        self.variables.insert(name.to_owned(), value);
    }

    fn check(&mut self, name: &str, kind: TypeId) -> bool {
        let same = self.variables.get(name).is_none_or(|value| (**value).type_id() == kind);
        if !same {
            eprintln!("The type of the variable {name} was redefined, so was lost.");
            println!("EVCXR_VARIABLE_CHANGED_TYPE:{name}");
        }
        same
    }

    fn take(&mut self, name: &str) -> Box<dyn Any> {
        self.variables.remove(name).unwrap_or_else(|| gone(name))
    }
}

#[cold]
fn gone(name: &str) -> ! {
    panic!("the variable `{name}` has gone missing")
}

/// How the value of a cell's last expression is shown when its type has no `evcxr_display` of its own: as its `Debug`.
///
/// An inherent method of the same name wins over this one, so one compilation serves both.
pub trait ShowValue {
    /// Sends the value to the front end.
    fn evcxr_display(&self);
}

impl<T: Debug> ShowValue for T {
    fn evcxr_display(&self) {
        // A statement's value is not news.
        if std::any::type_name::<T>() == "()" {
            return;
        }
        println!("EVCXR_BEGIN_CONTENT text/plain\n{self:?}\nEVCXR_END_CONTENT");
    }
}
