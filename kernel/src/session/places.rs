//! Finds the cell that a place in compiled code belongs to, for panics in any thread and for compiler errors.

use std::collections::{HashMap, VecDeque};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::lines;
use super::report::Panic;
use crate::code::Cell;
use crate::evcxr::source_map::{SourceMap, Spot};

/// The cells of a session, and the sources of their libraries. Shared between threads.
#[derive(Clone, Debug)]
pub struct Places {
    inner: Arc<Mutex<Inner>>,
}

#[derive(Debug)]
struct Inner {
    /// The file in which evcxr keeps the last generated code.
    source: PathBuf,
    /// The folder of the cells' libraries.
    libraries: PathBuf,
    /// Cells that have run, whose items are still defined.
    cells: Vec<Arc<Cell>>,
    running: Option<Arc<Cell>>,
    /// Source maps, by the name of a cell's library.
    built: HashMap<String, Arc<SourceMap>>,
    /// The libraries whose source maps are kept, the oldest first.
    order: VecDeque<String>,
}

/// The number of libraries whose source maps are kept.
const REMEMBERED: usize = 128;

impl Places {
    /// Creates the places of a session in this folder, for cells compiled for `host`.
    pub fn new(folder: &Path, host: &str) -> Self {
        Self {
            inner: Arc::new(Mutex::new(Inner {
                source: folder.join("src/lib.rs"),
                libraries: folder.join("target").join(host).join("debug"),
                cells: Vec::new(),
                running: None,
                built: HashMap::new(),
                order: VecDeque::new(),
            })),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Called before a cell is compiled.
    pub fn begin(&self, cell: &Arc<Cell>) {
        let mut inner = self.lock();
        inner.note_libraries();
        inner.running = Some(cell.clone());
    }

    /// Called after the cell has run; its items are kept if evcxr keeps them.
    pub fn end(&self, keeps: bool) {
        let mut inner = self.lock();
        inner.note_libraries();
        if let Some(cell) = inner.running.take()
            && keeps
            && cell.chunks().iter().any(|chunk| chunk.is_item())
        {
            inner.cells.push(cell);
        }
    }

    /// Returns the macros that define items and that a cell calls as statements: only that cell sees those items.
    pub fn macros_that_define(&self, cell: &Cell) -> Vec<String> {
        let inner = self.lock();
        let cells = inner.cells.iter().map(Arc::as_ref).chain([cell]);
        let defining: Vec<String> = cells.flat_map(Cell::macros_that_define).collect();
        let mut called = cell.called_macros();
        called.retain(|name| defining.contains(name));
        called.sort();
        called.dedup();
        called
    }

    /// Maps code that evcxr generated for the running cell back to cells.
    pub fn map_of(&self, generated: &str) -> SourceMap {
        let inner = self.lock();
        SourceMap::new(generated, inner.running.as_ref(), &inner.cells)
    }

    /// Returns the places in cells through which a panic was reached, the innermost first, and whether the first is
    /// where it was raised.
    pub fn of_panic(&self, panic: &Panic) -> (Vec<Spot>, bool) {
        let mut inner = self.lock();
        inner.note_libraries();
        let in_cell = panic.file.ends_with("cell/lib.rs") || panic.file == "lib.rs";
        let mut spots = Vec::new();
        if in_cell {
            let library = panic.calls.first().map(|(_, library)| library.as_path());
            let map = inner.map(library);
            let spot = map.and_then(|map| map.spot(panic.line, panic.column));
            spots.extend(spot.map(Spot::of_indexed));
        }
        let is_own = !spots.is_empty();
        for (address, library) in &panic.calls {
            let Some(map) = inner.map(Some(library)) else {
                continue;
            };
            let places = fs::read(library)
                .ok()
                .and_then(|bytes| lines::of_address(&bytes, *address));
            for (line, column) in places.into_iter().flatten() {
                spots.extend(map.spot_at_byte(line, column));
            }
        }
        (spots, is_own)
    }
}

impl Inner {
    /// Keeps the sources of libraries that appeared since the last call.
    fn note_libraries(&mut self) {
        let Some(running) = &self.running else { return };
        let files = fs::read_dir(&self.libraries)
            .into_iter()
            .flatten()
            .flatten();
        let new: Vec<String> = files
            .filter_map(|file| file.file_name().into_string().ok())
            .filter(|name| name.starts_with("libcode_") && !self.built.contains_key(name))
            .collect();
        if new.is_empty() {
            return;
        }
        let generated = fs::read_to_string(&self.source).unwrap_or_default();
        let map = Arc::new(SourceMap::new(&generated, Some(running), &self.cells));
        for name in new {
            self.built.insert(name.clone(), map.clone());
            self.order.push_back(name);
        }
        // Old ones are rarely needed: only for code of an early cell that is still running, or that is stored in a
        // variable.
        while self.order.len() > REMEMBERED {
            // The name is kept, so that the library is not taken for a new one.
            if let Some(old) = self
                .order
                .pop_front()
                .and_then(|name| self.built.get_mut(&name))
            {
                *old = Arc::default();
            }
        }
    }

    fn map(&self, library: Option<&Path>) -> Option<Arc<SourceMap>> {
        let name = library
            .and_then(Path::file_name)
            .and_then(|name| name.to_str());
        match name {
            Some(name) => self.built.get(name).cloned(),
            None => {
                let generated = fs::read_to_string(&self.source).unwrap_or_default();
                let map = SourceMap::new(&generated, self.running.as_ref(), &self.cells);
                Some(Arc::new(map))
            }
        }
    }
}
