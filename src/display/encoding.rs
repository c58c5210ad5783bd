//! An encoded text as a row of chips, one a token.

use crate::notebook::Rich;
use crate::notebook::html::{self, MONO, MUTED, ORANGE, count, escape, frame, heading, note};
use crate::tokenizer::Encoding;

/// How many tokens are drawn.
const SHOWN: usize = 256;

impl Rich for Encoding {
    fn to_html(&self) -> String {
        let padding = self.attention_mask.iter().filter(|&&m| m == 0).count();
        let aside = match padding {
            0 => String::new(),
            padding => format!("{padding} of them padding"),
        };
        let kind = |i: usize| match (self.attention_mask[i], self.special_tokens_mask[i]) {
            (0, _) => Kind::Padding,
            _ if is_mask(&self.tokens[i]) => Kind::Mask,
            (_, 1) => Kind::Special,
            _ => Kind::Plain,
        };
        let shown = (0..self.len().min(SHOWN)).map(|i| {
            let token = self.tokens[i].as_str();
            (token, kind(i), self.ids[i].to_string())
        });
        let chips = chips(shown);
        let more = match self.len().saturating_sub(SHOWN) {
            0 => String::new(),
            more => note(&format!("… and {more} more")),
        };
        let title = heading(&count(self.len(), "token"), &aside);
        frame(&format!("{title}<div>{chips}</div>{more}"))
    }

    fn to_text(&self) -> String {
        format!("{self:?}")
    }
}

/// An encoding does not know its tokenizer; these are the mask tokens of the families there are.
fn is_mask(token: &str) -> bool {
    matches!(token, "<mask>" | "[MASK]" | "<special1>" | "▁<mask>")
}

/// The kind of a token, for its colour.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Plain,
    Special,
    Mask,
    Replaced,
    Kept,
    Padding,
}

impl Kind {
    /// Returns how it is drawn.
    pub(super) fn style(self) -> String {
        match self {
            Self::Plain => "border:1px solid rgba(128,128,128,.35)".to_owned(),
            Self::Special => {
                "border:1px dashed rgba(128,128,128,.6);background:rgba(128,128,128,.14)".to_owned()
            }
            Self::Mask => format!("border:1px solid {ORANGE};background:rgba(232,113,10,.22)"),
            Self::Replaced => "border:1px solid #c2459f;background:rgba(194,69,159,.2)".to_owned(),
            Self::Kept => "border:1px solid #2a9d62;background:rgba(42,157,98,.18)".to_owned(),
            Self::Padding => "border:1px solid rgba(128,128,128,.25);opacity:.45".to_owned(),
        }
    }
}

/// Tokens in a row: each with its kind and with something small below it. A stretch of padding is one chip.
pub(super) fn chips<'a>(tokens: impl Iterator<Item = (&'a str, Kind, String)>) -> String {
    let mut out = String::new();
    let mut tokens = tokens.peekable();
    while let Some((token, kind, below)) = tokens.next() {
        let mut times = 1;
        while kind == Kind::Padding && tokens.next_if(|next| next.1 == Kind::Padding).is_some() {
            times += 1;
        }
        let below = if times > 1 {
            format!("× {times}")
        } else {
            below
        };
        out += &chip(token, kind, &below);
    }
    out
}

/// Returns a token in a box, with something small below it.
pub(super) fn chip(token: &str, kind: Kind, below: &str) -> String {
    format!(
        "<span style=\"display:inline-block;vertical-align:top;margin:2px;padding:1px 5px 0;border-radius:5px;text-align:center;\
         {}\"><span style=\"{MONO};white-space:pre\">{}</span><br><span style=\"font-size:10px;{MUTED}\">{}</span></span>",
        kind.style(),
        spelled(token),
        escape(below)
    )
}

/// Returns a token as the vocabulary spells it, its sign for a space made faint.
pub(super) fn spelled(token: &str) -> String {
    let faint = |sign: &str| format!("<span style=\"opacity:.45\">{sign}</span>");
    for sign in ["Ġ", "▁", "##"] {
        if let Some(rest) = token.strip_prefix(sign)
            && !rest.is_empty()
        {
            return faint(sign) + &html::escape(&visible(rest));
        }
    }
    html::escape(&visible(token))
}

/// Whitespace that would not show.
fn visible(token: &str) -> String {
    token.replace('\n', "⏎").replace('\t', "⇥")
}
