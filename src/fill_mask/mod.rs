//! Filling masks: a model and its tokenizer behind one call, like transformers' `fill-mask` pipeline.

#[cfg(test)]
mod families;
mod groups;
mod predictions;
mod targets;
mod top_k;

use rayon::prelude::*;

use crate::collate::{Example, Padding};
use crate::model::{MaskedLm, Sharing};
use crate::ops::{self, Precision};
use crate::tokenizer::{EncodeOptions, Encoding, Tokenizer};
use crate::{Error, Result};
pub use predictions::{Prediction, Predictions, PredictionsBatch};
pub use top_k::{Entry, TopK};

/// The default number of candidates for each mask.
const TOP_K: usize = 5;
/// The default number of texts in a batch.
const BATCH_SIZE: usize = 32;
/// From this many texts on, a progress bar shows.
const WORTH_A_BAR: usize = 64;

/// Fills the masks of texts with a model's most probable tokens.
///
/// Mirrors `pipeline("fill-mask")`. Cheap to clone; clones share the weights.
///
/// On the CPU the weights are packed at the first call and cached with the model until it is trained or changed. The
/// cache takes at most as much memory as the weights without the vocabulary (at other precisions than f32, half or a
/// quarter of all weights).
///
/// ```
/// use cloze::prelude::*;
///
/// let texts = ["the milky way is a spiral galaxy", "a galaxy is a system of stars"];
/// let tokenizer = Tokenizer::train_bpe(texts, 300)?;
/// let config = Config::new("roberta")
///     .set("vocab_size", tokenizer.len())
///     .set("hidden_size", 16)
///     .set("num_hidden_layers", 1)
///     .set("num_attention_heads", 2)
///     .set("intermediate_size", 32);
/// let fill_mask = FillMask::new(MaskedLm::from_config(&config, 42)?, tokenizer).top_k(3);
/// let predictions = fill_mask.fill("a galaxy is a <mask> of stars")?;
/// assert_eq!(predictions.len(), 3);
/// assert!(predictions[0].score >= predictions[1].score);
/// # Ok::<(), cloze::Error>(())
/// ```
#[derive(Clone)]
pub struct FillMask {
    model: MaskedLm,
    tokenizer: Tokenizer,
    top_k: Option<usize>,
    targets: Option<Vec<String>>,
    batch_size: Option<usize>,
    max_length: Option<usize>,
    precision: Option<Precision>,
}

impl FillMask {
    /// Opens the model and the tokenizer called `name`: `bundled:NAME`, a folder, or a Hub name.
    pub fn from_pretrained(name: impl AsRef<str>) -> Result<Self> {
        let name = name.as_ref();
        Ok(Self::new(
            MaskedLm::from_pretrained(name)?,
            Tokenizer::from_pretrained(name)?,
        ))
    }

    /// Fills with a model that is already there, for instance right after training it.
    ///
    /// Both may be given as references: clones share their data.
    pub fn new(model: impl Into<MaskedLm>, tokenizer: impl Into<Tokenizer>) -> Self {
        Self {
            model: model.into(),
            tokenizer: tokenizer.into(),
            top_k: None,
            targets: None,
            batch_size: None,
            max_length: None,
            precision: None,
        }
    }

    /// Sets how many candidates each mask gets (default: 5, or as many as there are targets if those are fewer).
    #[must_use]
    pub fn top_k(mut self, top_k: usize) -> Self {
        self.top_k = Some(top_k);
        self
    }

    /// Scores only these tokens, spelled as in the vocabulary (`Ġspiral` or `spiral`) or as text (`" spiral"`).
    ///
    /// Text that is not one token of the vocabulary counts as its first token, with a warning. The scores stay those of
    /// the whole vocabulary; they do not add up to 1.
    #[must_use]
    pub fn targets<S: Into<String>>(mut self, targets: impl IntoIterator<Item = S>) -> Self {
        self.targets = Some(targets.into_iter().map(Into::into).collect());
        self
    }

    /// Sets how many texts run through the model together (default: up to 32 that fit each other).
    ///
    /// The results do not depend on it, but for two kinds of families. Some models see the padding of a batch
    /// ([`Sharing::OneLength`]: BigBird, FNet, ConvBERT and a few more) and fill texts of one length together by default, so
    /// that nothing is padded. In others the texts of a batch influence one another ([`Sharing::Alone`]: Nyströmformer),
    /// and each is filled alone by default. Where a size is set, both pad the texts in the order given, and score them as
    /// the `fill-mask` pipeline of `transformers` does with the same `batch_size`.
    #[must_use]
    pub fn batch_size(mut self, batch_size: usize) -> Self {
        self.batch_size = Some(batch_size);
        self
    }

    /// Cuts texts to at most this many tokens, special ones included (default: nothing is cut, and a text that is too
    /// long for the model is an error).
    #[must_use]
    pub fn max_length(mut self, max_length: usize) -> Self {
        self.max_length = Some(max_length);
        self
    }

    /// Sets the precision of the model's products (default: f32, or what [`autocast`](ops::autocast) has set).
    ///
    /// [`Precision::Int8`] takes about a quarter of the time: the weights are rounded to 8 bits at their first use and
    /// the inputs of each map on the fly, while normalizations, attention and softmax stay in f32 (PyTorch and ONNX
    /// Runtime call this dynamic quantization). [`Precision::Bf16`] is in between. On processors without such products
    /// ([`Precision::is_available`]) everything stays in f32.
    ///
    /// ```
    /// use cloze::ops::Precision;
    /// use cloze::prelude::*;
    ///
    /// let exact = FillMask::from_pretrained("bundled:tiny_roberta")?;
    /// let fast = exact.clone().precision(Precision::Int8);
    /// let text = "The capital of France is <mask>.";
    /// let (exact, fast) = (exact.fill(text)?, fast.fill(text)?);
    /// assert!((exact[0].score - fast[0].score).abs() < 0.1);
    /// # Ok::<(), cloze::Error>(())
    /// ```
    #[must_use]
    pub fn precision(mut self, precision: Precision) -> Self {
        self.precision = Some(precision);
        self
    }

    /// Returns the model.
    pub fn model(&self) -> &MaskedLm {
        &self.model
    }

    /// Returns the tokenizer.
    pub fn tokenizer(&self) -> &Tokenizer {
        &self.tokenizer
    }

    /// Fills the masks of one text.
    ///
    /// # Errors
    /// When the text holds no mask token or is too long, `top_k` is larger than the vocabulary, or no target is valid.
    pub fn fill(&self, text: impl AsRef<str>) -> Result<Predictions> {
        let mut results = self.fill_all(&[text.as_ref()])?;
        results
            .pop()
            .ok_or_else(|| Error::FillMask("no text was given".to_owned()))
    }

    /// Fills the masks of many texts; the results come in the order of the texts.
    ///
    /// # Errors
    /// Like [`FillMask::fill`], for the first text that is to blame, and when there are no texts at all.
    pub fn fill_batch<S: AsRef<str> + Sync>(
        &self,
        texts: impl AsRef<[S]>,
    ) -> Result<PredictionsBatch> {
        let texts = texts.as_ref();
        if texts.is_empty() {
            return Err(Error::FillMask(
                "no texts were given; give at least one".to_owned(),
            ));
        }
        self.fill_all(texts).map(PredictionsBatch::new)
    }

    fn fill_all<S: AsRef<str> + Sync>(&self, texts: &[S]) -> Result<Vec<Predictions>> {
        let mask = Mask::of(&self.tokenizer)?;
        let vocab = self.model.vocab_size();
        let (targets, warnings) = match &self.targets {
            Some(targets) => {
                let (ids, warnings) = targets::resolve(targets, &self.tokenizer, vocab)?;
                (Some(ids), warnings)
            }
            None => (None, Vec::new()),
        };
        let top_k = self.top_k.unwrap_or(TOP_K);
        let top_k = targets
            .as_ref()
            .map_or(top_k, |targets| top_k.min(targets.len()));
        if top_k > vocab {
            return Err(Error::argument(
                "top_k",
                format!("{top_k} candidates are more than the {vocab} tokens of the vocabulary"),
            ));
        }
        let encodings = self.encode(texts, &mask)?;

        let bar = (texts.len() >= WORTH_A_BAR).then(|| {
            crate::notebook::progress::Progress::new("filling masks", texts.len() as u64, "texts")
        });
        let mut results: Vec<Option<Predictions>> = vec![None; texts.len()];
        let lengths: Vec<usize> = encodings.iter().map(Encoding::len).collect();
        for group in self.groups(&lengths)? {
            crate::base::interrupt::check("filling masks")?;
            let score = || self.score(&group, &encodings, &mask, targets.as_deref(), top_k);
            let scored = || ops::in_pool(|| ops::inference(score));
            let scored = match self.precision {
                Some(precision) => ops::autocast(precision, scored)?,
                None => scored()?,
            };
            for (&index, masks) in group.iter().zip(scored) {
                let text = texts[index].as_ref().to_owned();
                let row = &encodings[index].ids;
                let masks = self.describe(row, &mask, masks)?;
                results[index] = Some(Predictions::new(
                    text,
                    mask.token.clone(),
                    masks,
                    warnings.clone(),
                ));
            }
            if let Some(bar) = &bar {
                bar.inc(group.len() as u64);
            }
        }
        if let Some(bar) = &bar {
            bar.finish();
        }
        Ok(results.into_iter().flatten().collect())
    }

    /// Returns which texts run through the model together.
    fn groups(&self, lengths: &[usize]) -> Result<Vec<Vec<usize>>> {
        let has_padding = self.tokenizer.pad_token_id().is_some();
        let sharing = crate::model::sharing(self.model.config().model_type());
        let is_neutral = sharing == Sharing::AnyLength;
        match self.batch_size {
            Some(size) if has_padding && !is_neutral => groups::in_order(lengths.len(), size),
            None if sharing == Sharing::Alone => groups::in_order(lengths.len(), 1),
            size => {
                let size = size.unwrap_or(BATCH_SIZE);
                groups::by_length(lengths, size, has_padding && is_neutral)
            }
        }
    }

    /// Encodes the texts and makes sure that each can be worked on.
    fn encode<S: AsRef<str> + Sync>(&self, texts: &[S], mask: &Mask) -> Result<Vec<Encoding>> {
        let mut options = EncodeOptions::new();
        if let Some(max_length) = self.max_length {
            options = options.truncation(max_length);
        }
        let encodings = self.tokenizer.encode_batch_with(texts, &options)?;
        let longest = self.model.max_positions().unwrap_or(usize::MAX);
        for (index, (text, encoding)) in texts.iter().zip(&encodings).enumerate() {
            let which = || {
                let text = text.as_ref();
                let start: String = text.chars().take(60).collect();
                let dots = if start.len() < text.len() { "..." } else { "" };
                match texts.len() {
                    1 => format!("the text {start:?}{dots}"),
                    _ => format!("text {index} (counted from 0), {start:?}{dots},"),
                }
            };
            if !encoding.ids.contains(&mask.id) {
                let token = &mask.token;
                return Err(Error::FillMask(
                    match self.max_length.filter(|_| text.as_ref().contains(token)) {
                        Some(max_length) => format!(
                            "{} lost its mask token {token} when it was truncated to {max_length} tokens; allow more, or move the mask forward",
                            which()
                        ),
                        None => format!(
                            "{} has no mask token; write {token} where a word is to be filled in",
                            which()
                        ),
                    },
                ));
            }
            if encoding.len() > longest {
                return Err(Error::FillMask(format!(
                    "{} has {} tokens, but this model takes at most {longest}; shorten it, or truncate it with .max_length({longest})",
                    which(),
                    encoding.len()
                )));
            }
        }
        Ok(encodings)
    }

    /// For every text of the group and every mask in it, the best tokens and their scores.
    fn score(
        &self,
        group: &[usize],
        encodings: &[Encoding],
        mask: &Mask,
        targets: Option<&[u32]>,
        top_k: usize,
    ) -> Result<Vec<Vec<Candidates>>> {
        let rows: Vec<Example> = (group.iter())
            .map(|&index| Example::from(&encodings[index]))
            .collect();
        // On the right whatever the tokenizer says, so that a text's result does not depend on those beside it.
        let padding = Padding {
            tokenizer: &self.tokenizer,
            left: false,
            multiple: None,
        };
        let inputs = padding.pad(&rows)?;
        let mut positions = Vec::new();
        let mut counts = Vec::with_capacity(rows.len());
        for (row, example) in rows.iter().enumerate() {
            let before = positions.len();
            let masks = mask.positions(&example.input_ids);
            positions.extend(masks.map(|position| (row * inputs.seq + position) as u32));
            counts.push(positions.len() - before);
        }
        let logits = self.model.logits_at(&inputs, positions)?;
        let logits = logits.to_dtype(candle_core::DType::F32)?.to_vec2::<f32>()?;
        let mut best = logits
            .par_iter()
            .map(|logits| candidates(logits, targets, top_k))
            .collect::<Vec<_>>()
            .into_iter();
        Ok(counts
            .into_iter()
            .map(|count| best.by_ref().take(count).collect())
            .collect())
    }

    /// Puts words to the best tokens of one text's masks.
    fn describe(
        &self,
        ids: &[u32],
        mask: &Mask,
        masks: Vec<Candidates>,
    ) -> Result<Vec<Vec<Prediction>>> {
        // With several masks the others stay visible in the sequence, and with them all special tokens.
        let single = masks.len() == 1;
        let pad = self.tokenizer.pad_token_id();
        let positions: Vec<usize> = mask.positions(ids).collect();
        let predict = |position: usize, (token, score): (u32, f32)| {
            let mut filled = ids.to_vec();
            filled[position] = token;
            filled.retain(|&id| Some(id) != pad);
            Ok(Prediction {
                score,
                token,
                token_str: self.tokenizer.decode(&[token], false)?,
                sequence: self.tokenizer.decode(&filled, single)?,
            })
        };
        positions
            .iter()
            .zip(masks)
            .map(|(&position, best)| {
                best.into_par_iter()
                    .map(|candidate| predict(position, candidate))
                    .collect()
            })
            .collect()
    }
}

impl std::fmt::Debug for FillMask {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "FillMask(top_k {}", self.top_k.unwrap_or(TOP_K))?;
        if let Some(targets) = &self.targets {
            write!(f, ", targets {targets:?}")?;
        }
        if let Some(token) = self.tokenizer.mask_token() {
            write!(f, ", mask {token}")?;
        }
        write!(f, ", {:?})", self.model)
    }
}

/// The best tokens for one mask, each with its score.
type Candidates = Vec<(u32, f32)>;

/// The tokenizer's mask token.
struct Mask {
    token: String,
    id: u32,
}

impl Mask {
    fn of(tokenizer: &Tokenizer) -> Result<Self> {
        match (tokenizer.mask_token(), tokenizer.mask_token_id()) {
            (Some(token), Some(id)) => Ok(Self {
                token: token.to_owned(),
                id,
            }),
            _ => Err(Error::FillMask(format!(
                "a {} has no mask token, so there is nothing to fill in; use the tokenizer of a masked language model",
                tokenizer.class_name()
            ))),
        }
    }

    fn positions(&self, ids: &[u32]) -> impl Iterator<Item = usize> {
        let mask = self.id;
        let found = ids.iter().enumerate().filter(move |&(_, &id)| id == mask);
        found.map(|(position, _)| position)
    }
}

/// Returns the `k` best tokens of one row of logits, or the best of `targets`, with their probabilities in the whole
/// vocabulary.
fn candidates(logits: &[f32], targets: Option<&[u32]>, k: usize) -> Candidates {
    let (highest, sum) = ops::exponential_sum(logits);
    let score = |id: u32| (f64::from((logits[id as usize] - highest).exp()) / sum) as f32;
    let best = match targets {
        None => top_k::best(logits, k),
        Some(targets) => {
            let scores: Vec<f32> = targets.iter().map(|&id| logits[id as usize]).collect();
            let best = top_k::best(&scores, k).into_iter();
            best.map(|place| targets[place as usize]).collect()
        }
    };
    best.into_iter().map(|id| (id, score(id))).collect()
}
