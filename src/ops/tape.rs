//! How a fused operation takes its place in candle's graph.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};

#[cfg(feature = "cuda")]
use candle_core::CudaStorage;
use candle_core::{CpuStorage, CustomOp1, CustomOp2, CustomOp3, Layout, Shape, Tensor, TensorId};

use super::{Param, storage};
use crate::Result;

/// The gradients of up to three arguments; `None` where there is none to give.
pub(crate) type Grads = [Option<Tensor>; 3];

type Backward = dyn Fn(&[&Tensor], &Tensor, &Tensor) -> Result<Grads> + Send + Sync;

/// The tensor that puts an operation with these parameters into the graph: of the first that wants a gradient, or else
/// of any. Gradients of parameters are not returned through the graph, so one of them is enough.
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

/// Whether the graph records operations on any of these tensors.
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
    /// A copy of the elements of a contiguous tensor.
    pub(crate) fn copied(tensor: &Tensor) -> Result<Self> {
        #[cfg(feature = "cuda")]
        if tensor.device().is_cuda() {
            return super::cuda::copied(tensor).map(Self::Cuda);
        }
        storage::with(tensor, <[f32]>::to_vec).map(Self::Cpu)
    }

    /// The tensor over it, outside of any graph.
    fn into_tensor(self, shape: Shape) -> Result<Tensor> {
        Ok(match self {
            Self::Cpu(data) => Tensor::from_vec(data, shape, &candle_core::Device::Cpu)?,
            #[cfg(feature = "cuda")]
            Self::Cuda(data) => {
                let none = candle_core::op::BackpropOp::none();
                Tensor::from_storage(candle_core::Storage::Cuda(data), shape, none, false)
            }
        })
    }
}

/// The tensor of `shape` over `data`, in the graph as a function of one to three `args` on the same device.
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
        id: OnceLock::new(),
    });
    let op = Recorded {
        result: Mutex::new(Some((data, shape))),
        node: Arc::clone(&node),
    };
    let result = match args {
        [a] => a.apply_op1(op)?,
        [a, b] => a.apply_op2(b, op)?,
        [a, b, c] => a.apply_op3(b, c, op)?,
        _ => unreachable!("candle's graph knows one to three arguments"),
    };
    let id = *node.id.get_or_init(|| result.id());
    lock(nodes()).insert(id, Arc::downgrade(&node));
    Ok(result)
}

/// Where a result came from.
struct Node {
    name: &'static str,
    args: Vec<Tensor>,
    backward: Box<Backward>,
    /// The result's.
    id: OnceLock<TensorId>,
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Some(id) = self.id.get() {
            lock(nodes()).remove(id);
        }
    }
}

/// The nodes of all graphs that are alive.
fn nodes() -> &'static Mutex<HashMap<TensorId, Weak<Node>>> {
    static NODES: OnceLock<Mutex<HashMap<TensorId, Weak<Node>>>> = OnceLock::new();
    NODES.get_or_init(Mutex::default)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What is guarded here is whole at every moment.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The backward pass from `loss` through a graph that was recorded here alone; `None`, with nothing done, if another
/// operation takes part.
///
/// Does what candle's own pass does, but without filling a tensor of zeros and adding to it for every argument of every
/// operation: the first gradient is moved into its place. What is left at the end are the gradients of variables.
pub(crate) fn backward(loss: &Tensor) -> Result<Option<HashMap<TensorId, Tensor>>> {
    let mut order = Vec::new();
    {
        let nodes = lock(nodes());
        for tensor in loss.sorted_nodes() {
            if tensor.is_variable() {
                continue;
            }
            let Some(node) = nodes.get(&tensor.id()).and_then(Weak::upgrade) else {
                return Ok(None);
            };
            order.push((tensor, node));
        }
    }
    let mut grads = HashMap::from([(loss.id(), loss.ones_like()?.contiguous()?)]);
    for (result, node) in order {
        let Some(grad) = grads.remove(&result.id()) else {
            continue;
        };
        let args: Vec<&Tensor> = node.args.iter().collect();
        let found = (node.backward)(&args, result, &grad.contiguous()?)?;
        drop(grad);
        for (arg, grad) in node.args.iter().zip(found) {
            let Some(grad) = grad else { continue };
            let total = match grads.remove(&arg.id()) {
                Some(old) => super::add(&old, &grad)?,
                None => grad,
            };
            grads.insert(arg.id(), total);
        }
    }
    Ok(Some(grads))
}

impl Node {
    fn run(&self, args: &[&Tensor], res: &Tensor, grad: &Tensor) -> candle_core::Result<Grads> {
        let grad = grad.contiguous()?;
        (self.backward)(args, res, &grad).map_err(|error| match error {
            crate::Error::Tensor(error) | crate::Error::DeviceMemory { source: error } => error,
            other => candle_core::Error::Msg(format!("{}: {other}", self.name)),
        })
    }
}

/// An operation whose result was computed beforehand.
struct Recorded {
    result: Mutex<Option<(Data, Shape)>>,
    node: Arc<Node>,
}

impl Recorded {
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
            "{name}: the result lies on another device than its arguments"
        ))
    }
}

impl CustomOp1 for Recorded {
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

    fn bwd(&self, a: &Tensor, res: &Tensor, grad: &Tensor) -> candle_core::Result<Option<Tensor>> {
        let [da, ..] = self.node.run(&[a], res, grad)?;
        Ok(da)
    }
}

impl CustomOp2 for Recorded {
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
        a: &Tensor,
        b: &Tensor,
        res: &Tensor,
        grad: &Tensor,
    ) -> candle_core::Result<(Option<Tensor>, Option<Tensor>)> {
        let [da, db, _] = self.node.run(&[a, b], res, grad)?;
        Ok((da, db))
    }
}

impl CustomOp3 for Recorded {
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
        a: &Tensor,
        b: &Tensor,
        c: &Tensor,
        res: &Tensor,
        grad: &Tensor,
    ) -> candle_core::Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let [da, db, dc] = self.node.run(&[a, b, c], res, grad)?;
        Ok((da, db, dc))
    }
}
