use std::path::Path;

use super::Graph;
use crate::Result;
use crate::base::files;
use crate::model::MaskedLm;

impl MaskedLm {
    /// Writes the model to `path` as an ONNX file in f32, atomically: what ONNX Runtime opens.
    ///
    /// The file's inputs are `input_ids`, `attention_mask` and, where the family reads them, `token_type_ids`: i64, (batch,
    /// sequence), both sizes free. Its output is `logits`, (batch, sequence, vocabulary). Families that are made of BERT's
    /// blocks can be written (BERT, RoBERTa, CamemBERT, XLM-RoBERTa, DistilBERT, ELECTRA, ALBERT, ...), and those with
    /// rotary positions and gates (ModernBERT, EuroBERT, NomicBERT).
    ///
    /// # Errors
    /// When the family has parts of its own that can't be written, when the file would be larger than 2 GB, and when it
    /// can't be written.
    ///
    /// ```
    /// use cloze::prelude::*;
    ///
    /// let folder = tempfile::tempdir().unwrap();
    /// let path = folder.path().join("model.onnx");
    /// let config = Config::new("roberta")
    ///     .set("vocab_size", 300)
    ///     .set("hidden_size", 16)
    ///     .set("num_hidden_layers", 1)
    ///     .set("num_attention_heads", 2)
    ///     .set("intermediate_size", 32);
    /// let model = MaskedLm::from_config(&config, 1)?;
    /// model.export_onnx(&path)?;
    /// assert!(path.metadata().unwrap().len() > 10_000);
    /// # Ok::<(), cloze::Error>(())
    /// ```
    pub fn export_onnx(&self, path: impl AsRef<Path>) -> Result<()> {
        let mut graph = Graph::new();
        let logits = self.architecture().export(&mut graph)?;
        let bytes = graph.into_file(&logits, self.vocab_size())?;
        files::write_atomically(path.as_ref(), &bytes)
    }
}
