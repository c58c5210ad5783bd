//! An MPI library, opened at run time: its functions and its constants.
//!
//! The functions are the same everywhere, the constants are not: Open MPI's handles are addresses of its own variables,
//! MPICH's are numbers of 32 bits, and MPI 5 has fixed ones. Handles are passed as `usize` in all three cases: a callee
//! that expects 32 bits finds them in the lower half of the same register or stack slot, and one that writes 32 bits
//! writes them there.

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::path::PathBuf;

use super::super::environment::Environment;
use crate::{Error, Result};

/// The variable that names the library to take.
const CHOICE: &str = "CLOZE_MPI";

macro_rules! functions {
    ($($(#[$doc:meta])* $field:ident = $symbol:literal: fn($($arg:ty),*);)*) => {
        /// The functions of MPI that are used here.
        pub(super) struct Library {
            $($(#[$doc])* pub(super) $field: unsafe extern "C" fn($($arg),*) -> c_int,)*
            pub(super) constants: Constants,
            /// The file that was opened.
            pub(super) file: String,
        }

        impl Library {
            /// Looks the functions up in an open library.
            ///
            /// # Safety
            /// `handle` must be an MPI library's, which stays open.
            unsafe fn bind(handle: *mut c_void, file: String, constants: Constants) -> Result<Self> {
                Ok(Self {
                    // SAFETY: the symbol is MPI's function of that name, whose arguments the standard fixes.
                    $($field: unsafe { std::mem::transmute::<*mut c_void, unsafe extern "C" fn($($arg),*) -> c_int>(
                        symbol(handle, $symbol).ok_or_else(|| incomplete(&file, $symbol))?
                    ) },)*
                    constants,
                    file,
                })
            }
        }
    };
}

/// A communicator, datatype, info or error handler.
type Handle = usize;
type Buffer = *mut c_void;
type Counts = *const c_int;

functions! {
    init_thread = "MPI_Init_thread": fn(*mut c_int, *mut c_void, c_int, *mut c_int);
    initialized = "MPI_Initialized": fn(*mut c_int);
    finalize = "MPI_Finalize": fn();
    abort = "MPI_Abort": fn(Handle, c_int);
    comm_rank = "MPI_Comm_rank": fn(Handle, *mut c_int);
    comm_size = "MPI_Comm_size": fn(Handle, *mut c_int);
    comm_split_type = "MPI_Comm_split_type": fn(Handle, c_int, c_int, Handle, *mut Handle);
    comm_free = "MPI_Comm_free": fn(*mut Handle);
    comm_set_errhandler = "MPI_Comm_set_errhandler": fn(Handle, Handle);
    error_string = "MPI_Error_string": fn(c_int, *mut c_char, *mut c_int);
    get_library_version = "MPI_Get_library_version": fn(*mut c_char, *mut c_int);
    /// Each rank sends a different part to every other rank.
    alltoallv = "MPI_Alltoallv": fn(Buffer, Counts, Counts, Handle, Buffer, Counts, Counts, Handle, Handle);
    allgather = "MPI_Allgather": fn(Buffer, c_int, Handle, Buffer, c_int, Handle, Handle);
    allgatherv = "MPI_Allgatherv": fn(Buffer, c_int, Handle, Buffer, Counts, Counts, Handle, Handle);
    bcast = "MPI_Bcast": fn(Buffer, c_int, Handle, c_int, Handle);
}

/// The differences between the three kinds of library.
pub(super) struct Constants {
    pub(super) world: Handle,
    pub(super) byte: Handle,
    pub(super) float: Handle,
    pub(super) info_null: Handle,
    pub(super) errors_return: Handle,
    /// `MPI_IN_PLACE`.
    pub(super) in_place: usize,
    /// `MPI_COMM_TYPE_SHARED`.
    pub(super) shared: c_int,
    /// `MPI_THREAD_FUNNELED`.
    pub(super) funneled: c_int,
}

/// MPICH and its relatives since 3.1 (Intel MPI, MVAPICH, Cray MPICH), in `libmpi.so.12`, which Debian calls `libmpich.so.12`.
const MPICH: Constants = Constants {
    world: 0x4400_0000,
    byte: 0x4c00_010d,
    float: 0x4c00_040a,
    info_null: 0x1c00_0000,
    errors_return: 0x5400_0001,
    in_place: usize::MAX,
    shared: 1,
    funneled: 1,
};

/// The ABI that MPI 5 fixes, in `libmpi_abi.so.1`.
const STANDARD: Constants = Constants {
    world: 0x101,
    byte: 0x247,
    float: 0x210,
    info_null: 0x130,
    errors_return: 0x143,
    in_place: 1,
    shared: 221,
    funneled: 1024,
};

impl Library {
    /// Opens the library that belongs to the launcher.
    pub(super) fn open(environment: &Environment) -> Result<Self> {
        let candidates = match std::env::var(CHOICE).ok().filter(|path| !path.is_empty()) {
            Some(path) => vec![path],
            None => candidates(environment.launcher.unwrap_or_default()),
        };
        let mut refused = Vec::new();
        for file in &candidates {
            let Ok(name) = CString::new(file.as_str()) else {
                continue;
            };
            // SAFETY: opening a library runs its initializers; those of MPI libraries may run at any time.
            let handle = unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL) };
            if handle.is_null() {
                refused.push(last_error().unwrap_or_else(|| file.clone()));
                continue;
            }
            // SAFETY: the handle was just opened and is never closed.
            return unsafe { Self::bind(handle, file.clone(), constants(handle, file)) };
        }
        // The first reason is that of the library which fits best.
        Err(Error::Distributed(format!(
            "{} started this program as one of {}, but no MPI library was found (tried {}; {}): install Open MPI or MPICH, the \
             one whose mpirun is used, or name its libmpi.so in {CHOICE}",
            environment.launcher.unwrap_or("a launcher"),
            environment.size,
            candidates.join(", "),
            refused.first().map_or("no reason given", String::as_str),
        )))
    }

    /// Returns the library's name and version, in one line.
    pub(super) fn version(&self) -> String {
        let mut text = [0 as c_char; 8192];
        let mut length = 0;
        // SAFETY: the text has room for the longest version of all three kinds, and this may be asked at any time.
        let code = unsafe { (self.get_library_version)(text.as_mut_ptr(), &mut length) };
        first_line(code, &text)
    }

    /// Returns the description of an error code.
    pub(super) fn explain(&self, code: c_int) -> String {
        let mut text = [0 as c_char; 1024];
        let mut length = 0;
        // SAFETY: the text has room for the longest message of all three kinds.
        let done = unsafe { (self.error_string)(code, text.as_mut_ptr(), &mut length) };
        first_line(done, &text)
    }
}

fn first_line(code: c_int, text: &[c_char]) -> String {
    if code != 0 || !text.contains(&0) {
        return "unknown".to_owned();
    }
    // SAFETY: there is a zero within the text.
    let text = unsafe { CStr::from_ptr(text.as_ptr()) }.to_string_lossy();
    let line = text.lines().next().unwrap_or_default();
    line.split_whitespace().collect::<Vec<_>>().join(" ")
}

/// Returns the files to try, the most fitting first.
fn candidates(launcher: &str) -> Vec<String> {
    const OPEN_MPI: &str = "libmpi.so.40";
    const ABI: &str = "libmpi_abi.so.1";
    const MPICH: &str = "libmpi.so.12";
    const MPICH_OF_DEBIAN: &str = "libmpich.so.12";
    let names = match launcher {
        "MPICH's mpiexec" => [MPICH, MPICH_OF_DEBIAN, ABI, OPEN_MPI],
        _ => [OPEN_MPI, ABI, MPICH, MPICH_OF_DEBIAN],
    };
    let beside = beside_launcher();
    let mut found = Vec::new();
    for name in names {
        let path = beside.as_ref().map(|folder| folder.join(name));
        found.extend(path.filter(|p| p.exists()).map(|p| p.display().to_string()));
        found.push(name.to_owned());
    }
    found.push("libmpi.so".to_owned());
    found
}

/// Returns the folder of libraries that belongs to the `mpirun` on the search path.
fn beside_launcher() -> Option<PathBuf> {
    let path = std::env::var_os("PATH")?;
    let folder = std::env::split_paths(&path).find(|folder| folder.join("mpirun").exists())?;
    Some(folder.parent()?.join("lib"))
}

/// Returns the constants of the kind of library that this is.
///
/// # Safety
/// `handle` must be an open library's.
unsafe fn constants(handle: *mut c_void, file: &str) -> Constants {
    // SAFETY: as the caller promises.
    let address = |name: &str| unsafe { symbol(handle, name) }.map(|found| found as usize);
    if let (Some(world), Some(byte), Some(float), Some(info_null), Some(errors_return)) = (
        address("ompi_mpi_comm_world"),
        address("ompi_mpi_byte"),
        address("ompi_mpi_float"),
        address("ompi_mpi_info_null"),
        address("ompi_mpi_errors_return"),
    ) {
        return Constants {
            world,
            byte,
            float,
            info_null,
            errors_return,
            in_place: 1,
            shared: 0,
            funneled: 1,
        };
    }
    let file = std::fs::canonicalize(file).unwrap_or_else(|_| PathBuf::from(file));
    let name = file.file_name().unwrap_or_default().to_string_lossy();
    match name.contains("mpi_abi") {
        true => STANDARD,
        false => MPICH,
    }
}

/// # Safety
/// `handle` must be an open library's.
unsafe fn symbol(handle: *mut c_void, name: &str) -> Option<*mut c_void> {
    let name = CString::new(name).ok()?;
    // SAFETY: the name ends with a zero, and the handle is open.
    let found = unsafe { libc::dlsym(handle, name.as_ptr()) };
    (!found.is_null()).then_some(found)
}

fn incomplete(file: &str, symbol: &str) -> Error {
    Error::Distributed(format!(
        "{file} has no function {symbol}: it is not an MPI library; name the right libmpi.so in {CHOICE}"
    ))
}

fn last_error() -> Option<String> {
    // SAFETY: dlerror returns null or a text that stays valid until the next call on this thread.
    unsafe {
        let text = libc::dlerror();
        (!text.is_null()).then(|| CStr::from_ptr(text).to_string_lossy().into_owned())
    }
}
