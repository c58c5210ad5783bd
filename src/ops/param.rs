//! A trainable parameter: a value, and the gradient that backward passes add up.

use std::cell::Cell;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use candle_core::backprop::GradStore;
use candle_core::{DType, Device, Shape, Tensor, Var};

use crate::Result;

/// A named, trainable tensor with its accumulated gradient, in the manner of PyTorch's `Parameter`.
///
/// Clones share the same storage: that is how tied weights are expressed. The fused operations of [`crate::ops`] add
/// weight gradients straight into [`Param::grad`] during `loss.backward()`, so the (large) weight gradients never
/// pass through candle's gradient store, and gradient accumulation costs nothing extra. Plain candle operations on
/// [`Param::tensor`] work too: [`Param::absorb`] moves their gradients over after the backward pass.
#[derive(Clone)]
pub struct Param {
    inner: Arc<Inner>,
}

struct Inner {
    name: String,
    var: Var,
    grad: Mutex<Option<Tensor>>,
    trainable: AtomicBool,
}

impl Param {
    /// Wraps `value` as a parameter called `name` (the reference library's own name).
    pub fn new(name: impl Into<String>, value: &Tensor) -> Result<Self> {
        Ok(Self {
            inner: Arc::new(Inner {
                name: name.into(),
                // `copy` would double the memory of a freshly loaded model; `from_tensor` shares where it can.
                var: Var::from_tensor(value)?,
                grad: Mutex::new(None),
                trainable: AtomicBool::new(true),
            }),
        })
    }

    /// The parameter's name in the Hub's layout.
    pub fn name(&self) -> &str {
        &self.inner.name
    }

    /// The value as a tensor that gradients flow to; detached when the parameter is frozen or inside [`no_grad`].
    pub fn tensor(&self) -> Tensor {
        if self.is_trainable() && !NO_GRAD.get() {
            self.inner.var.as_tensor().clone()
        } else {
            self.inner.var.as_detached_tensor()
        }
    }

    /// The underlying candle variable.
    pub fn var(&self) -> &Var {
        &self.inner.var
    }

    /// The shape of the value.
    pub fn shape(&self) -> &Shape {
        self.inner.var.shape()
    }

    /// The dtype of the value.
    pub fn dtype(&self) -> DType {
        self.inner.var.dtype()
    }

    /// The device that holds the value.
    pub fn device(&self) -> &Device {
        self.inner.var.device()
    }

    /// The number of elements.
    pub fn elem_count(&self) -> usize {
        self.inner.var.elem_count()
    }

    /// Whether backward passes compute a gradient for this parameter (default: yes).
    pub fn is_trainable(&self) -> bool {
        self.inner.trainable.load(Ordering::Relaxed)
    }

    /// Freezes (`false`) or thaws (`true`) the parameter.
    pub fn set_trainable(&self, trainable: bool) {
        self.inner.trainable.store(trainable, Ordering::Relaxed);
    }

    /// Whether `other` is the same parameter (tied), not merely an equal one.
    pub fn is_same(&self, other: &Param) -> bool {
        Arc::ptr_eq(&self.inner, &other.inner)
    }

    /// The gradient accumulated since the last [`Param::zero_grad`], if any backward pass reached this parameter.
    pub fn grad(&self) -> Option<Tensor> {
        self.lock_grad().clone()
    }

    /// Forgets the gradient.
    pub fn zero_grad(&self) {
        *self.lock_grad() = None;
    }

    /// Adds `grad` (same shape) to the accumulated gradient.
    pub fn add_grad(&self, grad: &Tensor) -> Result<()> {
        if grad.shape() != self.shape() {
            return Err(crate::Error::Weights(format!(
                "a gradient of shape {:?} was given to {} of shape {:?}",
                grad.shape(),
                self.name(),
                self.shape()
            )));
        }
        let mut slot = self.lock_grad();
        *slot = Some(match slot.take() {
            Some(sum) => (sum + grad)?,
            None => grad.detach(),
        });
        Ok(())
    }

    /// Runs `update` on the gradient's slot under its lock: how the fused operations accumulate in place.
    pub(crate) fn with_grad_slot<T>(&self, update: impl FnOnce(&mut Option<Tensor>) -> T) -> T {
        update(&mut self.lock_grad())
    }

    /// Moves the gradient that plain candle operations left in `store` into this parameter.
    pub fn absorb(&self, store: &mut GradStore) -> Result<()> {
        match store.remove(&self.inner.var) {
            Some(grad) if self.is_trainable() => self.add_grad(&grad),
            _ => Ok(()),
        }
    }

    fn lock_grad(&self) -> std::sync::MutexGuard<'_, Option<Tensor>> {
        // A panic while holding the lock leaves either the old or the new tensor in place, both whole.
        self.inner
            .grad
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl std::fmt::Debug for Param {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let frozen = if self.is_trainable() { "" } else { ", frozen" };
        write!(
            f,
            "Param({} {:?} {:?}{frozen})",
            self.name(),
            self.shape().dims(),
            self.dtype()
        )
    }
}

thread_local! {
    static NO_GRAD: Cell<bool> = const { Cell::new(false) };
}

/// Runs `work` without recording a graph: what it computes can't be differentiated, and its intermediate results are
/// freed at once. The counterpart of PyTorch's `torch.no_grad()`, for the current thread.
pub fn no_grad<T>(work: impl FnOnce() -> T) -> T {
    /// Restores the former state also when `work` panics.
    struct Restore(bool);
    impl Drop for Restore {
        fn drop(&mut self) {
            NO_GRAD.set(self.0);
        }
    }
    let _restore = Restore(NO_GRAD.replace(true));
    work()
}

/// Runs the backward pass from `loss` and leaves every gradient in its parameter.
pub fn backward(loss: &Tensor, params: &[Param]) -> Result<()> {
    let mut store = loss.backward()?;
    for param in params {
        param.absorb(&mut store)?;
    }
    Ok(())
}
