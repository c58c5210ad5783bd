//! Ranks that are threads of one process, for tests without MPI.

use std::sync::{Arc, Barrier, Mutex};

use super::{Communicator, Group, share};
use crate::Result;

struct Board {
    barrier: Barrier,
    messages: Mutex<Vec<Vec<u8>>>,
}

struct Thread {
    rank: usize,
    size: usize,
    board: Arc<Board>,
}

impl Communicator for Thread {
    fn rank(&self) -> usize {
        self.rank
    }

    fn size(&self) -> usize {
        self.size
    }

    fn local_rank(&self) -> usize {
        self.rank
    }

    fn local_size(&self) -> usize {
        self.size
    }

    fn reduce_scatter(&self, values: &mut [f32]) -> Result<()> {
        let all = self.exchange(bytes_of(values).as_slice())?;
        let mut sum = floats(&all[0]);
        for other in &all[1..] {
            sum.iter_mut()
                .zip(floats(other))
                .for_each(|(sum, value)| *sum += value);
        }
        let own = share(values.len(), self.rank, self.size);
        values.fill(f32::NAN);
        values[own.clone()].copy_from_slice(&sum[own]);
        Ok(())
    }

    fn all_gather(&self, values: &mut [f32]) -> Result<()> {
        let all = self.exchange(bytes_of(values).as_slice())?;
        for (rank, other) in all.iter().enumerate() {
            let part = share(values.len(), rank, self.size);
            values[part.clone()].copy_from_slice(&floats(other)[part]);
        }
        Ok(())
    }

    fn broadcast(&self, bytes: &mut [u8]) -> Result<()> {
        let all = self.exchange(bytes)?;
        bytes.copy_from_slice(&all[0]);
        Ok(())
    }

    fn exchange(&self, mine: &[u8]) -> Result<Vec<Vec<u8>>> {
        self.board.messages.lock().unwrap()[self.rank] = mine.to_vec();
        self.board.barrier.wait();
        let all = self.board.messages.lock().unwrap().clone();
        self.board.barrier.wait();
        Ok(all)
    }

    fn finalize(&self) {}

    fn abort(&self, code: i32) -> ! {
        std::process::exit(code)
    }

    fn name(&self) -> String {
        "threads".to_owned()
    }
}

fn bytes_of(values: &[f32]) -> Vec<u8> {
    values
        .iter()
        .flat_map(|value| value.to_le_bytes())
        .collect()
}

fn floats(bytes: &[u8]) -> Vec<f32> {
    let values = bytes.as_chunks().0.iter();
    values.map(|bytes| f32::from_le_bytes(*bytes)).collect()
}

/// Runs `work` on `size` ranks at once, and returns their results.
pub(crate) fn on_threads<T: Send>(size: usize, work: impl Fn(Arc<Group>) -> T + Sync) -> Vec<T> {
    let board = Arc::new(Board {
        barrier: Barrier::new(size),
        messages: Mutex::new(vec![Vec::new(); size]),
    });
    std::thread::scope(|scope| {
        let spawn = |rank| {
            let board = Arc::clone(&board);
            let thread = Thread { rank, size, board };
            let work = &work;
            scope.spawn(move || work(Arc::new(Group::of(Box::new(thread)))))
        };
        let ranks: Vec<_> = (0..size).map(spawn).collect();
        ranks.into_iter().map(|rank| rank.join().unwrap()).collect()
    })
}
