//! The calls themselves, on the one thread that makes them.

use std::ffi::{c_int, c_void};

use super::super::share;
use super::library::Library;
use crate::{Error, Result};

/// How long a message may be to travel with its length.
const FRAME: usize = 512;

/// What MPI counts in an `int`: larger things go in parts.
const MOST: usize = 1 << 30;

/// All ranks of a job. Lives on the thread that made it.
pub(super) struct World {
    functions: Library,
    pub(super) rank: usize,
    pub(super) size: usize,
    pub(super) local_rank: usize,
    pub(super) local_size: usize,
    /// The other ranks' values, before they are summed.
    received: Vec<f32>,
}

impl World {
    /// Initializes MPI, once in a process.
    pub(super) fn join(library: Library) -> Result<Self> {
        let mut world = Self {
            functions: library,
            rank: 0,
            size: 1,
            local_rank: 0,
            local_size: 1,
            received: Vec::new(),
        };
        world.initialize()?;
        Ok(world)
    }

    fn initialize(&mut self) -> Result<()> {
        let (library, constants) = (&self.functions, &self.functions.constants);
        let mut flag: c_int = 0;
        // SAFETY: may be asked at any time.
        self.check(
            unsafe { (library.initialized)(&mut flag) },
            "MPI_Initialized",
        )?;
        if flag != 0 {
            return Err(Error::Distributed(
                "something else in this program has initialized MPI already; let the trainer do it"
                    .to_owned(),
            ));
        }
        let mut provided: c_int = 0;
        let (no_count, no_arguments) = (std::ptr::null_mut(), std::ptr::null_mut());
        // SAFETY: MPI allows null for both arguments; this is the first call, and all others come from this thread.
        let code = unsafe {
            (library.init_thread)(no_count, no_arguments, constants.funneled, &mut provided)
        };
        self.check(code, "MPI_Init_thread")?;
        if provided < constants.funneled {
            return Err(Error::Distributed(format!(
                "{} was built without threads (MPI_THREAD_FUNNELED); take another build of it",
                self.name()
            )));
        }
        // SAFETY: MPI is initialized; errors are returned from now on instead of ending the program.
        let code =
            unsafe { (library.comm_set_errhandler)(constants.world, constants.errors_return) };
        self.check(code, "MPI_Comm_set_errhandler")?;
        let (rank, size) = self.place_in(constants.world)?;
        let mut machine: usize = 0;
        // SAFETY: a handle of 32 bits is written into the lower half of the zeroed one.
        let code = unsafe {
            (library.comm_split_type)(
                constants.world,
                constants.shared,
                0,
                constants.info_null,
                &mut machine,
            )
        };
        self.check(code, "MPI_Comm_split_type")?;
        let (local_rank, local_size) = self.place_in(machine)?;
        // SAFETY: the communicator was made above and is used nowhere else.
        self.check(
            unsafe { (self.functions.comm_free)(&mut machine) },
            "MPI_Comm_free",
        )?;
        (self.rank, self.size) = (rank, size);
        (self.local_rank, self.local_size) = (local_rank, local_size);
        Ok(())
    }

    fn place_in(&self, communicator: usize) -> Result<(usize, usize)> {
        let (mut rank, mut size): (c_int, c_int) = (0, 0);
        // SAFETY: the communicator is valid, and both numbers live.
        let code = unsafe { (self.functions.comm_rank)(communicator, &mut rank) };
        self.check(code, "MPI_Comm_rank")?;
        // SAFETY: as above.
        let code = unsafe { (self.functions.comm_size)(communicator, &mut size) };
        self.check(code, "MPI_Comm_size")?;
        Ok((rank as usize, size as usize))
    }

    pub(super) fn name(&self) -> String {
        format!("{} ({})", self.functions.version(), self.functions.file)
    }

    fn check(&self, code: c_int, what: &str) -> Result<()> {
        match code {
            0 => Ok(()),
            _ => Err(Error::Distributed(format!(
                "{what} failed: {}",
                self.functions.explain(code)
            ))),
        }
    }

    /// Each rank sends every other rank that rank's share, and sums what it receives, so the order of the sums does not
    /// depend on the library.
    pub(super) fn reduce_scatter(&mut self, values: &mut [f32]) -> Result<()> {
        fits(values.len())?;
        let (rank, size) = (self.rank, self.size);
        let mine = share(values.len(), rank, size);
        let width = mine.len();
        let mut sent = Layout::of_shares(values.len(), size);
        sent.counts[rank] = 0;
        let mut taken = Layout::default();
        for other in 0..size {
            let skip = usize::from(other > rank);
            taken
                .counts
                .push(if other == rank { 0 } else { width as c_int });
            taken.starts.push(((other - skip) * width) as c_int);
        }
        self.received.resize((size - 1) * width, 0.0);
        let (library, constants) = (&self.functions, &self.functions.constants);
        // SAFETY: the counts and starts of both sides lie within `values` and `received`, which nobody else holds.
        let code = unsafe {
            (library.alltoallv)(
                values.as_mut_ptr().cast(),
                sent.counts.as_ptr(),
                sent.starts.as_ptr(),
                constants.float,
                self.received.as_mut_ptr().cast(),
                taken.counts.as_ptr(),
                taken.starts.as_ptr(),
                constants.float,
                constants.world,
            )
        };
        self.check(code, "MPI_Alltoallv")?;
        add_in_order(&mut values[mine], &self.received, rank);
        Ok(())
    }

    pub(super) fn all_gather(&mut self, values: &mut [f32]) -> Result<()> {
        fits(values.len())?;
        let shares = Layout::of_shares(values.len(), self.size);
        let constants = &self.functions.constants;
        // SAFETY: the shares lie within `values`; each rank's own is already in its place.
        let code = unsafe {
            (self.functions.allgatherv)(
                constants.in_place as *mut c_void,
                0,
                constants.float,
                values.as_mut_ptr().cast(),
                shares.counts.as_ptr(),
                shares.starts.as_ptr(),
                constants.float,
                constants.world,
            )
        };
        self.check(code, "MPI_Allgatherv")
    }

    pub(super) fn broadcast(&mut self, bytes: &mut [u8]) -> Result<()> {
        let constants = &self.functions.constants;
        for part in bytes.chunks_mut(MOST) {
            let count = part.len() as c_int;
            // SAFETY: the buffer has so many bytes.
            let code = unsafe {
                (self.functions.bcast)(
                    part.as_mut_ptr().cast(),
                    count,
                    constants.byte,
                    0,
                    constants.world,
                )
            };
            self.check(code, "MPI_Bcast")?;
        }
        Ok(())
    }

    pub(super) fn exchange(&mut self, mine: &[u8]) -> Result<Vec<Vec<u8>>> {
        let (library, constants) = (&self.functions, &self.functions.constants);
        // Short messages, which most are, travel with their lengths.
        let mut frame = [0u8; FRAME];
        frame[..8].copy_from_slice(&(mine.len() as u64).to_le_bytes());
        let head = mine.len().min(FRAME - 8);
        frame[8..8 + head].copy_from_slice(&mine[..head]);
        let mut frames = vec![0u8; FRAME * self.size];
        // SAFETY: one frame is sent, and there is room for one of each rank.
        let code = unsafe {
            (library.allgather)(
                frame.as_mut_ptr().cast(),
                FRAME as c_int,
                constants.byte,
                frames.as_mut_ptr().cast(),
                FRAME as c_int,
                constants.byte,
                constants.world,
            )
        };
        self.check(code, "MPI_Allgather")?;
        let mut found: Vec<Vec<u8>> = Vec::with_capacity(self.size);
        let mut lengths = Vec::with_capacity(self.size);
        for frame in frames.chunks_exact(FRAME) {
            let length = frame[..8]
                .iter()
                .rev()
                .fold(0, |n, &byte| n << 8 | usize::from(byte));
            lengths.push(length);
            found.push(frame[8..8 + length.min(FRAME - 8)].to_vec());
        }
        let longest = lengths.iter().copied().max().unwrap_or(0);
        if longest <= FRAME - 8 {
            return Ok(found);
        }
        // The rest of the long ones, some of each rank's at a time.
        let mut at = FRAME - 8;
        let window = (MOST / self.size).max(1);
        while at < longest {
            let part = |length: usize| length.min(at + window).saturating_sub(at);
            let mut layout = Layout::default();
            let mut all = 0;
            for &length in &lengths {
                layout.counts.push(part(length) as c_int);
                layout.starts.push(all as c_int);
                all += part(length);
            }
            let mut rest = vec![0u8; all];
            let own = &mine[at.min(mine.len())..(at + window).min(mine.len())];
            // SAFETY: `own` is only read; the counts and starts lie within `rest`.
            let code = unsafe {
                (library.allgatherv)(
                    own.as_ptr().cast_mut().cast(),
                    own.len() as c_int,
                    constants.byte,
                    rest.as_mut_ptr().cast(),
                    layout.counts.as_ptr(),
                    layout.starts.as_ptr(),
                    constants.byte,
                    constants.world,
                )
            };
            self.check(code, "MPI_Allgatherv")?;
            let mut rest = rest.as_slice();
            for (message, &length) in found.iter_mut().zip(&lengths) {
                let (own, others) = rest.split_at(part(length));
                message.extend_from_slice(own);
                rest = others;
            }
            at += window;
        }
        Ok(found)
    }

    pub(super) fn finalize(&mut self) {
        // SAFETY: MPI was initialized on this thread, and nothing is asked of it afterwards.
        unsafe { (self.functions.finalize)() };
    }

    pub(super) fn abort(&mut self, code: i32) {
        // SAFETY: may be called at any time after the initialization.
        unsafe { (self.functions.abort)(self.functions.constants.world, code) };
    }
}

/// How many elements, from where on, of each rank.
#[derive(Default)]
struct Layout {
    counts: Vec<c_int>,
    starts: Vec<c_int>,
}

impl Layout {
    fn of_shares(len: usize, size: usize) -> Self {
        let mut layout = Self::default();
        for share in (0..size).map(|rank| share(len, rank, size)) {
            layout.counts.push(share.len() as c_int);
            layout.starts.push(share.start as c_int);
        }
        layout
    }
}

fn fits(len: usize) -> Result<()> {
    match len <= MOST {
        true => Ok(()),
        false => Err(Error::Distributed(format!(
            "{len} numbers are more than MPI can exchange at once; exchange them in parts"
        ))),
    }
}

/// Adds up `mine`, which is `rank`'s, and the others' in `received`, in the order of the ranks.
fn add_in_order(mine: &mut [f32], received: &[f32], rank: usize) {
    use rayon::prelude::*;
    const CHUNK: usize = 1 << 14;
    let width = mine.len();
    if width == 0 {
        return;
    }
    let add = |(number, mine): (usize, &mut [f32])| {
        let from = number * CHUNK;
        let of = |other: usize| &received[other * width + from..][..mine.len()];
        let others = received.len() / width;
        match rank {
            // a + b is b + a: for the first two the order makes no difference.
            0 | 1 => (0..others).for_each(|other| accumulate(mine, received, other, width, from)),
            _ => {
                let mut sum = of(0).to_vec();
                (1..rank).for_each(|other| accumulate(&mut sum, received, other, width, from));
                sum.iter_mut()
                    .zip(&*mine)
                    .for_each(|(sum, own)| *sum += own);
                (rank..others).for_each(|other| accumulate(&mut sum, received, other, width, from));
                mine.copy_from_slice(&sum);
            }
        }
    };
    mine.par_chunks_mut(CHUNK).enumerate().for_each(add);
}

fn accumulate(sum: &mut [f32], received: &[f32], other: usize, width: usize, from: usize) {
    let values = &received[other * width + from..][..sum.len()];
    sum.iter_mut()
        .zip(values)
        .for_each(|(sum, value)| *sum += value);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_are_formed_in_rank_order_on_every_rank() {
        // Numbers whose sum hangs on the order.
        let of = |rank: usize, i: usize| ((i * 7919 + rank * 104_729) % 1013) as f32 * 0.37 - 150.0;
        for (size, width) in [(2, 5), (3, 40_000), (5, 16_385)] {
            let expected: Vec<f32> = (0..width)
                .map(|i| (1..size).fold(of(0, i), |sum, rank| sum + of(rank, i)))
                .collect();
            for rank in 0..size {
                let mut mine: Vec<f32> = (0..width).map(|i| of(rank, i)).collect();
                let others = (0..size).filter(|&other| other != rank);
                let received: Vec<f32> = others
                    .flat_map(|other| (0..width).map(move |i| of(other, i)))
                    .collect();
                add_in_order(&mut mine, &received, rank);
                assert_eq!(mine, expected, "rank {rank} of {size}");
            }
        }
    }
}
