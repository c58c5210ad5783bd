use super::{AttentionMask, Rotary};
use crate::ops::Dropout;

/// Options of [`attention_with`](super::attention_with) beyond plain attention.
///
/// ```
/// use cloze::ops::{AttentionOptions, Band};
/// let local = AttentionOptions {
///     band: Some(Band::both(64)),
///     ..AttentionOptions::new(12, 64)
/// };
/// assert_eq!(local.scale, 0.125);
/// ```
#[derive(Clone, Debug)]
pub struct AttentionOptions {
    /// The number of heads of the queries.
    pub heads: usize,
    /// The number of heads of keys and values, a divisor of `heads`: head h of the queries looks at head
    /// h / (heads / kv_heads). `None`: as many as the queries have.
    pub kv_heads: Option<usize>,
    /// The factor on the products of queries and keys.
    pub scale: f64,
    /// Dropout of the probabilities.
    pub dropout: Dropout,
    /// The keys that may be attended to, or a term added to the scores.
    pub mask: AttentionMask,
    /// Queries that count, as a (batch, query) u32 or u8 tensor: the result of one whose entry is 0 is 0, and it sends no
    /// gradient back. `None`: all count.
    pub query_mask: Option<candle_core::Tensor>,
    /// How far from its own position a query sees; `None`: all the way. Time and memory grow with the band's width, not
    /// with the number of keys.
    pub band: Option<Band>,
    /// Whether a query sees no key that comes after it.
    pub causal: bool,
    /// Angles by which queries and keys are rotated before they meet.
    pub rotary: Option<Rotary>,
}

/// A window of keys round every query's position.
///
/// Query i has the position of key `i + keys - queries`: if there are more keys than queries, the first keys are a
/// prefix before all queries.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Band {
    /// How many keys before its own position a query sees.
    pub left: usize,
    /// How many keys after its own position a query sees.
    pub right: usize,
}

impl Band {
    /// Returns the same distance to both sides.
    pub fn both(distance: usize) -> Self {
        Self {
            left: distance,
            right: distance,
        }
    }
}

impl AttentionOptions {
    /// Returns the options of plain attention by `heads` heads of `head_size` features each: scores are divided by √head_size.
    pub fn new(heads: usize, head_size: usize) -> Self {
        Self {
            heads,
            kv_heads: None,
            scale: 1.0 / (head_size.max(1) as f64).sqrt(),
            dropout: Dropout::NONE,
            mask: AttentionMask::None,
            query_mask: None,
            band: None,
            causal: false,
            rotary: None,
        }
    }

    /// Returns the number of heads of keys and values.
    pub fn kv_heads(&self) -> usize {
        self.kv_heads.unwrap_or(self.heads)
    }
}

/// How queries, keys and values lie side by side in the result of one projection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FusedLayout {
    /// All heads of the queries, then all of the keys, then all of the values (ModernBERT, Nomic BERT).
    Blocks,
    /// Query, key and value of the first head, then those of the second, and so on (DeBERTa).
    PerHead,
}
