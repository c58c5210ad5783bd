//! From floats to few bits: the mode of a model, and the ranges of its activations.

use super::{Context, MaskedLm, Measured, ModelInputs};
use crate::{Error, Result, interrupt, ops};

impl MaskedLm {
    /// Turns the few bits of I-BERT (integer arithmetic) or QDQBERT (rounding to 8 bits) on or off: the config's key
    /// `quant_mode`, with which the model is then saved. Weights stay as they are; clones made before keep their mode.
    ///
    /// Ranges of activations are measured by [`calibrate`](Self::calibrate), and by I-BERT's training too.
    ///
    /// # Errors
    /// When the family has no such mode, or can't have it with this config.
    ///
    /// ```
    /// use cloze::model::{Config, MaskedLm};
    /// let config = Config::new("ibert").set("num_hidden_layers", 1).set("vocab_size", 100);
    /// let mut model = MaskedLm::from_config(&config, 42)?;
    /// model.set_quant_mode(true)?;
    /// assert_eq!(model.config().get("quant_mode"), Some(&true.into()));
    /// # Ok::<(), cloze::Error>(())
    /// ```
    pub fn set_quant_mode(&mut self, on: bool) -> Result<()> {
        let config = self.config().clone().set("quant_mode", on);
        let rebuilt = self.rebuilt(config, None)?;
        if on && rebuilt.measured().is_empty() {
            return Err(Error::Config(format!(
                "{} has no quantized mode; ibert and qdqbert have one",
                self.class()
            )));
        }
        *self = rebuilt;
        Ok(())
    }

    /// Measures the ranges of all activations in `batches`, which integer arithmetic needs; they are saved with the
    /// model. Returns the number of batches. Weights are unchanged.
    ///
    /// QDQBERT takes the largest magnitude that its float model meets, as NVIDIA's calibrator for maxima does. I-BERT computes
    /// in integers and moves its ranges by a twentieth with each batch, as its training does.
    ///
    /// # Errors
    /// If `quant_mode` is off or there are no batches. The ranges are then unchanged.
    pub fn calibrate<B>(&self, batches: impl IntoIterator<Item = B>) -> Result<usize>
    where
        B: Into<ModelInputs>,
    {
        if self.measured().is_empty() {
            return Err(Error::Config(
                "there are no ranges to measure: call set_quant_mode(true) first, on a model of ibert or qdqbert"
                    .to_owned(),
            ));
        }
        let before: Vec<_> = self.measured().iter().map(Measured::get).collect();
        self.measured().iter().for_each(Measured::reset);
        let measured = self.measure(batches);
        if measured.is_err() {
            for (of, value) in self.measured().iter().zip(before) {
                of.set(value);
            }
        }
        measured
    }

    fn measure<B>(&self, batches: impl IntoIterator<Item = B>) -> Result<usize>
    where
        B: Into<ModelInputs>,
    {
        let mut count = 0;
        for batch in batches {
            interrupt::check("calibrating")?;
            let batch = batch.into();
            ops::no_grad(|| self.pass(&batch, &Context::eval().calibrating()))?;
            count += 1;
        }
        match count {
            0 => Err(Error::argument(
                "batches",
                "no batches were given; give a few that are typical of the model's inputs",
            )),
            count => Ok(count),
        }
    }
}
