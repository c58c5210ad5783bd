//! The element-wise functions between a model's linear layers, by the names that `config.json` uses.

use candle_core::Tensor;

use crate::{Error, Result};

/// An activation function (`hidden_act` in a model's config).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Activation {
    /// x·Φ(x) with the exact error function: `"gelu"`.
    Gelu,
    /// The tanh approximation of GELU: `"gelu_new"`, `"gelu_pytorch_tanh"`, `"gelu_fast"`.
    GeluTanh,
    /// max(x, 0): `"relu"`.
    Relu,
    /// x·sigmoid(x): `"silu"`, `"swish"`.
    Silu,
    /// tanh(x): `"tanh"`.
    Tanh,
    /// x itself: `"linear"`.
    Linear,
}

impl Activation {
    /// The activation that a config calls `name`.
    pub fn from_name(name: &str) -> Result<Self> {
        Ok(match name {
            "gelu" | "gelu_python" => Self::Gelu,
            "gelu_new" | "gelu_pytorch_tanh" | "gelu_fast" | "gelu_accurate" => Self::GeluTanh,
            "relu" => Self::Relu,
            "silu" | "swish" => Self::Silu,
            "tanh" => Self::Tanh,
            "linear" => Self::Linear,
            other => {
                return Err(Error::Config(format!(
                    "unknown activation {other:?}; known are gelu, gelu_new, gelu_pytorch_tanh, gelu_fast, relu, silu, swish, tanh, linear"
                )));
            }
        })
    }

    /// Applies the function to every element.
    pub fn apply(self, x: &Tensor) -> Result<Tensor> {
        Ok(match self {
            Self::Gelu => x.gelu_erf()?,
            Self::GeluTanh => x.gelu()?,
            Self::Relu => x.relu()?,
            Self::Silu => x.silu()?,
            Self::Tanh => x.tanh()?,
            Self::Linear => x.clone(),
        })
    }
}
