//! How a fused operation takes its place in candle's graph.

use std::sync::Mutex;

use candle_core::{CpuStorage, CustomOp1, CustomOp2, CustomOp3, Layout, Shape, Tensor};

use super::Param;
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

/// The tensor of `shape` over `data`, in the graph as a function of one to three `args`.
///
/// `backward(args, result, gradient of the result)` gives the gradients of the arguments; the gradient that it is given
/// is contiguous. It is kept only if an argument is tracked.
pub(crate) fn record(
    name: &'static str,
    args: &[&Tensor],
    data: Vec<f32>,
    shape: impl Into<Shape>,
    backward: impl Fn(&[&Tensor], &Tensor, &Tensor) -> Result<Grads> + Send + Sync + 'static,
) -> Result<Tensor> {
    let shape = shape.into();
    if !tracked(args) {
        return Ok(Tensor::from_vec(data, shape, args[0].device())?);
    }
    let op = Recorded {
        name,
        result: Mutex::new(Some((CpuStorage::F32(data), shape))),
        backward: Box::new(backward),
    };
    Ok(match args {
        [a] => a.apply_op1(op)?,
        [a, b] => a.apply_op2(b, op)?,
        [a, b, c] => a.apply_op3(b, c, op)?,
        _ => unreachable!("candle's graph knows one to three arguments"),
    })
}

/// An operation whose result was computed beforehand.
struct Recorded {
    name: &'static str,
    result: Mutex<Option<(CpuStorage, Shape)>>,
    backward: Box<Backward>,
}

impl Recorded {
    fn take(&self) -> candle_core::Result<(CpuStorage, Shape)> {
        let mut result = self
            .result
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        result
            .take()
            .ok_or_else(|| candle_core::Error::Msg(format!("{} was applied twice", self.name)))
    }

    fn run(&self, args: &[&Tensor], res: &Tensor, grad: &Tensor) -> candle_core::Result<Grads> {
        let grad = grad.contiguous()?;
        (self.backward)(args, res, &grad).map_err(|error| match error {
            crate::Error::Tensor(error) => error,
            other => candle_core::Error::Msg(format!("{}: {other}", self.name)),
        })
    }
}

impl CustomOp1 for Recorded {
    fn name(&self) -> &'static str {
        self.name
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        self.take()
    }

    fn bwd(&self, a: &Tensor, res: &Tensor, grad: &Tensor) -> candle_core::Result<Option<Tensor>> {
        let [da, ..] = self.run(&[a], res, grad)?;
        Ok(da)
    }
}

impl CustomOp2 for Recorded {
    fn name(&self) -> &'static str {
        self.name
    }

    fn cpu_fwd(
        &self,
        _: &CpuStorage,
        _: &Layout,
        _: &CpuStorage,
        _: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        self.take()
    }

    fn bwd(
        &self,
        a: &Tensor,
        b: &Tensor,
        res: &Tensor,
        grad: &Tensor,
    ) -> candle_core::Result<(Option<Tensor>, Option<Tensor>)> {
        let [da, db, _] = self.run(&[a, b], res, grad)?;
        Ok((da, db))
    }
}

impl CustomOp3 for Recorded {
    fn name(&self) -> &'static str {
        self.name
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
        self.take()
    }

    fn bwd(
        &self,
        a: &Tensor,
        b: &Tensor,
        c: &Tensor,
        res: &Tensor,
        grad: &Tensor,
    ) -> candle_core::Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let [da, db, dc] = self.run(&[a, b, c], res, grad)?;
        Ok((da, db, dc))
    }
}
