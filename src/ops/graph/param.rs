//! A trainable parameter: a value, and the gradient that backward passes add up.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use candle_core::backprop::GradStore;
use candle_core::{DType, Device, Shape, Tensor, Var};

use crate::Result;
#[cfg(target_arch = "x86_64")]
use crate::ops::gemm::panels::{Kind, Panels};
use crate::ops::graph::storage;

/// A named, trainable tensor with its accumulated gradient, in the manner of PyTorch's `Parameter`.
///
/// Clones share the same storage: that is how tied weights are expressed. The fused operations of [`crate::ops`] add
/// weight gradients straight into [`Param::grad`] during `loss.backward()`, so the (large) weight gradients never
/// pass through candle's gradient store, and gradient accumulation costs nothing extra. Plain candle operations on
/// [`Param::tensor`] work too: [`Param::absorb`] moves their gradients over after the backward pass.
///
/// The gradient's memory is kept from step to step: [`Param::zero_grad`] only marks it as empty.
#[derive(Clone)]
pub struct Param {
    inner: Arc<Inner>,
}

struct Inner {
    name: String,
    var: Var,
    grad: Mutex<GradSlot>,
    trainable: AtomicBool,
    /// Whether code outside may hold the variable, and change it unnoticed.
    exposed: AtomicBool,
    copy: Mutex<Option<Rounded>>,
    #[cfg(target_arch = "x86_64")]
    panels: Mutex<Rearranged>,
}

/// The value as products of a model that is only read take it: for the kind that was asked for last.
#[cfg(target_arch = "x86_64")]
#[derive(Default)]
struct Rearranged {
    panels: Option<Arc<Panels>>,
    /// How often the value has changed.
    changes: u64,
}

/// The value in fewer bits, which products on a GPU take.
#[cfg_attr(not(feature = "cuda"), allow(dead_code))]
struct Rounded {
    value: Tensor,
    /// The outermost `autocast` that it was made in: it serves until its end, or on if `kept`.
    scope: u64,
    /// Whether all changes of the value since were made by an optimizer, which changes the copy along.
    kept: bool,
}

#[derive(Default)]
struct GradSlot {
    buffer: Option<Tensor>,
    /// Whether `buffer` holds a gradient; if not, it is memory to be overwritten.
    live: bool,
    /// Whether code outside may hold `buffer`, which must then not be changed in place.
    lent: bool,
}

impl Param {
    /// Creates the parameter `name` (the name in transformers) from `value`: a copy of it, or `value` itself if it is a
    /// candle variable.
    pub fn new(name: impl Into<String>, value: &Tensor) -> Result<Self> {
        let param = Self::owned(name, value)?;
        param
            .inner
            .exposed
            .store(value.is_variable(), Ordering::Relaxed);
        Ok(param)
    }

    /// Like [`Param::new`], for a variable that nothing else holds.
    pub(crate) fn owned(name: impl Into<String>, value: &Tensor) -> Result<Self> {
        Ok(Self {
            inner: Arc::new(Inner {
                name: name.into(),
                var: Var::from_tensor(value)?,
                grad: Mutex::default(),
                trainable: AtomicBool::new(true),
                exposed: AtomicBool::new(false),
                copy: Mutex::default(),
                #[cfg(target_arch = "x86_64")]
                panels: Mutex::default(),
            }),
        })
    }

    /// Returns the parameter's name in the Hub's layout.
    pub fn name(&self) -> &str {
        &self.inner.name
    }

    /// Returns the value as a tensor that gradients flow to; detached when the parameter is frozen or inside
    /// [`no_grad`].
    pub fn tensor(&self) -> Tensor {
        if self.is_trainable() && !NO_GRAD.get() {
            self.inner.var.as_tensor().clone()
        } else {
            self.inner.var.as_detached_tensor()
        }
    }

    /// Returns the id of the variable in graphs; the value is unchanged.
    pub(in crate::ops) fn variable_id(&self) -> candle_core::TensorId {
        self.inner.var.id()
    }

    /// Returns the underlying candle variable.
    pub fn var(&self) -> &Var {
        // From now on the value may change at any time.
        self.inner.exposed.store(true, Ordering::Relaxed);
        &self.inner.var
    }

    /// Like [`Param::var`], for code that reports every change with [`Param::value_changed`].
    pub(in crate::ops) fn own_var(&self) -> &Var {
        &self.inner.var
    }

    /// Returns the value, outside of any graph.
    pub(crate) fn value(&self) -> Tensor {
        self.inner.var.as_detached_tensor()
    }

    /// Replaces the value by another of its shape and dtype.
    pub fn set(&self, value: &Tensor) -> Result<()> {
        self.inner.var.set(value)?;
        self.value_changed(false);
        Ok(())
    }

    /// Returns the value in this dtype, which must not be changed: rounded once for each outermost
    /// [`autocast`](crate::ops::autocast), or by the optimizer when it changes the value.
    #[cfg(feature = "cuda")]
    pub(crate) fn rounded(&self, dtype: DType) -> Result<Tensor> {
        if self.dtype() == dtype {
            return Ok(self.value());
        }
        let scope = crate::ops::precision::scope();
        let mut slot = lock(&self.inner.copy);
        if let Some(copy) = &*slot
            && copy.value.dtype() == dtype
            && (copy.kept && !self.is_exposed() || scope != 0 && copy.scope == scope)
        {
            return Ok(copy.value.clone());
        }
        let value = self.value().to_dtype(dtype)?;
        *slot = Some(Rounded {
            value: value.clone(),
            scope,
            kept: false,
        });
        Ok(value)
    }

    /// Returns the copy that an optimizer is to change along with the value, if products take one.
    #[cfg(feature = "cuda")]
    pub(crate) fn kept_copy(&self) -> Option<Tensor> {
        lock(&self.inner.copy)
            .as_ref()
            .map(|copy| copy.value.clone())
    }

    /// Records that the value has changed; with `kept`, the copy has changed, too.
    pub(crate) fn value_changed(&self, kept: bool) {
        let mut slot = lock(&self.inner.copy);
        match &mut *slot {
            Some(copy) if kept => copy.kept = true,
            _ => *slot = None,
        }
        #[cfg(target_arch = "x86_64")]
        {
            let mut slot = lock(&self.inner.panels);
            slot.panels = None;
            slot.changes += 1;
        }
    }

    /// Returns the value, a matrix for which [`Param::is_cpu_f32`] holds, as panels: kept until it changes, one kind at a
    /// time, unless somebody outside may change it unseen.
    #[cfg(target_arch = "x86_64")]
    pub(in crate::ops) fn panels(&self, kind: Kind) -> Result<Option<Arc<Panels>>> {
        let changes = {
            let slot = lock(&self.inner.panels);
            match &slot.panels {
                Some(panels) if panels.kind() == kind && !self.is_exposed() => {
                    return Ok(Some(Arc::clone(panels)));
                }
                _ => slot.changes,
            }
        };
        // Without the lock: a thread that waits for its pool may take up other work, which may ask here too.
        let sides = self.shape().dims2()?;
        let made = storage::with(self.own_var(), |value| Panels::new(kind, value, sides))?;
        let made = made.map(Arc::new);
        let mut slot = lock(&self.inner.panels);
        if slot.changes == changes && !self.is_exposed() {
            slot.panels.clone_from(&made);
        }
        Ok(made)
    }

    /// Returns whether code outside may hold the variable, and change it unnoticed.
    #[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]
    pub(in crate::ops) fn is_exposed(&self) -> bool {
        self.inner.exposed.load(Ordering::Relaxed)
    }

    /// Returns the shape of the value.
    pub fn shape(&self) -> &Shape {
        self.inner.var.shape()
    }

    /// Returns the dtype of the value.
    pub fn dtype(&self) -> DType {
        self.inner.var.dtype()
    }

    /// Returns the device that holds the value.
    pub fn device(&self) -> &Device {
        self.inner.var.device()
    }

    /// Returns the number of elements.
    pub fn elem_count(&self) -> usize {
        self.inner.var.elem_count()
    }

    /// Returns whether backward passes compute a gradient for this parameter (default: yes).
    pub fn is_trainable(&self) -> bool {
        self.inner.trainable.load(Ordering::Relaxed)
    }

    /// Freezes (`false`) or thaws (`true`) the parameter.
    pub fn set_trainable(&self, trainable: bool) {
        self.inner.trainable.store(trainable, Ordering::Relaxed);
    }

    /// Returns whether `other` is the same parameter (tied), not merely an equal one.
    pub fn is_same(&self, other: &Param) -> bool {
        Arc::ptr_eq(&self.inner, &other.inner)
    }

    /// Equal for tied parameters, different for others, as long as they live.
    pub(crate) fn id(&self) -> usize {
        Arc::as_ptr(&self.inner) as usize
    }

    /// Returns the gradient accumulated since the last [`Param::zero_grad`], if any backward pass reached this
    /// parameter.
    ///
    /// The tensor never changes afterwards: a later backward pass that finds it still handed out works on a copy.
    pub fn grad(&self) -> Option<Tensor> {
        let mut slot = self.lock_grad();
        if !slot.live {
            return None;
        }
        slot.lent = true;
        slot.buffer.clone()
    }

    /// Forgets the gradient; its memory is kept for the next one.
    pub fn zero_grad(&self) {
        let mut slot = self.lock_grad();
        slot.live = false;
        if slot.lent {
            *slot = GradSlot::default();
        }
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
        match slot.buffer.take() {
            Some(sum) if slot.live => slot.buffer = Some((sum + grad)?.detach()),
            _ => {
                // The caller keeps a handle to the very same storage.
                slot.lent = true;
                slot.buffer = Some(grad.detach());
                slot.live = true;
                drop(slot);
                self.tell_watcher();
                return Ok(());
            }
        }
        slot.lent = false;
        drop(slot);
        self.tell_watcher();
        Ok(())
    }

    /// Returns whether the fused CPU operations may keep this parameter's gradient in place.
    pub(crate) fn is_cpu_f32(&self) -> bool {
        self.dtype() == DType::F32 && self.device().is_cpu()
    }

    /// Calls `update` with the gradient's memory, and whether it must be overwritten (`true`) or added to (`false`).
    ///
    /// Only for parameters for which [`Param::is_cpu_f32`] holds. With `true` the memory's content is arbitrary.
    pub(crate) fn update_grad(&self, update: impl FnOnce(&mut [f32], bool)) -> Result<()> {
        self.update_grad_tensor(|grad, fresh| storage::with_mut(grad, |grad| update(grad, fresh)))
    }

    /// Like [`Param::update_grad`], with the memory as a contiguous f32 tensor on the parameter's device.
    pub(crate) fn update_grad_tensor(
        &self,
        update: impl FnOnce(&Tensor, bool) -> Result<()>,
    ) -> Result<()> {
        let mut slot = self.lock_grad();
        let buffer = match slot.buffer.take() {
            // A gradient that came from elsewhere may be a strided view.
            Some(buffer) if slot.live && buffer.dtype() != DType::F32 => {
                buffer.to_dtype(DType::F32)?.contiguous()?
            }
            Some(buffer) if slot.live && (slot.lent || !buffer.is_contiguous()) => {
                buffer.force_contiguous()?
            }
            Some(buffer) if !slot.lent => buffer,
            _ if self.device().is_cpu() => storage::zeros_huge(self.shape())?,
            _ => Tensor::zeros(self.shape(), DType::F32, self.device())?,
        };
        update(&buffer, !slot.live)?;
        *slot = GradSlot {
            buffer: Some(buffer),
            live: true,
            lent: false,
        };
        drop(slot);
        self.tell_watcher();
        Ok(())
    }

    /// Takes the gradient, if there is one, as a tensor that nothing else holds.
    pub(crate) fn take_grad(&self) -> Result<Option<Tensor>> {
        let mut slot = self.lock_grad();
        if !slot.live {
            return Ok(None);
        }
        let GradSlot { buffer, lent, .. } = std::mem::take(&mut *slot);
        drop(slot);
        let plain = |grad: &Tensor| !lent && grad.is_contiguous() && grad.dtype() == DType::F32;
        match buffer {
            Some(grad) if plain(&grad) => Ok(Some(grad)),
            Some(grad) => Ok(Some(grad.to_dtype(DType::F32)?.force_contiguous()?)),
            None => Ok(None),
        }
    }

    /// Makes `grad`, which must not be shared, the gradient, or adds it to the existing one.
    pub(crate) fn put_grad(&self, grad: Tensor) -> Result<()> {
        let mut slot = self.lock_grad();
        let buffer = match slot.buffer.take() {
            Some(sum) if slot.live => (grad + sum)?.detach(),
            _ => grad,
        };
        *slot = GradSlot {
            buffer: Some(buffer),
            live: true,
            lent: false,
        };
        Ok(())
    }

    /// Calls `change` with the value of a parameter for which [`Param::is_cpu_f32`] holds, to edit it in place.
    pub(crate) fn update_value<T>(&self, change: impl FnOnce(&mut [f32]) -> T) -> Result<T> {
        let done = storage::with_mut(&self.value(), change)?;
        self.value_changed(false);
        Ok(done)
    }

    fn tell_watcher(&self) {
        let watcher = WATCHER.with_borrow(Clone::clone);
        if let Some(watcher) = watcher {
            watcher.added(self);
        }
    }

    /// Passes the gradient of a lookup of `count` rows to a watcher; `false` if there is none.
    pub(in crate::ops) fn give_rows(&self, count: usize, rows: impl FnOnce() -> GradRows) -> bool {
        let watcher = WATCHER.with_borrow(Clone::clone);
        match watcher.filter(|watcher| watcher.wants_rows(self, count)) {
            Some(watcher) => {
                watcher.take_rows(self, rows());
                true
            }
            None => false,
        }
    }

    /// Calls `look` with the gradient, if there is one, without cloning it.
    pub(crate) fn with_grad<T>(
        &self,
        look: impl FnOnce(&Tensor) -> Result<T>,
    ) -> Result<Option<T>> {
        let slot = self.lock_grad();
        match &slot.buffer {
            Some(buffer) if slot.live => look(buffer).map(Some),
            _ => Ok(None),
        }
    }

    /// Moves the gradient that plain candle operations left in `store` into this parameter.
    pub fn absorb(&self, store: &mut GradStore) -> Result<()> {
        match store.remove(&self.inner.var) {
            Some(grad) if self.is_trainable() => self.add_grad(&grad),
            _ => Ok(()),
        }
    }

    fn lock_grad(&self) -> std::sync::MutexGuard<'_, GradSlot> {
        lock(&self.inner.grad)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    // A panic while holding the lock leaves either the old or the new tensor in place, both whole.
    mutex
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
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

/// Receives every gradient that a backward pass on this thread adds.
pub(crate) trait GradWatcher {
    /// Called right after a gradient was set or added to.
    fn added(&self, param: &Param);

    /// Called right before a lookup adds to this many rows of its table's gradient; if it returns `true`, it receives
    /// the rows, and nothing is added.
    fn wants_rows(&self, table: &Param, count: usize) -> bool;

    /// Receives the gradient of a lookup.
    fn take_rows(&self, table: &Param, rows: GradRows);
}

/// The gradient of a lookup with respect to its table.
#[derive(Default)]
pub(crate) struct GradRows {
    /// The rows that were looked up.
    pub(crate) ids: Vec<u32>,
    /// Their gradients, concatenated.
    pub(crate) values: Vec<f32>,
}

thread_local! {
    static NO_GRAD: Cell<bool> = const { Cell::new(false) };
    static INFERENCE: Cell<bool> = const { Cell::new(false) };
    static WATCHER: RefCell<Option<Rc<dyn GradWatcher>>> = const { RefCell::new(None) };
}

/// Does `work`, telling `watcher` of the gradients that it adds on this thread.
pub(crate) fn watch_gradients<T>(watcher: Rc<dyn GradWatcher>, work: impl FnOnce() -> T) -> T {
    /// Forgets the watcher also when `work` panics.
    struct Forget;
    impl Drop for Forget {
        fn drop(&mut self) {
            WATCHER.set(None);
        }
    }
    WATCHER.set(Some(watcher));
    let _forget = Forget;
    work()
}

/// Runs `work` on this thread as one of many calls that read the same weights: weights used in products without a graph
/// are packed once and cached until they change. [`FillMask`](crate::fill_mask::FillMask) runs its model like this.
///
/// For products of 2 to 512 rows, on processors with AVX2 or AVX-512 but no matrix unit. In f32 a copy takes as much memory
/// as its weight, and matrices of a vocabulary are not copied.
///
/// ```
/// use cloze::ops::inference;
/// use cloze::prelude::*;
///
/// let model = MaskedLm::from_pretrained("bundled:tiny_roberta")?;
/// let inputs = ModelInputs::new(vec![5u32; 32], (1, 32))?;
/// let often = inference(|| model.forward(&inputs))?;
/// let once = model.forward(&inputs)?;
/// assert!((often - once)?.abs()?.flatten_all()?.max(0)?.to_scalar::<f32>()? < 1e-4);
/// # Ok::<(), cloze::Error>(())
/// ```
pub fn inference<T>(work: impl FnOnce() -> T) -> T {
    /// Restores the former state also when `work` panics.
    struct Restore(bool);
    impl Drop for Restore {
        fn drop(&mut self) {
            INFERENCE.set(self.0);
        }
    }
    let _restore = Restore(INFERENCE.replace(true));
    work()
}

/// Returns whether this thread is in [`inference`].
pub(crate) fn in_inference() -> bool {
    INFERENCE.get()
}

/// Runs `work` without recording a graph: its results can't be differentiated, and its intermediate results are freed
/// at once. The counterpart of PyTorch's `torch.no_grad()`, for the current thread.
///
/// ```
/// use cloze::prelude::*;
///
/// # let tokenizer = Tokenizer::train_bpe(["a spiral galaxy"], 300)?;
/// # let config = Config::new("roberta").set("vocab_size", tokenizer.len()).set("hidden_size", 16)
/// #     .set("num_hidden_layers", 1).set("num_attention_heads", 2).set("intermediate_size", 32);
/// # let model = MaskedLm::from_config(&config, 42)?;
/// let inputs = cloze::model::ModelInputs::new(vec![0, 7, 8, 2], (1, 4))?;
/// let logits = no_grad(|| model.forward(&inputs))?;
/// assert!(!logits.track_op());
/// # Ok::<(), cloze::Error>(())
/// ```
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
