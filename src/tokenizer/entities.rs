//! LUKE: a text's entities, each a title of the entity vocabulary and the tokens that mention it.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use super::checks;
use super::encode::kept;
use super::folder::Folder;
use super::{EncodeOptions, Encoding, ExtraColumn, Padding, Tokenizer};
use crate::base::json;
use crate::{Error, Result};

/// A text and where its entities are mentioned.
///
/// ```no_run
/// use cloze::prelude::*;
///
/// let text = "Beyoncé lives in Los Angeles.";
/// let known = Mentions { spans: &[(0, 7), (17, 28)], titles: Some(&["Beyoncé", "Los Angeles"]) };
/// // What the model is to guess.
/// let masked = Mentions { spans: &[(17, 28)], titles: None };
/// let tokenizer = Tokenizer::from_pretrained("studio-ousia/luke-base")?;
/// let encoding = tokenizer.encode_entities(text, masked, None, &EncodeOptions::new())?;
/// # let _ = (known, encoding);
/// # Ok::<(), cloze::Error>(())
/// ```
#[derive(Clone, Copy, Debug, Default)]
pub struct Mentions<'a> {
    /// Start and end of each mention, in characters of the text.
    pub spans: &'a [(usize, usize)],
    /// The titles of the entities, one a span; `None` takes the mask for each, which the model is to fill.
    pub titles: Option<&'a [&'a str]>,
}

/// The entity vocabulary and its limits.
#[derive(Debug)]
pub(super) struct Entities {
    ids: HashMap<String, u32>,
    unknown: u32,
    padding: u32,
    mask: u32,
    max_entities: usize,
    max_mention: usize,
}

/// The ids of entities that play a part, and are none.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SpecialEntities {
    pub(crate) unknown: u32,
    pub(crate) padding: u32,
    pub(crate) mask: u32,
}

const FILE: &str = "entity_vocab.json";
/// More tokens than any model takes; a larger limit in a file is damage.
const MOST: u64 = 1 << 20;

impl Entities {
    /// Reads the folder's entity vocabulary, where it has one.
    pub(super) fn read(folder: &Folder) -> Result<Option<Self>> {
        let Some(path) = folder.file(FILE) else {
            return Ok(None);
        };
        let text = crate::base::files::read(&path)?;
        let ids: HashMap<String, u32> = json::from_slice(&text).map_err(|error| {
            let message = format!("not a JSON object of titles and ids: {error}");
            checks::damaged(&path, message)
        })?;
        let text = |key: &str, default: &str| {
            let value = folder.config.get(key).and_then(|value| {
                value
                    .as_str()
                    .or_else(|| value.get("content").and_then(|value| value.as_str()))
            });
            value.unwrap_or(default).to_owned()
        };
        let id = |key: &str, default: &str| {
            let token = text(key, default);
            ids.get(&token).copied().ok_or_else(|| {
                checks::damaged(
                    &path,
                    format!("the {key} {token:?} is not in the entity vocabulary"),
                )
            })
        };
        let limit = |key: &str, default: u64| {
            let value = folder.config.get(key).and_then(|value| value.as_u64());
            let value = value.unwrap_or(default);
            match value {
                1..=MOST => Ok(value as usize),
                _ => Err(checks::damaged(&folder.path, format!("{key} is {value}"))),
            }
        };
        Ok(Some(Self {
            unknown: id("entity_unk_token", "[UNK]")?,
            padding: id("entity_pad_token", "[PAD]")?,
            mask: id("entity_mask_token", "[MASK]")?,
            max_entities: limit("max_entity_length", 32)?,
            max_mention: limit("max_mention_length", 30)?,
            ids,
        }))
    }

    /// Returns the ids of the entities.
    fn ids(&self, mentions: Mentions<'_>) -> Result<Vec<u32>> {
        let Some(titles) = mentions.titles else {
            return Ok(vec![self.mask; mentions.spans.len()]);
        };
        if titles.len() != mentions.spans.len() {
            return Err(Error::argument(
                "titles",
                format!(
                    "{} titles for {} spans; give one per span, or none at all",
                    titles.len(),
                    mentions.spans.len()
                ),
            ));
        }
        let id = |title: &&str| self.ids.get(*title).copied().unwrap_or(self.unknown);
        Ok(titles.iter().map(id).collect())
    }
}

impl Tokenizer {
    /// Returns whether texts may come with entities (LUKE and mLUKE with an entity vocabulary).
    pub fn has_entities(&self) -> bool {
        self.core.entities.is_some()
    }

    /// Returns the ids of the entities that are none, where texts may come with entities.
    pub(crate) fn special_entities(&self) -> Option<SpecialEntities> {
        let entities = self.core.entities.as_ref()?;
        Some(SpecialEntities {
            unknown: entities.unknown,
            padding: entities.padding,
            mask: entities.mask,
        })
    }

    /// Returns the id of an entity by its title, `None` when the vocabulary has no such title, or there is none.
    pub fn entity_id(&self, title: &str) -> Option<u32> {
        self.core.entities.as_ref()?.ids.get(title).copied()
    }

    /// Returns the title of an entity by its id, `None` when the vocabulary has no such id, or there is none. Of several
    /// titles of one id (mLUKE has one in each language) it is the first in the order of the alphabet.
    pub fn entity_title(&self, id: u32) -> Option<&str> {
        let ids = self.core.entities.as_ref()?.ids.iter();
        let titles = ids.filter(|(_, of)| **of == id);
        titles.map(|(title, _)| title.as_str()).min()
    }

    /// Encodes a text with its entities, or two texts with theirs.
    ///
    /// Besides the tokens, the encoding has the [extra](Encoding::extra) columns `entity_ids` (one per entity),
    /// `entity_attention_mask`, and `entity_position_ids`: the positions of the tokens that mention the entity, padded
    /// to the tokenizer's `max_mention_length` with -1. An entity whose mention is truncated is dropped.
    ///
    /// # Errors
    ///
    /// If the tokenizer has no entities, a span is not in its text, or titles are more or fewer than spans.
    ///
    /// ```no_run
    /// use cloze::tokenizer::{EncodeOptions, Mentions, Tokenizer};
    /// let tokenizer = Tokenizer::from_pretrained("studio-ousia/luke-base")?;
    /// let mentions = Mentions { spans: &[(0, 7)], titles: Some(&["Beyoncé"]) };
    /// let encoding = tokenizer.encode_entities("Beyoncé lives in Los Angeles.", mentions, None, &EncodeOptions::new())?;
    /// assert_eq!(encoding.extra["entity_ids"].values.len(), 1);
    /// # Ok::<(), cloze::Error>(())
    /// ```
    pub fn encode_entities(
        &self,
        text: &str,
        mentions: Mentions<'_>,
        pair: Option<(&str, Mentions<'_>)>,
        options: &EncodeOptions,
    ) -> Result<Encoding> {
        let entities = self.core.entities.as_ref().ok_or_else(|| {
            Error::Tokenizer(format!(
                "a {} without {FILE} has no entities",
                self.class_name()
            ))
        })?;
        let first = self.around_mentions(text, mentions.spans)?;
        let second = pair
            .map(|(text, mentions)| self.around_mentions(text, mentions.spans))
            .transpose()?;
        let (second, second_spans) = second.unzip();
        let (mut encoding, lengths) = self.assemble(first.0, second, options)?;
        let special = options.add_special_tokens;
        let offsets = match special {
            true => (1, lengths.0 + 3),
            false => (0, lengths.0),
        };
        let stay = |spans: &[(usize, usize)], ids: Vec<u32>, length: usize, offset: usize| {
            let all = spans.iter().zip(ids).filter(|(span, _)| span.1 <= length);
            all.map(|(span, id)| (id, span.0 + offset..span.1 + offset))
                .collect::<Vec<_>>()
        };
        let mut rows = stay(&first.1, entities.ids(mentions)?, lengths.0, offsets.0);
        let mut others = match (&second_spans, pair) {
            (Some(spans), Some((_, mentions))) => {
                stay(spans, entities.ids(mentions)?, lengths.1, offsets.1)
            }
            _ => Vec::new(),
        };
        if options.max_length.is_some() {
            let others_length = second_spans.is_some().then_some(others.len());
            let lengths = (rows.len(), others_length);
            let keep = kept(lengths, entities.max_entities, options.strategy, true)?;
            rows.truncate(keep.0);
            others.truncate(keep.1);
        }
        rows.extend(others);
        let number = rows.len();
        let padded = match options.padding {
            Padding::None | Padding::Longest => number,
            Padding::MaxLength(_) => number.max(entities.max_entities),
        };
        let left = self.settings.pad_left;
        let mut add = |name: &str, values: Vec<i64>, width: usize, padding: i64| {
            let mut column = ExtraColumn::per_entity(values, width, padding);
            column.pad(padded, left);
            encoding.extra.insert(name.to_owned(), column);
        };
        let ids = rows.iter().map(|(id, _)| i64::from(*id)).collect();
        add("entity_ids", ids, 1, i64::from(entities.padding));
        let width = entities.max_mention;
        let mut places = Vec::with_capacity(number * width);
        for (at, (_, tokens)) in rows.into_iter().enumerate() {
            places.extend(tokens.take(width).map(|token| token as i64));
            places.resize((at + 1) * width, -1);
        }
        add("entity_position_ids", places, width, -1);
        add("entity_attention_mask", vec![1; number], 1, 0);
        self.pad_one(encoding, options)
    }

    /// Returns the tokens of a text that is cut where mentions begin and end, and the tokens of each mention. A space
    /// before a mention is the first token's own.
    fn around_mentions(
        &self,
        text: &str,
        spans: &[(usize, usize)],
    ) -> Result<(tokenizers::Encoding, Vec<(usize, usize)>)> {
        let bytes: Vec<usize> = text
            .char_indices()
            .map(|(at, _)| at)
            .chain([text.len()])
            .collect();
        let mut places: BTreeSet<usize> = BTreeSet::new();
        for &(start, end) in spans {
            if start > end || end >= bytes.len() {
                return Err(Error::argument(
                    "spans",
                    format!(
                        "{start}..{end} is outside a text of {} characters",
                        bytes.len() - 1
                    ),
                ));
            }
            places.extend([start, end]);
        }
        let mut tokens = tokenizers::Encoding::default();
        let append = |tokens: &mut tokenizers::Encoding, from: usize, to: usize| -> Result<()> {
            let mut part = self.core.engine.encode(&text[bytes[from]..bytes[to]])?;
            for offset in part.get_offsets_mut() {
                *offset = (offset.0 + from, offset.1 + from);
            }
            tokens.merge_with(part, false);
            Ok(())
        };
        let mut done = 0;
        let mut token_at: BTreeMap<usize, usize> = BTreeMap::new();
        for place in places {
            let after_space = place > 0 && text[bytes[place - 1]..].starts_with(' ');
            let cut = if after_space { place - 1 } else { place };
            if cut > done {
                append(&mut tokens, done, cut)?;
                done = cut;
            } else if cut < done {
                done = cut;
            }
            token_at.insert(place, tokens.len());
        }
        append(&mut tokens, done, bytes.len() - 1)?;
        let spans = spans
            .iter()
            .map(|(start, end)| (token_at[start], token_at[end]));
        Ok((tokens, spans.collect()))
    }
}
