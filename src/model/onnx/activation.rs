//! Activations in ONNX operators.

use super::{Graph, Value};
use crate::ops::Activation;

impl Graph {
    /// Returns an activation of `x`.
    pub fn activation(&mut self, x: &Value, activation: Activation) -> Value {
        match activation {
            Activation::Gelu => {
                // In the order that ONNX Runtime knows and replaces by one operator of its own.
                let (width, one) = (self.float(std::f64::consts::SQRT_2), self.float(1.0));
                let upright = self.node("Div", &[x, &width], &[]);
                let part = self.node("Erf", &[&upright], &[]);
                let part = self.add(&part, &one);
                let twice = self.mul(x, &part);
                self.scaled(&twice, 0.5)
            }
            Activation::GeluTanh => {
                // √(2/π) · (x + 0.044715 x³)
                let square = self.mul(x, x);
                let cube = self.mul(&square, x);
                let cube = self.scaled(&cube, 0.044_715);
                let sum = self.add(x, &cube);
                let inner = self.scaled(&sum, (2.0 / std::f64::consts::PI).sqrt());
                let part = self.half_of_one_plus("Tanh", &inner);
                self.mul(x, &part)
            }
            Activation::Relu => self.node("Relu", &[x], &[]),
            Activation::Silu => {
                let gate = self.node("Sigmoid", &[x], &[]);
                self.mul(x, &gate)
            }
            Activation::Tanh => self.node("Tanh", &[x], &[]),
            Activation::Sigmoid => self.node("Sigmoid", &[x], &[]),
            Activation::ReluSquared => {
                let positive = self.node("Relu", &[x], &[]);
                self.mul(&positive, &positive)
            }
            Activation::QuickGelu => {
                let steep = self.scaled(x, 1.702);
                let gate = self.node("Sigmoid", &[&steep], &[]);
                self.mul(x, &gate)
            }
            Activation::Laplace => {
                let [mean, deviation] = Activation::LAPLACE;
                let mean = self.float(mean);
                let centred = self.sub(x, &mean);
                let upright = self.scaled(&centred, std::f64::consts::FRAC_1_SQRT_2 / deviation);
                self.half_of_one_plus("Erf", &upright)
            }
            Activation::Linear => x.clone(),
        }
    }

    /// Returns (1 + op(x)) / 2.
    fn half_of_one_plus(&mut self, op: &str, x: &Value) -> Value {
        let y = self.node(op, &[x], &[]);
        let one = self.float(1.0);
        let sum = self.add(&y, &one);
        self.scaled(&sum, 0.5)
    }
}
