//! NCCL, found at run time, for gradients that are on GPUs: data goes from GPU to GPU, while MPI still carries the votes.
//!
//! Calls are put into the compute stream, so that they are ordered after the kernels that write their input and before
//! those that read their output, and nobody waits. Without NCCL, or if it refuses (two ranks on one GPU), gradients
//! pass through the host and MPI.

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::sync::atomic::{AtomicBool, Ordering};

use super::Group;
use crate::{Error, Result};

/// The variable that names the library to take; `off` for none.
const CHOICE: &str = "CLOZE_NCCL";

const FLOAT32: c_int = 7;
const SUM: c_int = 0;
const IN_PROGRESS: c_int = 7;

/// The id shared by the ranks of a communicator: `ncclUniqueId`.
#[repr(C)]
#[derive(Clone, Copy)]
struct UniqueId([u8; 128]);

type Comm = *mut c_void;
type Stream = *mut c_void;

macro_rules! functions {
    ($($field:ident = $symbol:literal: fn($($arg:ty),*) -> $result:ty;)*) => {
        /// The functions of NCCL that are used here.
        struct Library {
            $($field: unsafe extern "C" fn($($arg),*) -> $result,)*
        }

        impl Library {
            fn open(file: &str) -> Result<Self, String> {
                let name = CString::new(file).map_err(|_| "it has no name".to_owned())?;
                // SAFETY: opening a library runs its initializers; NCCL's may run at any time. It is never closed.
                let handle = unsafe { libc::dlopen(name.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL) };
                if handle.is_null() {
                    return Err(format!("{file} can't be opened"));
                }
                Ok(Self {
                    $($field: {
                        let symbol = concat!($symbol, "\0").as_ptr().cast::<c_char>();
                        // SAFETY: the handle is open, and the name ends with a zero.
                        let found = unsafe { libc::dlsym(handle, symbol) };
                        if found.is_null() {
                            return Err(format!("{file} has no function {}", $symbol));
                        }
                        // SAFETY: the symbol is NCCL's function of that name, whose arguments nccl.h fixes.
                        unsafe { std::mem::transmute::<*mut c_void, unsafe extern "C" fn($($arg),*) -> $result>(found) }
                    },)*
                })
            }
        }
    };
}

functions! {
    get_unique_id = "ncclGetUniqueId": fn(*mut UniqueId) -> c_int;
    comm_init_rank = "ncclCommInitRank": fn(*mut Comm, c_int, UniqueId, c_int) -> c_int;
    comm_abort = "ncclCommAbort": fn(Comm) -> c_int;
    comm_get_async_error = "ncclCommGetAsyncError": fn(Comm, *mut c_int) -> c_int;
    reduce_scatter = "ncclReduceScatter": fn(*const c_void, *mut c_void, usize, c_int, c_int, Comm, Stream) -> c_int;
    all_gather = "ncclAllGather": fn(*const c_void, *mut c_void, usize, c_int, Comm, Stream) -> c_int;
    all_reduce = "ncclAllReduce": fn(*const c_void, *mut c_void, usize, c_int, c_int, Comm, Stream) -> c_int;
    error_string = "ncclGetErrorString": fn(c_int) -> *const c_char;
}

/// One rank's end of NCCL's communicator of a whole group.
pub(crate) struct Nccl {
    functions: Library,
    comm: Comm,
    rank: usize,
    size: usize,
    aborted: AtomicBool,
}

// SAFETY: NCCL's communicators may be used from any thread, by one at a time: training exchanges from one.
unsafe impl Send for Nccl {}
// SAFETY: as above.
unsafe impl Sync for Nccl {}

impl Nccl {
    /// Joins all ranks of `group`; each must have made its GPU the current one on this thread. Returns `None` on all
    /// ranks if one of them can't; the first rank reports it.
    ///
    /// # Errors
    /// If a vote fails.
    #[cfg(feature = "cuda")]
    pub(crate) fn join(group: &Group) -> Result<Option<Self>> {
        let file = std::env::var(CHOICE).ok().filter(|file| !file.is_empty());
        Self::join_with(group, file.as_deref().unwrap_or("libnccl.so.2"))
    }

    fn join_with(group: &Group, file: &str) -> Result<Option<Self>> {
        let opened = match file.eq_ignore_ascii_case("off") {
            true => Err(format!("{CHOICE} is off")),
            false => Library::open(file),
        };
        let library = match agree(group, "opening NCCL", opened)? {
            Some(library) => library,
            None => return Ok(None),
        };
        let id = group.on_main("NCCL's identity", || {
            let mut id = UniqueId([0; 128]);
            // SAFETY: the identity lives while it is filled in.
            let code = unsafe { (library.get_unique_id)(&mut id) };
            Ok((code, id.0.to_vec()))
        })?;
        let (code, bytes) = id;
        let mut unique = UniqueId([0; 128]);
        if code == 0 && bytes.len() == unique.0.len() {
            unique.0.copy_from_slice(&bytes);
        }
        let mut comm: Comm = std::ptr::null_mut();
        let (rank, size) = (group.rank(), group.size());
        let code = match code {
            // SAFETY: the communicator lives while it is made; all ranks come here with the same identity.
            0 => unsafe {
                (library.comm_init_rank)(&mut comm, size as c_int, unique, rank as c_int)
            },
            code => code,
        };
        let made = match code {
            0 => Ok(()),
            code => Err(explain(&library, code)),
        };
        let all = agree(group, "joining NCCL", made)?.is_some();
        let nccl = Self {
            functions: library,
            comm,
            rank,
            size,
            aborted: AtomicBool::new(comm.is_null()),
        };
        // Where another rank failed this one's communicator goes with it.
        Ok(all.then_some(nccl))
    }

    /// Enqueues on `stream` the replacement of `len` f32 numbers at `data` by their sums over all ranks. Each element
    /// is summed by one rank and sent to the others, so that all hold the same bits.
    ///
    /// # Safety
    /// `data` must be memory of this rank's GPU for `len` numbers, which nothing but what is put into `stream` touches until
    /// that has been done; all ranks give equally many.
    pub(crate) unsafe fn all_reduce(
        &self,
        data: *mut f32,
        len: usize,
        stream: *mut c_void,
    ) -> Result<()> {
        let (each, rest) = (len / self.size, len % self.size);
        let (library, comm) = (&self.functions, self.comm);
        if each > 0 {
            // SAFETY: this rank's part lies within the data.
            let own = unsafe { data.add(self.rank * each) };
            // SAFETY: `size` parts of `each` numbers lie within the data; NCCL allows the result to be this rank's part.
            let code = unsafe {
                (library.reduce_scatter)(
                    data.cast_const().cast(),
                    own.cast(),
                    each,
                    FLOAT32,
                    SUM,
                    comm,
                    stream,
                )
            };
            self.check(code, "ncclReduceScatter")?;
            // SAFETY: as above, the other way round.
            let code = unsafe {
                (library.all_gather)(
                    own.cast_const().cast(),
                    data.cast(),
                    each,
                    FLOAT32,
                    comm,
                    stream,
                )
            };
            self.check(code, "ncclAllGather")?;
        }
        if rest > 0 {
            // SAFETY: the last few numbers lie within the data.
            let code = unsafe {
                let tail = data.add(each * self.size);
                (library.all_reduce)(
                    tail.cast_const().cast(),
                    tail.cast(),
                    rest,
                    FLOAT32,
                    SUM,
                    comm,
                    stream,
                )
            };
            self.check(code, "ncclAllReduce")?;
        }
        self.watch()
    }

    /// Checks that no exchange that is under way has failed.
    ///
    /// # Errors
    /// Where one has: the communicator is ended then, so that nothing waits for it on the GPU.
    pub(crate) fn watch(&self) -> Result<()> {
        let mut state = 0;
        // SAFETY: the communicator lives, and so does the number.
        let code = unsafe { (self.functions.comm_get_async_error)(self.comm, &mut state) };
        self.check(code, "ncclCommGetAsyncError")?;
        match state {
            0 | IN_PROGRESS => Ok(()),
            state => {
                self.abort();
                Err(Error::Distributed(format!(
                    "an exchange on the GPUs failed: {}",
                    explain(&self.functions, state)
                )))
            }
        }
    }

    fn check(&self, code: c_int, what: &str) -> Result<()> {
        match code {
            0 | IN_PROGRESS => Ok(()),
            code => Err(Error::Distributed(format!(
                "{what} failed: {}",
                explain(&self.functions, code)
            ))),
        }
    }

    fn abort(&self) {
        if !self.aborted.swap(true, Ordering::Relaxed) {
            // SAFETY: it is ended once, and used no more: whoever gets the error ends the job.
            unsafe { (self.functions.comm_abort)(self.comm) };
        }
    }
}

impl Drop for Nccl {
    fn drop(&mut self) {
        self.abort();
    }
}

#[cfg(feature = "cuda")]
impl Group {
    /// Returns NCCL's communicator of the ranks, which is joined at the first call; `None` where NCCL can't be had. This
    /// rank's GPU must be the current one on this thread.
    pub(crate) fn nccl(&self) -> Result<Option<&Nccl>> {
        if self.further.get().is_none() {
            let joined: Option<Nccl> = Nccl::join(self)?;
            let _ = self.further.set(Box::new(joined));
        }
        let joined = self
            .further
            .get()
            .and_then(|any| any.downcast_ref::<Option<Nccl>>());
        Ok(joined.and_then(Option::as_ref))
    }
}

/// Returns what each rank has, or nothing if one of them has nothing, which is reported once.
fn agree<T>(group: &Group, place: &str, mine: Result<T, String>) -> Result<Option<T>> {
    let failure = mine.as_ref().err().cloned();
    let failures = group.vote(place, Ok(failure))?;
    if let Some((rank, reason)) =
        (failures.into_iter().enumerate()).find_map(|(rank, why)| Some((rank, why?)))
    {
        if group.is_main() {
            eprintln!(
                "note: gradients are exchanged through the host, because {place} failed on rank {rank}: {reason}"
            );
        }
        return Ok(None);
    }
    Ok(mine.ok())
}

fn explain(library: &Library, code: c_int) -> String {
    // SAFETY: the function returns a constant text for every number.
    let text = unsafe { (library.error_string)(code) };
    match text.is_null() {
        true => format!("error {code}"),
        // SAFETY: it is no null pointer, and the text ends with a zero.
        false => unsafe { CStr::from_ptr(text) }
            .to_string_lossy()
            .into_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::on_threads;
    use super::*;

    /// Builds the stand-in library, which treats host memory as GPU memory.
    fn stand_in(folder: &std::path::Path) -> Option<String> {
        let source =
            std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cuda_host/nccl.cpp");
        let library = folder.join("libnccl.so.2");
        let compiler = std::env::var("CXX").unwrap_or_else(|_| "g++".to_owned());
        let built = std::process::Command::new(compiler)
            .args(["-std=c++17", "-O1", "-fPIC", "-shared", "-pthread", "-o"])
            .args([&library, &source])
            .status();
        match built {
            Ok(status) => assert!(status.success(), "the stand-in does not compile"),
            Err(_) => return None,
        }
        Some(library.display().to_string())
    }

    #[test]
    fn sums_use_a_library_loaded_at_run_time() {
        let folder = tempfile::tempdir().unwrap();
        let Some(library) = stand_in(folder.path()) else {
            eprintln!("skipped: there is no C++ compiler to build the stand-in with");
            return;
        };
        for size in [2, 3] {
            let found = on_threads(size, |group| {
                let nccl = Nccl::join_with(&group, &library)
                    .unwrap()
                    .expect("all ranks join");
                // Lengths that the ranks can and can't share evenly.
                [1, 2, 6, 1001].map(|len| {
                    let mut values: Vec<f32> =
                        (0..len).map(|i| (i + 1000 * group.rank()) as f32).collect();
                    // SAFETY: the stand-in works on the host's memory, and is done when it returns.
                    unsafe { nccl.all_reduce(values.as_mut_ptr(), len, std::ptr::null_mut()) }
                        .unwrap();
                    values
                })
            });
            let ranks = (0..size).map(|rank| 1000 * rank).sum::<usize>();
            for sums in &found {
                for values in sums {
                    let expected: Vec<f32> = (0..values.len())
                        .map(|i| (i * size + ranks) as f32)
                        .collect();
                    assert_eq!(values, &expected, "{size} ranks");
                }
            }
        }
        // An exchange that failed in the background is told of, and the communicator ended.
        let found = on_threads(2, |group| {
            let nccl = Nccl::join_with(&group, &library)
                .unwrap()
                .expect("all ranks join");
            let mut values = [f32::INFINITY; 4];
            // SAFETY: as above. The stand-in takes an infinity for a broken cable.
            let result = unsafe { nccl.all_reduce(values.as_mut_ptr(), 4, std::ptr::null_mut()) };
            (
                result.unwrap_err().to_string(),
                nccl.aborted.load(Ordering::Relaxed),
            )
        });
        for (message, aborted) in found {
            assert!(
                message.contains("an exchange on the GPUs failed"),
                "{message}"
            );
            assert!(aborted);
        }
        // Where one rank can't, none does.
        let none = on_threads(2, |group| {
            let opened = match group.rank() {
                0 => Library::open(&library).map(drop),
                _ => Library::open("/nowhere/libnccl.so.2").map(drop),
            };
            agree(&group, "opening NCCL", opened).unwrap().is_none()
        });
        assert_eq!(none, [true, true]);
    }
}
