//! The emulated device: compiles the kernels with the system's C++ compiler, gives them memory that ends where it
//! says, and launches them.

use std::cell::Cell;
use std::ffi::{CStr, CString, c_char, c_void};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// An argument that is an address.
pub type Address = *mut c_void;
pub const NULL: Address = std::ptr::null_mut();

struct Library {
    handle: usize,
    launch: Launch,
}

type Thunk = extern "C" fn(*mut c_void);
type Launch = unsafe extern "C" fn(
    kernel: Thunk,
    arguments: *mut c_void,
    grid: *const u32,
    block: *const u32,
    shared: usize,
    order: u32,
) -> *const c_char;

fn library() -> &'static Library {
    static LIBRARY: OnceLock<Library> = OnceLock::new();
    LIBRARY.get_or_init(|| {
        let folder = tempfile::tempdir().unwrap();
        let path = build(folder.path());
        let name = CString::new(path.to_str().unwrap()).unwrap();
        // SAFETY: the library was just built here; it has no initializers that do anything. It stays loaded.
        let handle = unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_NOW) };
        assert!(!handle.is_null(), "the kernels do not load: {}", dl_error());
        let launch = symbol(handle, "cloze_launch");
        Library {
            handle: handle as usize,
            // SAFETY: this is the signature of `cloze_launch` in emulator.cpp.
            launch: unsafe { std::mem::transmute::<Address, Launch>(launch) },
        }
    })
}

fn dl_error() -> String {
    // SAFETY: dlerror returns null or a string that lives until this thread's next call.
    let message = unsafe { libc::dlerror() };
    if message.is_null() {
        return "no reason given".to_owned();
    }
    // SAFETY: as above.
    unsafe { CStr::from_ptr(message) }
        .to_string_lossy()
        .into_owned()
}

fn symbol(handle: Address, name: &str) -> Address {
    let c_name = CString::new(name).unwrap();
    // SAFETY: the handle is that of a loaded library.
    let found = unsafe { libc::dlsym(handle, c_name.as_ptr()) };
    assert!(!found.is_null(), "no kernel {name}: {}", dl_error());
    found
}

/// The first compiler that answers.
fn compiler() -> String {
    let named = std::env::var("CXX").ok();
    let known = ["c++", "g++", "clang++"].map(str::to_owned);
    named
        .into_iter()
        .chain(known)
        .find(|name| {
            let version = Command::new(name).arg("--version").output();
            version.is_ok_and(|output| output.status.success())
        })
        .expect(
            "the kernels are checked by compiling them for the CPU, which needs a C++17 compiler: install g++ or clang++ \
             (`apt install g++`), or name one in CXX",
        )
}

/// Compiles every kernel against the emulator's header; the shared library's path.
fn build(folder: &Path) -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let host = root.join("tests/cuda_host");
    let inside = |folder: &Path| -> Vec<PathBuf> {
        let entries = std::fs::read_dir(folder).unwrap();
        entries.map(|entry| entry.unwrap().path()).collect()
    };
    let mut sources = vec![host.join("emulator.cpp"), host.join("faults.cu")];
    for folder in inside(&root.join("src/ops")) {
        if folder.is_dir() {
            sources.extend(inside(&folder));
        }
    }
    let is_source = |path: &PathBuf| {
        path.extension()
            .is_some_and(|ending| ending == "cu" || ending == "cpp")
    };
    sources.retain(is_source);
    let compiler = compiler();
    let finish = |command: &mut Command| {
        let output = command.output().unwrap();
        let messages = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{command:?} failed:\n{messages}");
    };
    let compile = |source: &PathBuf| {
        // Several are called `kernel.cu`.
        let place = source.strip_prefix(root).unwrap().to_string_lossy();
        let object = folder.join(place.replace('/', "-")).with_extension("o");
        finish(
            Command::new(&compiler)
                .args(["-std=c++17", "-O1", "-fPIC", "-fvisibility=hidden"])
                .args([
                    "-ffp-contract=off",
                    "-Wall",
                    "-Wextra",
                    "-Werror",
                    "-Wno-unknown-pragmas",
                ])
                .args(["-fsanitize=undefined", "-fsanitize-undefined-trap-on-error"])
                .arg("-I")
                .arg(&host)
                .args(["-x", "c++", "-c"])
                .arg(source)
                .arg("-o")
                .arg(&object),
        );
        object
    };
    let objects: Vec<PathBuf> = std::thread::scope(|scope| {
        let tasks: Vec<_> = (sources.iter())
            .map(|source| scope.spawn(|| compile(source)))
            .collect();
        tasks.into_iter().map(|task| task.join().unwrap()).collect()
    });
    let library = folder.join("libcloze_kernels.so");
    finish(
        Command::new(&compiler)
            .arg("-shared")
            .args(objects)
            .arg("-o")
            .arg(&library),
    );
    library
}

/// A tuple of arguments that a kernel is called with.
pub trait Arguments: Copy {
    /// # Safety
    /// `kernel` must be a function of these parameter types that returns nothing.
    unsafe fn call(self, kernel: Address);
}

macro_rules! arguments {
    ($($name:ident)+) => {
        impl<$($name: Copy),+> Arguments for ($($name,)+) {
            #[allow(non_snake_case)]
            unsafe fn call(self, kernel: Address) {
                let ($($name,)+) = self;
                // SAFETY: the caller's promise.
                unsafe {
                    let kernel = std::mem::transmute::<Address, extern "C" fn($($name),+)>(kernel);
                    kernel($($name),+)
                }
            }
        }
    };
}
macro_rules! up_to {
    ($first:ident) => { arguments!($first); };
    ($first:ident $($rest:ident)+) => { arguments!($first $($rest)+); up_to!($($rest)+); };
}
up_to!(A B C D E F G H I J K L M N O P Q R S T U V W);

thread_local! {
    static ORDER: Cell<u32> = const { Cell::new(0) };
    static SHIFTED: Cell<bool> = const { Cell::new(false) };
}

/// Runs the kernel `name`; the emulator's complaint, if there is one.
pub fn try_launch<A: Arguments>(
    name: &str,
    grid: [usize; 3],
    block: [usize; 2],
    shared: usize,
    arguments: A,
) -> Result<(), String> {
    extern "C" fn thunk<A: Arguments>(context: *mut c_void) {
        // SAFETY: the context is the pair below, which outlives the launch.
        let &(kernel, arguments) = unsafe { &*context.cast::<(Address, A)>() };
        // SAFETY: tests give the arguments in the order and types of the kernel's declaration.
        unsafe { arguments.call(kernel) }
    }
    let library = library();
    let mut context = (symbol(library.handle as Address, name), arguments);
    let grid = grid.map(|n| u32::try_from(n).unwrap());
    let block = [block[0] as u32, block[1] as u32, 1];
    // SAFETY: the thunk and its context belong together; grid and block have three numbers each.
    let error = unsafe {
        (library.launch)(
            thunk::<A>,
            (&raw mut context).cast(),
            grid.as_ptr(),
            block.as_ptr(),
            shared,
            ORDER.get(),
        )
    };
    if error.is_null() {
        return Ok(());
    }
    // SAFETY: not null, it is a string that lives until this thread's next launch.
    let message = unsafe { CStr::from_ptr(error) };
    Err(format!("{name}: {}", message.to_string_lossy()))
}

/// How many pieces of 16 bytes this thread's last launch has copied to shared memory in the background: what the loops over
/// tiles have done.
pub fn copied() -> u64 {
    let found = symbol(library().handle as Address, "cloze_copied");
    // SAFETY: this is its signature in emulator.cpp.
    let copied = unsafe { std::mem::transmute::<Address, extern "C" fn() -> u64>(found) };
    copied()
}

/// As [`try_launch`], for kernels that are expected to be right.
pub fn launch<A: Arguments>(
    name: &str,
    grid: [usize; 3],
    block: [usize; 2],
    shared: usize,
    arguments: A,
) {
    try_launch(name, grid, block, shared, arguments).unwrap();
}

/// What `f` returns, which must be the same bits whatever the order of blocks, warps and lanes (rising, falling, then
/// shuffled; asynchronous copies as early as they may come, then as late): otherwise a barrier is missing.
pub fn in_orders(orders: u32, f: impl Fn() -> Vec<Vec<f32>>) -> Vec<Vec<f32>> {
    let bits = |lists: &Vec<Vec<f32>>| -> Vec<Vec<u32>> {
        let bits = |list: &Vec<f32>| list.iter().map(|x| x.to_bits()).collect();
        lists.iter().map(bits).collect()
    };
    let mut runs = (0..orders).map(|order| {
        ORDER.set(order);
        f()
    });
    let first = runs.next().unwrap();
    for other in runs {
        assert!(
            bits(&first) == bits(&other),
            "the order of threads shows in the result"
        );
    }
    ORDER.set(0);
    first
}

/// As [`in_orders`], in three of them; once with all buffers at multiples of 16 bytes, once with none: a kernel may take
/// another way through them then, so the bits may differ.
pub fn in_all_orders(f: impl Fn() -> Vec<Vec<f32>>) -> [Vec<Vec<f32>>; 2] {
    [false, true].map(|shifted| {
        SHIFTED.set(shifted);
        let got = in_orders(3, &f);
        SHIFTED.set(false);
        got
    })
}

/// The bytes around a buffer that nobody may write.
const CANARY: u8 = 0xA5;

/// Memory for `len` elements that is followed by a page which can't be touched.
pub struct Buffer<T: Copy> {
    mapping: *mut u8,
    mapped: usize,
    start: usize,
    len: usize,
    element: std::marker::PhantomData<T>,
}

impl<T: Copy> Buffer<T> {
    pub fn new(values: &[T]) -> Self {
        let bytes = size_of_val(values);
        // SAFETY: asks for a number.
        let page = unsafe { libc::sysconf(libc::_SC_PAGESIZE) } as usize;
        let mapped = (bytes + 32).next_multiple_of(page) + page;
        // SAFETY: a new private mapping, of which the last page is then closed.
        let mapping = unsafe {
            let protection = libc::PROT_READ | libc::PROT_WRITE;
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
            let mapping = libc::mmap(NULL, mapped, protection, flags, -1, 0);
            assert!(mapping != libc::MAP_FAILED, "no memory for {bytes} bytes");
            libc::mprotect(mapping.byte_add(mapped - page), page, libc::PROT_NONE);
            std::slice::from_raw_parts_mut(mapping.cast::<u8>(), mapped - page).fill(CANARY);
            mapping.cast::<u8>()
        };
        // At a multiple of 16, or one element past one and as near to the closed page as that allows.
        let mut start = mapped - page - bytes.next_multiple_of(16);
        if SHIFTED.get() {
            start = mapped - page - bytes;
            if start.is_multiple_of(16) {
                start -= size_of::<T>();
            }
        }
        // SAFETY: the elements lie within the mapping, at a multiple of their alignment.
        unsafe {
            let to = mapping.add(start).cast::<T>();
            std::ptr::copy_nonoverlapping(values.as_ptr(), to, values.len());
        }
        Self {
            mapping,
            mapped,
            start,
            len: values.len(),
            element: std::marker::PhantomData,
        }
    }

    pub fn at(&self) -> Address {
        // SAFETY: within the mapping.
        unsafe { self.mapping.add(self.start).cast() }
    }

    pub fn values(&self) -> Vec<T> {
        // SAFETY: the elements that `new` has written, or a kernel since.
        unsafe { std::slice::from_raw_parts(self.at().cast::<T>(), self.len) }.to_vec()
    }
}

impl<T: Copy> Drop for Buffer<T> {
    fn drop(&mut self) {
        // SAFETY: as in `new`; the slice is gone before the mapping is.
        let intact = unsafe {
            let page = libc::sysconf(libc::_SC_PAGESIZE) as usize;
            let all = std::slice::from_raw_parts(self.mapping, self.mapped - page);
            let end = self.start + self.len * size_of::<T>();
            let intact = all[..self.start]
                .iter()
                .chain(&all[end..])
                .all(|&b| b == CANARY);
            libc::munmap(self.mapping.cast(), self.mapped);
            intact
        };
        assert!(
            intact || std::thread::panicking(),
            "a kernel wrote beside a buffer"
        );
    }
}

/// What activations may be.
pub trait Element: Copy + 'static {
    const NAME: &'static str;
    /// Half the distance from 1 to the next number: the relative error of rounding.
    const ROUNDING: f32;
    fn round(x: f32) -> Self;
    fn widen(self) -> f32;
}

impl Element for f32 {
    const NAME: &'static str = "f32";
    const ROUNDING: f32 = 0.0;
    fn round(x: f32) -> Self {
        x
    }
    fn widen(self) -> f32 {
        self
    }
}
impl Element for half::bf16 {
    const NAME: &'static str = "bf16";
    const ROUNDING: f32 = 1.0 / 256.0;
    fn round(x: f32) -> Self {
        Self::from_f32(x)
    }
    fn widen(self) -> f32 {
        self.to_f32()
    }
}
impl Element for half::f16 {
    const NAME: &'static str = "f16";
    const ROUNDING: f32 = 1.0 / 2048.0;
    fn round(x: f32) -> Self {
        Self::from_f32(x)
    }
    fn widen(self) -> f32 {
        self.to_f32()
    }
}

/// A buffer of activations with these values, rounded.
pub fn activations<T: Element>(values: &[f32]) -> Buffer<T> {
    Buffer::new(&values.iter().map(|&x| T::round(x)).collect::<Vec<T>>())
}

/// A buffer whose content nobody may rely on: NaN.
pub fn unwritten<T: Element>(len: usize) -> Buffer<T> {
    Buffer::new(&vec![T::round(f32::NAN); len])
}

pub fn widened<T: Element>(buffer: &Buffer<T>) -> Vec<f32> {
    buffer.values().into_iter().map(T::widen).collect()
}

/// What `values` are once rounded to `T`.
pub fn rounded<T: Element>(values: &[f32]) -> Vec<f32> {
    values.iter().map(|&x| T::round(x).widen()).collect()
}
