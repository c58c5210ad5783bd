//! The inputs that only some families know: declared once, carried from a dataset's columns to the model.

use candle_core::{DType, Device, Tensor};

use crate::{Error, Result};

/// Describes an additional input.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Input {
    /// Its name, as `transformers` has it and as a dataset's column is called.
    pub name: &'static str,
    /// How many values an example has.
    pub per: Per,
    /// The numbers of each place: `&[]` for one, `&[4]` for a box.
    pub trailing: &'static [usize],
    /// The value of padding.
    pub padding: i64,
    /// What the masking collator does to it at masked tokens.
    pub masked: Masked,
}

/// The unit that an input has one value (or one list of `trailing` values) for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Per {
    /// Each token: (batch, seq, ...).
    Token,
    /// Each example: (batch, ...).
    Example,
    /// Each position of a sequence of its own, padded to the longest of the batch: (batch, n, ...).
    Place,
}

/// What happens to an input where its token is masked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Masked {
    /// It is kept: a box tells where the token is on the page, not what it is.
    Kept,
    /// It would give the token away, and takes the value that it has at the mask token.
    Hidden,
}

impl Input {
    /// Returns one number for each token, 0 for padding, kept where the token is masked.
    pub const fn per_token(name: &'static str) -> Self {
        Self {
            name,
            per: Per::Token,
            trailing: &[],
            padding: 0,
            masked: Masked::Kept,
        }
    }
}

/// The values of one input, of an example or of a batch.
#[derive(Clone, Debug, PartialEq)]
pub struct Column {
    /// The values, row-major.
    pub values: Values,
    /// Their shape; of a batch it begins with the number of examples.
    pub shape: Vec<usize>,
}

/// Whole numbers or others.
#[derive(Clone, Debug, PartialEq)]
pub enum Values {
    /// Ids, boxes, masks.
    Ids(Vec<i64>),
    /// Waveforms.
    Floats(Vec<f32>),
}

impl Column {
    /// Returns a column of whole numbers of the given shape.
    ///
    /// # Errors
    /// When their number is not the shape's.
    pub fn ids(values: Vec<i64>, shape: impl Into<Vec<usize>>) -> Result<Self> {
        Self::new(Values::Ids(values), shape.into())
    }

    /// Numbers of the given shape.
    ///
    /// # Errors
    /// When their number is not the shape's.
    pub fn floats(values: Vec<f32>, shape: impl Into<Vec<usize>>) -> Result<Self> {
        Self::new(Values::Floats(values), shape.into())
    }

    fn new(values: Values, shape: Vec<usize>) -> Result<Self> {
        let column = Self { values, shape };
        if column.len() == column.shape.iter().product::<usize>() {
            return Ok(column);
        }
        Err(Error::argument(
            "column",
            format!(
                "{} values do not have the shape {:?}",
                column.len(),
                column.shape
            ),
        ))
    }

    /// Returns the number of values.
    pub fn len(&self) -> usize {
        match &self.values {
            Values::Ids(values) => values.len(),
            Values::Floats(values) => values.len(),
        }
    }

    /// Returns whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns the column `name` as whole numbers.
    ///
    /// # Errors
    /// When they are not whole.
    pub fn as_ids(&self, name: &str) -> Result<&[i64]> {
        match &self.values {
            Values::Ids(values) => Ok(values),
            Values::Floats(_) => Err(Error::Dataset(format!(
                "the column {name:?} must contain whole numbers"
            ))),
        }
    }

    /// Returns the column `name` as numbers of any kind.
    ///
    /// # Errors
    /// When they are whole.
    pub fn as_floats(&self, name: &str) -> Result<&[f32]> {
        match &self.values {
            Values::Floats(values) => Ok(values),
            Values::Ids(_) => Err(Error::Dataset(format!(
                "the column {name:?} must contain floating-point numbers"
            ))),
        }
    }

    /// Returns a tensor's values on the host: those of integer dtypes as ids.
    ///
    /// # Errors
    /// When they can't be read from their device.
    pub fn from_tensor(tensor: &Tensor) -> Result<Self> {
        let shape = tensor.dims().to_vec();
        let flat = tensor.to_device(&Device::Cpu)?.flatten_all()?;
        if flat.dtype().is_int() {
            Self::ids(flat.to_dtype(DType::I64)?.to_vec1()?, shape)
        } else {
            Self::floats(flat.to_dtype(DType::F32)?.to_vec1()?, shape)
        }
    }
}
