//! How a fused operation takes its place in candle's graph.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};

#[cfg(feature = "cuda")]
use candle_core::CudaStorage;
use candle_core::{
    CpuStorage, CustomOp1, CustomOp2, CustomOp3, DType, Device, Layout, Shape, Tensor, TensorId,
};

use crate::Result;
use crate::ops::Param;
use crate::ops::graph::storage;

/// The gradients of an operation's arguments, in their order; `None`, or nothing at the end, where there is none to give.
///
/// An argument that is tracked and no variable must get one: candle's own walk counts on it.
pub(crate) type Grads = Vec<Option<Tensor>>;

type Backward = dyn Fn(&[&Tensor], &Tensor, &Tensor) -> Result<Grads> + Send + Sync;

/// Returns the tensor that puts an operation with these parameters into the graph: of the first that wants a gradient,
/// or else of any. Gradients of parameters are not returned through the graph, so one of them is enough.
pub(crate) fn anchor<'a>(first: &Param, others: impl IntoIterator<Item = &'a Param>) -> Tensor {
    let tensor = first.tensor();
    if tensor.track_op() {
        return tensor;
    }
    others
        .into_iter()
        .map(Param::tensor)
        .find(Tensor::track_op)
        .unwrap_or(tensor)
}

/// Returns whether the graph records operations on any of these tensors.
pub(crate) fn tracked(args: &[&Tensor]) -> bool {
    args.iter().any(|arg| arg.track_op())
}

/// The elements of a result, on the device that computed them.
pub(crate) enum Data {
    Cpu(Vec<f32>),
    #[cfg(feature = "cuda")]
    Cuda(CudaStorage),
}

impl From<Vec<f32>> for Data {
    fn from(data: Vec<f32>) -> Self {
        Self::Cpu(data)
    }
}

#[cfg(feature = "cuda")]
impl From<CudaStorage> for Data {
    fn from(data: CudaStorage) -> Self {
        Self::Cuda(data)
    }
}

impl Data {
    /// Returns elements that were worked out here, on `device`.
    pub(crate) fn on(values: Vec<f32>, device: &Device) -> Result<Self> {
        #[cfg(feature = "cuda")]
        if device.is_cuda() {
            let count = values.len();
            let there = Tensor::from_vec(values, count, device)?;
            return crate::ops::cuda::copied(&there).map(Self::Cuda);
        }
        let _ = device;
        Ok(Self::Cpu(values))
    }

    /// Returns a copy of the elements of a contiguous tensor.
    pub(crate) fn copied(tensor: &Tensor) -> Result<Self> {
        #[cfg(feature = "cuda")]
        if tensor.device().is_cuda() {
            return crate::ops::cuda::copied(tensor).map(Self::Cuda);
        }
        storage::with(tensor, <[f32]>::to_vec).map(Self::Cpu)
    }

    /// Returns the tensor over it, outside of any graph.
    fn into_tensor(self, shape: Shape) -> Result<Tensor> {
        Ok(match self {
            Self::Cpu(data) => Tensor::from_vec(data, shape, &Device::Cpu)?,
            #[cfg(feature = "cuda")]
            Self::Cuda(data) => {
                let none = candle_core::op::BackpropOp::none();
                Tensor::from_storage(candle_core::Storage::Cuda(data), shape, none, false)
            }
        })
    }
}

/// Returns the tensor of `shape` over `data`, in the graph as a function of `args` (one or more, on the same device).
///
/// `backward(args, result, gradient of the result)` gives the gradients of the arguments; the gradient that it is given
/// is contiguous. It is kept only if an argument is tracked.
pub(crate) fn record(
    name: &'static str,
    args: &[&Tensor],
    data: impl Into<Data>,
    shape: impl Into<Shape>,
    backward: impl Fn(&[&Tensor], &Tensor, &Tensor) -> Result<Grads> + Send + Sync + 'static,
) -> Result<Tensor> {
    let (data, shape) = (data.into(), shape.into());
    if !tracked(args) {
        return data.into_tensor(shape);
    }
    let node = Arc::new(Node {
        name,
        args: args.iter().map(|&arg| arg.clone()).collect(),
        backward: Box::new(backward),
        known: Mutex::default(),
        parked: Mutex::default(),
    });
    let result = link(&node, 0, (data, shape))?;
    node.register(&result, Entry::Operation(Arc::downgrade(&node)));
    Ok(result)
}

/// Returns `view`, which candle formed of the contiguous `x` without copying, in the graph; `backward` takes its
/// gradient (contiguous) to that of `x`.
///
/// A view of a variable is copied, since a view is known as long as the graph of what it looks at, which no variable has.
pub(crate) fn view(
    name: &'static str,
    x: &Tensor,
    view: Tensor,
    backward: impl Fn(&Tensor) -> Result<Tensor> + Send + Sync + 'static,
) -> Result<Tensor> {
    let floats = storage::is_cpu_f32(x) || x.device().is_cuda();
    if !view.track_op() || view.id() == x.id() {
        return Ok(view);
    }
    if x.is_variable() && floats {
        let copy = Data::copied(&view)?;
        return record(name, &[x], copy, view.shape(), move |_, _, grad| {
            Ok(vec![Some(backward(grad)?)])
        });
    }
    let root = match lock(entries()).get(&x.id()) {
        Some(Entry::Operation(node)) => node.upgrade(),
        Some(Entry::View(view)) => view.root.upgrade(),
        // The work of candle's own operations: the backward pass will be candle's too.
        Some(Entry::Helper) | None => None,
    };
    if let Some(root) = root {
        let entry = View {
            of: x.id(),
            root: Arc::downgrade(&root),
            backward: Box::new(backward),
        };
        root.register(&view, Entry::View(Arc::new(entry)));
    }
    Ok(view)
}

/// The origin of a result.
struct Node {
    name: &'static str,
    args: Vec<Tensor>,
    backward: Box<Backward>,
    /// The tensors known by this node, which live as long: its result, helpers, and the result's views.
    known: Mutex<Vec<TensorId>>,
    /// During candle's own walk, the gradients that wait for a helper to hand them on.
    parked: Mutex<Grads>,
}

/// From the gradient of a view to that of what is viewed.
type ViewBackward = dyn Fn(&Tensor) -> Result<Tensor> + Send + Sync;

/// A tensor that shares the memory of another.
struct View {
    of: TensorId,
    /// The node at the end of the views.
    root: Weak<Node>,
    backward: Box<ViewBackward>,
}

/// The role of a tensor of a graph in our backward pass.
enum Entry {
    Operation(Weak<Node>),
    View(Arc<View>),
    /// It stands for some arguments of an operation in candle's graph, and is nothing to us.
    Helper,
}

impl Node {
    fn register(&self, tensor: &Tensor, entry: Entry) {
        lock(&self.known).push(tensor.id());
        lock(entries()).insert(tensor.id(), entry);
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        let known = std::mem::take(&mut *lock(&self.known));
        let mut entries = lock(entries());
        let removed: Vec<_> = known.iter().map(|id| entries.remove(id)).collect();
        // What they hold may end other nodes, which come here too.
        drop(entries);
        drop(removed);
    }
}

/// Returns the tensors of all graphs that are alive.
fn entries() -> &'static Mutex<HashMap<TensorId, Entry>> {
    static ENTRIES: OnceLock<Mutex<HashMap<TensorId, Entry>>> = OnceLock::new();
    ENTRIES.get_or_init(Mutex::default)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What is guarded here is whole at every moment.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Adds two gradients.
type Add = fn(&Tensor, &Tensor) -> Result<Tensor>;

/// Returns the backward pass from `loss` through a graph that was recorded here alone; `None`, with nothing done, if
/// another operation takes part.
///
/// Does the same as candle's own backward pass, but without filling a tensor of zeros and adding to it for every
/// argument of every operation: the first gradient is moved into its place. The remaining gradients at the end are
/// those of variables.
///
/// `add` adds up the gradients of a tensor that several operations read.
pub(crate) fn backward(loss: &Tensor, add: Add) -> Result<Option<HashMap<TensorId, Tensor>>> {
    let Some(steps) = steps(loss) else {
        return Ok(None);
    };
    let mut grads = HashMap::from([(loss.id(), loss.ones_like()?.contiguous()?)]);
    for (result, step) in steps {
        let Some(grad) = grads.remove(&result.id()) else {
            continue;
        };
        let grad = grad.contiguous()?;
        match step {
            Step::View(view) => add_to(&mut grads, add, view.of, (view.backward)(&grad)?)?,
            Step::Operation(node) => {
                let args: Vec<&Tensor> = node.args.iter().collect();
                let found = (node.backward)(&args, result, &grad)?;
                drop(grad);
                for (arg, grad) in node.args.iter().zip(found) {
                    if let Some(grad) = grad {
                        add_to(&mut grads, add, arg.id(), grad)?;
                    }
                }
            }
        }
    }
    Ok(Some(grads))
}

/// The step of a backward pass for one tensor.
enum Step {
    Operation(Arc<Node>),
    View(Arc<View>),
}

/// Returns the tensors behind `loss`, each after all that were computed from it; `None` if one of them was not recorded
/// here.
fn steps(loss: &Tensor) -> Option<Vec<(&Tensor, Step)>> {
    let entries = lock(entries());
    let mut steps = Vec::new();
    for tensor in loss.sorted_nodes() {
        if tensor.is_variable() {
            continue;
        }
        let step = match entries.get(&tensor.id())? {
            Entry::Operation(node) => Step::Operation(node.upgrade()?),
            Entry::View(view) => Step::View(Arc::clone(view)),
            Entry::Helper => continue,
        };
        steps.push((tensor, step));
    }
    Some(steps)
}

fn add_to(
    grads: &mut HashMap<TensorId, Tensor>,
    add: Add,
    id: TensorId,
    grad: Tensor,
) -> Result<()> {
    let total = match grads.remove(&id) {
        Some(old) => add(&old, &grad)?,
        None => grad,
    };
    grads.insert(id, total);
    Ok(())
}

impl Node {
    fn run(&self, res: &Tensor, grad: &Tensor) -> candle_core::Result<Grads> {
        let args: Vec<&Tensor> = self.args.iter().collect();
        let grad = grad.contiguous()?;
        (self.backward)(&args, res, &grad).map_err(|error| match error {
            crate::Error::Tensor(error) | crate::Error::DeviceMemory { source: error } => error,
            other => candle_core::Error::Msg(format!("{}: {other}", self.name)),
        })
    }
}

/// Puts `result` into candle's graph as a function of the node's arguments from `first` on. That graph knows operations of
/// up to three arguments: where there are more, a helper stands for all but two of them.
fn link(node: &Arc<Node>, first: usize, result: (Data, Shape)) -> Result<Tensor> {
    let op = Link {
        result: Mutex::new(Some(result)),
        node: Arc::clone(node),
        first,
    };
    Ok(match &node.args[first..] {
        [] => unreachable!("an operation that is tracked has arguments"),
        [a] => a.apply_op1(op)?,
        [a, b] => a.apply_op2(b, op)?,
        [a, b, c] => a.apply_op3(b, c, op)?,
        [a, b, ..] => {
            let number = Data::copied(&Tensor::zeros((), DType::F32, a.device())?)?;
            let rest = link(node, first + 2, (number, ().into()))?;
            node.register(&rest, Entry::Helper);
            a.apply_op3(b, &rest, op)?
        }
    })
}

/// What candle's graph sees of an operation in one place. Its result was computed beforehand.
struct Link {
    result: Mutex<Option<(Data, Shape)>>,
    node: Arc<Node>,
    /// The first of the arguments that are seen here; beyond zero, it is a helper.
    first: usize,
}

impl Link {
    fn take(&self) -> candle_core::Result<(Data, Shape)> {
        lock(&self.result)
            .take()
            .ok_or_else(|| candle_core::Error::Msg(format!("{} was applied twice", self.node.name)))
    }

    fn cpu(&self) -> candle_core::Result<(CpuStorage, Shape)> {
        match self.take()? {
            (Data::Cpu(data), shape) => Ok((CpuStorage::F32(data), shape)),
            #[cfg(feature = "cuda")]
            (Data::Cuda(_), _) => Err(self.misplaced()),
        }
    }

    #[cfg(feature = "cuda")]
    fn cuda(&self) -> candle_core::Result<(CudaStorage, Shape)> {
        match self.take()? {
            (Data::Cuda(data), shape) => Ok((data, shape)),
            (Data::Cpu(_), _) => Err(self.misplaced()),
        }
    }

    #[cfg(feature = "cuda")]
    fn misplaced(&self) -> candle_core::Error {
        let name = self.node.name;
        candle_core::Error::Msg(format!(
            "{name}: the result is on a different device than its arguments"
        ))
    }

    /// Returns the gradients of the `N` arguments that are seen here. A helper gets a zero: only that it is reached
    /// matters.
    fn backward<const N: usize>(
        &self,
        res: &Tensor,
        grad: &Tensor,
    ) -> candle_core::Result<[Option<Tensor>; N]> {
        let count = self.node.args.len();
        if self.first == 0 {
            let mut grads = self.node.run(res, grad)?;
            grads.resize(count, None);
            *lock(&self.node.parked) = grads;
        }
        let has_helper = count - self.first > N;
        let helper = match has_helper {
            true => Some(Tensor::zeros((), DType::F32, res.device())?),
            false => None,
        };
        let mut parked = lock(&self.node.parked);
        Ok(std::array::from_fn(|i| match has_helper && i + 1 == N {
            true => helper.clone(),
            false => parked[self.first + i].take(),
        }))
    }
}

impl CustomOp1 for Link {
    fn name(&self) -> &'static str {
        self.node.name
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        self.cpu()
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(&self, _: &CudaStorage, _: &Layout) -> candle_core::Result<(CudaStorage, Shape)> {
        self.cuda()
    }

    fn bwd(&self, _: &Tensor, res: &Tensor, grad: &Tensor) -> candle_core::Result<Option<Tensor>> {
        let [da] = self.backward(res, grad)?;
        Ok(da)
    }
}

impl CustomOp2 for Link {
    fn name(&self) -> &'static str {
        self.node.name
    }

    fn cpu_fwd(
        &self,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        self.cpu()
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        _: &CudaStorage,
        _: &Layout,
        _: &CudaStorage,
        _: &Layout,
    ) -> candle_core::Result<(CudaStorage, Shape)> {
        self.cuda()
    }

    fn bwd(
        &self,
        _: &Tensor,
        _: &Tensor,
        res: &Tensor,
        grad: &Tensor,
    ) -> candle_core::Result<(Option<Tensor>, Option<Tensor>)> {
        let [da, db] = self.backward(res, grad)?;
        Ok((da, db))
    }
}

impl CustomOp3 for Link {
    fn name(&self) -> &'static str {
        self.node.name
    }

    fn cpu_fwd(
        &self,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        self.cpu()
    }

    #[cfg(feature = "cuda")]
    fn cuda_fwd(
        &self,
        _: &CudaStorage,
        _: &Layout,
        _: &CudaStorage,
        _: &Layout,
        _: &CudaStorage,
        _: &Layout,
    ) -> candle_core::Result<(CudaStorage, Shape)> {
        self.cuda()
    }

    fn bwd(
        &self,
        _: &Tensor,
        _: &Tensor,
        _: &Tensor,
        res: &Tensor,
        grad: &Tensor,
    ) -> candle_core::Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let [da, db, dc] = self.backward(res, grad)?;
        Ok((da, db, dc))
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Var;

    use super::*;
    use crate::ops::{add, concat, narrow, permute, reshape, scale};

    fn variable() -> Tensor {
        let values = Tensor::arange(0f32, 24.0, &Device::Cpu).unwrap();
        let values = values.reshape((4, 6)).unwrap();
        Var::from_tensor(&values).unwrap().into_inner()
    }

    fn sum(x: &Tensor) -> Tensor {
        let flat = reshape(x, (1, ())).unwrap();
        let ones = flat.ones_like().unwrap();
        crate::ops::matmul(&flat, &ones, false, true).unwrap()
    }

    #[test]
    fn our_backward_pass_handles_views_and_any_number_of_arguments() {
        let x = variable();
        let parts: Vec<Tensor> = (0..6)
            .map(|i| {
                let y = scale(&x, f64::from(i)).unwrap();
                let y = permute(&reshape(&y, (6, 4)).unwrap(), &[1, 0]).unwrap();
                narrow(&narrow(&y, 0, 1, 2).unwrap(), 1, 3, 2).unwrap()
            })
            .collect();
        let all = concat(&parts.iter().collect::<Vec<_>>(), 0).unwrap();
        let loss = add(&sum(&all), &sum(&x)).unwrap();
        let own = backward(&loss, add).unwrap().unwrap();
        let candles = loss.backward().unwrap();
        let flat = |t: &Tensor| t.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let own = flat(&own[&x.id()]);
        assert_eq!(own, flat(candles.get(&x).unwrap()));
        // Four elements take part in all of the parts, whose factors add up to 15.
        assert_eq!(own.iter().filter(|&&g| g == 16.0).count(), 4);
        assert_eq!(own.iter().filter(|&&g| g == 1.0).count(), 20);
    }

    #[test]
    fn a_foreign_operation_falls_back_to_candles_backward_pass() {
        let x = variable();
        let y = (scale(&x, 2.0).unwrap() + 1.0).unwrap();
        assert!(backward(&sum(&y), add).unwrap().is_none());
        let view = reshape(&y, (2, 12)).unwrap();
        assert!(backward(&sum(&view), add).unwrap().is_none());
    }

    #[test]
    fn a_dropped_graph_leaves_no_records() {
        let x = variable();
        let y = scale(&x, 2.0).unwrap();
        let view = reshape(&y, (8, 3)).unwrap();
        let again = narrow(&view, 0, 2, 3).unwrap();
        let joined = concat(&[&y, &y, &y, &y, &y], 0).unwrap();
        let ids = [y.id(), view.id(), again.id(), joined.id()];
        let helpers = joined.sorted_nodes().into_iter().map(Tensor::id);
        let ids: Vec<TensorId> = helpers.chain(ids).filter(|&id| id != x.id()).collect();
        assert_eq!(ids.len(), 3 + 4);
        let known = || {
            let entries = lock(entries());
            ids.iter().filter(|id| entries.contains_key(id)).count()
        };
        assert_eq!(known(), ids.len());
        drop((y, view, joined));
        assert!(known() > 0, "a view keeps what it looks at");
        drop(again);
        assert_eq!(known(), 0);
    }
}
