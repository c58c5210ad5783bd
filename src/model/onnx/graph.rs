//! A graph of ONNX operators under construction.

use std::collections::{BTreeMap, BTreeSet};

use candle_core::{DType, Device, Tensor};
use prost::Message;

use super::proto::{
    Attribute, BOOL, Constant, Dim, FLOAT, GraphMessage, INT64, KIND_FLOAT, KIND_INT, KIND_INTS,
    Model, Node, OperatorSet, Shape, TensorType, Type, ValueInfo,
};
use crate::ops::Param;
use crate::{Error, Result};

/// The version of the operators: the first with `LayerNormalization`.
const OPSET: i64 = 17;

/// The version of the file format that came with it.
const IR_VERSION: i64 = 8;

/// The lowest finite f32: the score of keys that attention must not see.
const LOWEST: f32 = f32::MIN;

/// A tensor of the graph, by its name.
#[derive(Clone, Debug)]
pub struct Value(String);

/// A setting of an operator.
#[derive(Clone, Debug)]
pub enum Setting<'a> {
    /// A whole number.
    Int(i64),
    /// Several.
    Ints(&'a [i64]),
    /// A float.
    Float(f64),
}

/// An ONNX graph, to which a model's parts add themselves in order.
///
/// It has the inputs that `transformers`' exporter gives a model: `input_ids`, `attention_mask` and, where the model reads
/// it, `token_type_ids`, all of i64 and (batch, sequence). Both sizes are free.
#[derive(Debug)]
pub struct Graph {
    message: GraphMessage,
    known: BTreeSet<String>,
    count: usize,
    positions: Option<Value>,
    /// Masks that layers share, by their windows.
    masks: BTreeMap<Option<[usize; 2]>, Value>,
    /// Cosines and sines that layers share, by the bits of the speeds.
    pub(super) turns: BTreeMap<Vec<u32>, [Value; 2]>,
}

impl Graph {
    pub(super) fn new() -> Self {
        let mut graph = Self {
            message: GraphMessage {
                name: Some("masked_lm".to_owned()),
                ..GraphMessage::default()
            },
            known: BTreeSet::new(),
            count: 0,
            positions: None,
            masks: BTreeMap::new(),
            turns: BTreeMap::new(),
        };
        graph.input("input_ids");
        graph.input("attention_mask");
        graph
    }

    /// Returns an input of i64, (batch, sequence), which the graph has from now on.
    pub fn input(&mut self, name: &str) -> Value {
        if self.known.insert(name.to_owned()) {
            let dims = vec![free("batch_size"), free("sequence_length")];
            self.message.input.push(info(name, INT64, dims));
        }
        Value(name.to_owned())
    }

    /// Adds an operation with one output and returns that.
    pub fn node(&mut self, op: &str, inputs: &[&Value], settings: &[(&str, Setting)]) -> Value {
        let mut outputs = self.nodes(op, inputs, settings, 1);
        outputs.remove(0)
    }

    /// Adds an operation with `count` outputs and returns them.
    fn nodes(
        &mut self,
        op: &str,
        inputs: &[&Value],
        settings: &[(&str, Setting)],
        count: usize,
    ) -> Vec<Value> {
        self.count += 1;
        let name = format!("{op}_{}", self.count);
        let outputs: Vec<String> = match count {
            1 => vec![name.clone()],
            _ => (0..count).map(|i| format!("{name}_{i}")).collect(),
        };
        self.message.node.push(Node {
            input: inputs.iter().map(|value| value.0.clone()).collect(),
            output: outputs.clone(),
            name: Some(name),
            op_type: Some(op.to_owned()),
            attribute: settings.iter().map(attribute).collect(),
        });
        outputs.into_iter().map(Value).collect()
    }

    /// Returns a parameter, under its name in the Hub's layout.
    pub fn param(&mut self, param: &Param) -> Result<Value> {
        let name = param.name().to_owned();
        if self.known.insert(name.clone()) {
            self.constant(&name, &param.value())?;
        }
        Ok(Value(name))
    }

    /// Returns the matrix (in, out) of a map whose weight is (out, in), transposed here once.
    fn turned(&mut self, weight: &Param) -> Result<Value> {
        let name = format!("{}.transposed", weight.name());
        if self.known.insert(name.clone()) {
            self.constant(&name, &weight.value().t()?)?;
        }
        Ok(Value(name))
    }

    /// Returns numbers of f32 that are no parameter.
    pub fn table(&mut self, tensor: &Tensor) -> Result<Value> {
        self.count += 1;
        let name = format!("table_{}", self.count);
        self.constant(&name, tensor)?;
        Ok(Value(name))
    }

    fn constant(&mut self, name: &str, tensor: &Tensor) -> Result<()> {
        let values: Vec<f32> = tensor
            .to_device(&Device::Cpu)?
            .to_dtype(DType::F32)?
            .flatten_all()?
            .to_vec1()?;
        let bytes = values.iter().flat_map(|value| value.to_le_bytes());
        self.initializer(name, FLOAT, tensor.dims(), bytes.collect());
        Ok(())
    }

    fn initializer(&mut self, name: &str, data_type: i32, dims: &[usize], raw_data: Vec<u8>) {
        self.message.initializer.push(Constant {
            dims: dims.iter().map(|&dim| dim as i64).collect(),
            data_type: Some(data_type),
            name: Some(name.to_owned()),
            raw_data: Some(raw_data),
        });
    }

    /// Returns one float.
    pub fn float(&mut self, value: f64) -> Value {
        // A value has one name, so that it is written once.
        let name = format!("float_{value}");
        if self.known.insert(name.clone()) {
            let bytes = (value as f32).to_le_bytes().to_vec();
            self.initializer(&name, FLOAT, &[], bytes);
        }
        Value(name)
    }

    /// Returns a list of whole numbers, as shapes and axes are given.
    pub fn ints(&mut self, values: &[i64]) -> Value {
        let text: Vec<String> = values.iter().map(i64::to_string).collect();
        let name = format!("ints_{}", text.join("_"));
        if self.known.insert(name.clone()) {
            let bytes = values.iter().flat_map(|value| value.to_le_bytes());
            self.initializer(&name, INT64, &[values.len()], bytes.collect());
        }
        Value(name)
    }

    /// Returns one whole number.
    pub fn int(&mut self, value: i64) -> Value {
        let name = format!("int_{value}");
        if self.known.insert(name.clone()) {
            self.initializer(&name, INT64, &[], value.to_le_bytes().to_vec());
        }
        Value(name)
    }

    /// Returns a + b.
    pub fn add(&mut self, a: &Value, b: &Value) -> Value {
        self.node("Add", &[a, b], &[])
    }

    /// Returns a − b.
    pub fn sub(&mut self, a: &Value, b: &Value) -> Value {
        self.node("Sub", &[a, b], &[])
    }

    /// Returns a · b, element by element.
    pub fn mul(&mut self, a: &Value, b: &Value) -> Value {
        self.node("Mul", &[a, b], &[])
    }

    /// Returns `x` times a number.
    pub fn scaled(&mut self, x: &Value, by: f64) -> Value {
        let by = self.float(by);
        self.mul(x, &by)
    }

    /// Returns `x` reshaped: 0 keeps a size, -1 is inferred.
    pub fn reshape(&mut self, x: &Value, shape: &[i64]) -> Value {
        let shape = self.ints(shape);
        self.node("Reshape", &[x, &shape], &[])
    }

    /// Returns `x` with a dimension of size 1 at each of `axes`.
    pub fn unsqueeze(&mut self, x: &Value, axes: &[i64]) -> Value {
        let axes = self.ints(axes);
        self.node("Unsqueeze", &[x, &axes], &[])
    }

    /// Returns `x` with its dimensions in another order.
    pub fn transpose(&mut self, x: &Value, order: &[i64]) -> Value {
        self.node("Transpose", &[x], &[("perm", Setting::Ints(order))])
    }

    /// Returns pieces of `x` of these sizes along its last dimension.
    pub fn split(&mut self, x: &Value, sizes: &[usize]) -> Vec<Value> {
        let lengths: Vec<i64> = sizes.iter().map(|&size| size as i64).collect();
        let lengths = self.ints(&lengths);
        let axis = [("axis", Setting::Int(-1))];
        self.nodes("Split", &[x, &lengths], &axis, sizes.len())
    }

    /// Concatenates tensors along their last dimension.
    pub fn concat(&mut self, parts: &[&Value]) -> Value {
        self.node("Concat", parts, &[("axis", Setting::Int(-1))])
    }

    /// Returns rows of `table`.
    pub fn gather(&mut self, table: &Value, ids: &Value) -> Value {
        self.node("Gather", &[table, ids], &[])
    }

    fn cast(&mut self, x: &Value, to: i32) -> Value {
        self.node("Cast", &[x], &[("to", Setting::Int(i64::from(to)))])
    }

    /// Returns `x` as floats.
    pub fn to_float(&mut self, x: &Value) -> Value {
        self.cast(x, FLOAT)
    }

    /// Returns `x` as whole numbers.
    pub fn to_int(&mut self, x: &Value) -> Value {
        self.cast(x, INT64)
    }

    /// Returns the affine map of the last dimension of `x`.
    pub fn linear(&mut self, x: &Value, weight: &Param, bias: Option<&Param>) -> Result<Value> {
        let weight = self.turned(weight)?;
        let y = self.node("MatMul", &[x, &weight], &[]);
        self.plus(&y, bias)
    }

    /// Like [`Graph::linear`], by a matrix that the graph has as a table of rows too; it is kept once.
    pub fn linear_by_rows(
        &mut self,
        x: &Value,
        table: &Param,
        bias: Option<&Param>,
    ) -> Result<Value> {
        let table = self.param(table)?;
        let weight = self.transpose(&table, &[1, 0]);
        let y = self.node("MatMul", &[x, &weight], &[]);
        self.plus(&y, bias)
    }

    fn plus(&mut self, y: &Value, bias: Option<&Param>) -> Result<Value> {
        let Some(bias) = bias else {
            return Ok(y.clone());
        };
        let bias = self.param(bias)?;
        Ok(self.add(y, &bias))
    }

    /// Returns 0, 1, 2, ... for the positions of a text, (sequence).
    pub fn positions(&mut self) -> Value {
        if let Some(positions) = &self.positions {
            return positions.clone();
        }
        let ids = self.input("input_ids");
        let shape = self.node("Shape", &[&ids], &[]);
        let (zero, one) = (self.int(0), self.int(1));
        let length = self.gather(&shape, &one);
        let positions = self.node("Range", &[&zero, &length, &one], &[]);
        self.positions = Some(positions.clone());
        positions
    }

    /// Returns the mask added to scores (batch, heads, queries, keys), which hides padding, and positions outside
    /// `[before, after]` where these are given.
    pub fn mask(&mut self, band: Option<[usize; 2]>) -> Value {
        if let Some(mask) = self.masks.get(&band) {
            return mask.clone();
        }
        let mask = self.input("attention_mask");
        let mask = self.cast(&mask, BOOL);
        let mut visible = self.unsqueeze(&mask, &[1, 2]);
        if let Some([before, after]) = band {
            let positions = self.positions();
            let rows = self.unsqueeze(&positions, &[1]);
            let columns = self.unsqueeze(&positions, &[0]);
            let distance = self.sub(&columns, &rows);
            let (first, last) = (self.int(-(before as i64)), self.int(after as i64));
            let from = self.node("GreaterOrEqual", &[&distance, &first], &[]);
            let to = self.node("LessOrEqual", &[&distance, &last], &[]);
            let near = self.node("And", &[&from, &to], &[]);
            visible = self.node("And", &[&visible, &near], &[]);
        }
        let (seen, hidden) = (self.float(0.0), self.float(f64::from(LOWEST)));
        let mask = self.node("Where", &[&visible, &seen, &hidden], &[]);
        self.masks.insert(band, mask.clone());
        mask
    }

    /// Returns a file whose output is `logits`, (batch, sequence, `vocab`).
    ///
    /// # Errors
    /// When it would take more than the 2 GB that such a file may have.
    pub(super) fn into_file(mut self, logits: &Value, vocab: usize) -> Result<Vec<u8>> {
        // The output's name is part of what the file promises.
        self.message.node.push(Node {
            input: vec![logits.0.clone()],
            output: vec!["logits".to_owned()],
            name: Some("logits".to_owned()),
            op_type: Some("Identity".to_owned()),
            attribute: Vec::new(),
        });
        let vocab = Dim {
            value: Some(vocab as i64),
            param: None,
        };
        let dims = vec![free("batch_size"), free("sequence_length"), vocab];
        self.message.output.push(info("logits", FLOAT, dims));
        let model = Model {
            ir_version: Some(IR_VERSION),
            producer_name: Some("cloze".to_owned()),
            producer_version: Some(env!("CARGO_PKG_VERSION").to_owned()),
            graph: Some(self.message),
            opset_import: vec![OperatorSet {
                domain: Some(String::new()),
                version: Some(OPSET),
            }],
        };
        let size = model.encoded_len();
        if i32::try_from(size).is_err() {
            return Err(Error::Weights(format!(
                "an ONNX file holds at most 2 GB, but this model would take {:.1} GB",
                size as f64 / 1e9
            )));
        }
        Ok(model.encode_to_vec())
    }
}

/// Returns a size that each run may choose.
fn free(name: &str) -> Dim {
    Dim {
        value: None,
        param: Some(name.to_owned()),
    }
}

fn info(name: &str, elem_type: i32, dim: Vec<Dim>) -> ValueInfo {
    ValueInfo {
        name: Some(name.to_owned()),
        kind: Some(Type {
            tensor: Some(TensorType {
                elem_type: Some(elem_type),
                shape: Some(Shape { dim }),
            }),
        }),
    }
}

fn attribute((name, setting): &(&str, Setting)) -> Attribute {
    let name = Some((*name).to_owned());
    match setting {
        Setting::Int(value) => Attribute {
            name,
            i: Some(*value),
            kind: Some(KIND_INT),
            ..Attribute::default()
        },
        Setting::Ints(values) => Attribute {
            name,
            ints: values.to_vec(),
            kind: Some(KIND_INTS),
            ..Attribute::default()
        },
        Setting::Float(value) => Attribute {
            name,
            f: Some(*value as f32),
            kind: Some(KIND_FLOAT),
            ..Attribute::default()
        },
    }
}
