//! Values that a model measures in what it reads, and is saved with.

use std::sync::{Arc, Mutex, PoisonError};

use candle_core::Tensor;

/// A value that passes measure instead of learning it: the range of an activation. Clones share it.
#[derive(Clone)]
pub(crate) struct Measured {
    inner: Arc<Inner>,
}

struct Inner {
    name: String,
    /// The value before anything was measured.
    start: Option<Tensor>,
    value: Mutex<Option<Tensor>>,
}

impl Measured {
    /// Returns the value `name`, which is `value` now and `start` before anything was measured.
    pub(super) fn new(name: String, value: Option<Tensor>, start: Option<Tensor>) -> Self {
        let value = Mutex::new(value.or_else(|| start.clone()));
        Self {
            inner: Arc::new(Inner { name, start, value }),
        }
    }

    /// Returns its full name.
    pub(crate) fn name(&self) -> &str {
        &self.inner.name
    }

    /// Returns the value; `None` where nothing was measured, and nothing is saved.
    pub(crate) fn get(&self) -> Option<Tensor> {
        self.lock().clone()
    }

    /// Replaces the value.
    pub(crate) fn set(&self, value: Option<Tensor>) {
        *self.lock() = value;
    }

    /// Forgets what was measured.
    pub(super) fn reset(&self) {
        self.set(self.inner.start.clone());
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Tensor>> {
        // Whoever panicked with the lock has left a whole value.
        let value = self.inner.value.lock();
        value.unwrap_or_else(PoisonError::into_inner)
    }
}

impl std::fmt::Debug for Measured {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Measured({})", self.name())
    }
}
