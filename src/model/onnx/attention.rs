//! Attention in ONNX operators.

use candle_core::{Device, Tensor};

use super::{Graph, Value};
use crate::Result;

/// How many heads there are, and their features.
#[derive(Clone, Copy, Debug)]
pub struct Heads {
    /// Of queries.
    pub queries: usize,
    /// Of keys and values; each serves as many heads of queries as it takes.
    pub keys: usize,
    /// The features of one.
    pub size: usize,
}

/// Rotary positions.
#[derive(Clone, Debug)]
pub struct Turn {
    /// (sequence, width / 2) each.
    cos: Value,
    sin: Value,
    width: usize,
    /// Whether feature i goes with i + width / 2, and not with its neighbour.
    halves: bool,
}

impl Graph {
    /// Returns rotary positions whose pairs turn by `speeds` from one position to the next.
    pub fn turn(&mut self, speeds: &[f32], halves: bool) -> Result<Turn> {
        let key: Vec<u32> = speeds.iter().map(|speed| speed.to_bits()).collect();
        let [cos, sin] = match self.turns.get(&key) {
            Some(known) => known.clone(),
            None => {
                let table = Tensor::from_slice(speeds, (1, speeds.len()), &Device::Cpu)?;
                let speed = self.table(&table)?;
                let positions = self.positions();
                let positions = self.to_float(&positions);
                let positions = self.unsqueeze(&positions, &[1]);
                let angles = self.mul(&positions, &speed);
                ["Cos", "Sin"].map(|op| self.node(op, &[&angles], &[]))
            }
        };
        self.turns.insert(key, [cos.clone(), sin.clone()]);
        Ok(Turn {
            cos,
            sin,
            width: 2 * speeds.len(),
            halves,
        })
    }

    /// Returns attention's context vectors, (batch, sequence, heads · size), of queries, keys and values of that form.
    pub fn attention(
        &mut self,
        [query, key, value]: [&Value; 3],
        heads: Heads,
        turn: Option<&Turn>,
        band: Option<[usize; 2]>,
    ) -> Value {
        let mut query = self.by_head(query, heads.queries, heads.size);
        let mut key = self.by_head(key, heads.keys, heads.size);
        if let Some(turn) = turn {
            query = self.turned_by(&query, heads.queries, heads.size, turn);
            key = self.turned_by(&key, heads.keys, heads.size, turn);
        }
        let key = self.shared(&key, heads);
        let value = self.by_head(value, heads.keys, heads.size);
        let value = self.shared(&value, heads);
        let key = self.transpose(&key, &[0, 1, 3, 2]);
        let scores = self.node("MatMul", &[&query, &key], &[]);
        let scores = self.scaled(&scores, 1.0 / (heads.size as f64).sqrt());
        let mask = self.mask(band);
        let scores = self.add(&scores, &mask);
        let last = [("axis", super::Setting::Int(-1))];
        let weights = self.node("Softmax", &[&scores], &last);
        let seen = self.node("MatMul", &[&weights, &value], &[]);
        let seen = self.transpose(&seen, &[0, 2, 1, 3]);
        self.reshape(&seen, &[0, 0, (heads.queries * heads.size) as i64])
    }

    /// Returns (batch, heads, sequence, size) of (batch, sequence, heads · size).
    fn by_head(&mut self, x: &Value, heads: usize, size: usize) -> Value {
        let x = self.reshape(x, &[0, 0, heads as i64, size as i64]);
        self.transpose(&x, &[0, 2, 1, 3])
    }

    /// Returns keys or values for each head of queries.
    fn shared(&mut self, x: &Value, heads: Heads) -> Value {
        let times = heads.queries / heads.keys.max(1);
        if times == 1 {
            return x.clone();
        }
        let x = self.unsqueeze(x, &[2]);
        let shape = self.ints(&[1, 1, times as i64, 1, 1]);
        let x = self.node("Expand", &[&x, &shape], &[]);
        self.reshape(&x, &[0, heads.queries as i64, -1, heads.size as i64])
    }

    /// Returns (batch, heads, sequence, size) turned by its positions.
    fn turned_by(&mut self, x: &Value, heads: usize, size: usize, turn: &Turn) -> Value {
        let half = turn.width / 2;
        let (x, rest) = match size - turn.width {
            0 => (x.clone(), None),
            rest => {
                let mut parts = self.split(x, &[turn.width, rest]);
                let rest = parts.pop();
                (parts.remove(0), rest)
            }
        };
        let (first, second) = if turn.halves {
            let parts = self.split(&x, &[half, half]);
            (parts[0].clone(), parts[1].clone())
        } else {
            let pairs = self.reshape(&x, &[0, 0, -1, half as i64, 2]);
            let parts = self.split(&pairs, &[1, 1]);
            let shape = [0, heads as i64, -1, half as i64];
            (
                self.reshape(&parts[0], &shape),
                self.reshape(&parts[1], &shape),
            )
        };
        let (a, b) = (self.mul(&first, &turn.cos), self.mul(&second, &turn.sin));
        let (c, d) = (self.mul(&second, &turn.cos), self.mul(&first, &turn.sin));
        let (first, second) = (self.sub(&a, &b), self.add(&c, &d));
        let turned = if turn.halves {
            self.concat(&[&first, &second])
        } else {
            let (first, second) = (self.unsqueeze(&first, &[4]), self.unsqueeze(&second, &[4]));
            let pairs = self.concat(&[&first, &second]);
            self.reshape(&pairs, &[0, heads as i64, -1, turn.width as i64])
        };
        match rest {
            Some(rest) => self.concat(&[&turned, &rest]),
            None => turned,
        }
    }
}
