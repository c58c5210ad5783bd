//! The few pieces of HTML that all displays are made of.
//!
//! Only inline styles: code-hosting sites drop `<style>` and `<script>`. Text takes the page's own colour, lines and
//! backgrounds are translucent, and the few strong colours are of middle lightness, so that everything reads on white
//! and on dark themes.

/// Lines between rows and around boxes.
pub(crate) const LINE: &str = "1px solid rgba(128,128,128,.3)";
/// Muted text.
pub(crate) const MUTED: &str = "opacity:.65";
/// Fixed-width text.
pub(crate) const MONO: &str =
    "font-family:ui-monospace,Menlo,Consolas,'DejaVu Sans Mono',monospace";
/// The main colour: bars, training curves.
pub(crate) const BLUE: &str = "#3b82f6";
/// The second colour: masks, evaluation curves.
pub(crate) const ORANGE: &str = "#e8710a";

/// Returns `text` with every character that means something in HTML replaced.
pub(crate) fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + text.len() / 8);
    for character in text.chars() {
        match character {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            // Other control characters have no place in HTML.
            c if c.is_control() && !matches!(c, '\n' | '\t') => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
    out
}

/// Returns the first `limit` characters of `text`, and an ellipsis if there are more.
pub(crate) fn clip(text: &str, limit: usize) -> String {
    match text.char_indices().nth(limit) {
        Some((end, _)) => format!("{}…", text[..end].trim_end()),
        None => text.to_owned(),
    }
}

/// Returns a whole number with its thousands apart.
pub(crate) fn thousands(number: usize) -> String {
    let digits = number.to_string();
    let mut out = String::with_capacity(digits.len() + digits.len() / 3);
    for (place, digit) in digits.chars().enumerate() {
        if place > 0 && (digits.len() - place).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// "1 row", "5,000 rows".
pub(crate) fn count(number: usize, noun: &str) -> String {
    let plural = if number == 1 { "" } else { "s" };
    format!("{} {noun}{plural}", thousands(number))
}

/// Returns the outermost element of every display.
///
/// The classes keep front ends from reading `$` in a text as mathematics.
pub(crate) fn frame(content: &str) -> String {
    format!(
        "<div class=\"tex2jax_ignore mathjax_ignore\" style=\"margin:4px 0;max-width:100%;overflow-x:auto;\
         font:13px/1.45 system-ui,-apple-system,'Segoe UI',sans-serif\">{content}</div>"
    )
}

/// Returns a title with something smaller after it. Both are HTML.
pub(crate) fn heading(title: &str, aside: &str) -> String {
    let aside = match aside {
        "" => String::new(),
        aside => format!(" <span style=\"{MUTED}\">{aside}</span>"),
    };
    format!("<div style=\"margin:2px 0 6px\"><b>{title}</b>{aside}</div>")
}

/// Returns a remark below a display, as HTML.
pub(crate) fn note(text: &str) -> String {
    format!("<div style=\"margin-top:5px;font-size:12px;{MUTED}\">{text}</div>")
}

/// Which way the cells of a column lean.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Align {
    Left,
    Right,
}

/// A table, cell by cell. Cells and titles are HTML.
pub(crate) struct Table {
    columns: Vec<(String, Align)>,
    rows: Vec<Vec<String>>,
}

impl Table {
    pub(crate) fn new<S: Into<String>>(columns: impl IntoIterator<Item = (S, Align)>) -> Self {
        let columns = columns.into_iter().map(|(title, a)| (title.into(), a));
        Self {
            columns: columns.collect(),
            rows: Vec::new(),
        }
    }

    pub(crate) fn row(&mut self, cells: Vec<String>) {
        self.rows.push(cells);
    }

    pub(crate) fn to_html(&self) -> String {
        let cell = |tag: &str, content: &str, align: Align, more: &str| {
            let align = match align {
                Align::Left => "left",
                Align::Right => "right;font-variant-numeric:tabular-nums;white-space:nowrap",
            };
            format!(
                "<{tag} style=\"border:0;border-bottom:{LINE};padding:4px 12px 4px 4px;vertical-align:top;{more}text-align:{align}\">{content}</{tag}>"
            )
        };
        let mut out = "<table style=\"border-collapse:collapse;border:0;margin:0\">".to_owned();
        if self.columns.iter().any(|(title, _)| !title.is_empty()) {
            out.push_str("<thead><tr style=\"background:none\">");
            for (title, align) in &self.columns {
                out.push_str(&cell("th", title, *align, "font-weight:600;"));
            }
            out.push_str("</tr></thead>");
        }
        out.push_str("<tbody>");
        for row in &self.rows {
            out.push_str("<tr style=\"background:none\">");
            for (content, (_, align)) in row.iter().zip(&self.columns) {
                out.push_str(&cell("td", content, *align, ""));
            }
            out.push_str("</tr>");
        }
        out.push_str("</tbody></table>");
        out
    }
}

/// Names and values, one pair a line. Values are HTML.
pub(crate) fn facts(pairs: &[(&str, String)]) -> String {
    let mut table = Table::new([("", Align::Left), ("", Align::Left)]);
    for (name, value) in pairs {
        let name = format!("<span style=\"{MUTED}\">{}</span>", escape(name));
        table.row(vec![name, value.clone()]);
    }
    table.to_html()
}

/// Returns a horizontal bar, `share` (0 to 1) of it filled.
pub(crate) fn bar(share: f64, width: &str, color: &str) -> String {
    let share = if share.is_finite() {
        share.clamp(0.0, 1.0)
    } else {
        0.0
    };
    format!(
        "<div style=\"display:inline-block;vertical-align:top;margin-top:5px;width:{width};height:9px;border-radius:5px;\
         background:rgba(128,128,128,.2);overflow:hidden\"><div style=\"width:{:.1}%;height:9px;background:{color}\"></div></div>",
        share * 100.0
    )
}

/// Returns an SVG image as an element that works where inline SVG is dropped.
pub(crate) fn image(svg: &str, width: u32, description: &str) -> String {
    format!(
        "<img alt=\"{}\" style=\"display:block;width:{width}px;max-width:100%;height:auto\" src=\"data:image/svg+xml;base64,{}\">",
        escape(description),
        base64(svg.as_bytes())
    )
}

fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut out = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let bits = chunk.iter().enumerate().fold(0u32, |bits, (place, &byte)| {
            bits | u32::from(byte) << (16 - 8 * place)
        });
        for place in 0..4 {
            let digit = DIGITS[(bits >> (18 - 6 * place)) as usize & 63];
            out.push(if place <= chunk.len() {
                char::from(digit)
            } else {
                '='
            });
        }
    }
    out
}

/// "42 s", "3:07", "1:02:09".
pub(crate) fn duration(seconds: f64) -> String {
    if !seconds.is_finite() || seconds < 0.0 {
        return "?".to_owned();
    }
    let whole = seconds.round() as u64;
    let (hours, minutes, rest) = (whole / 3600, whole / 60 % 60, whole % 60);
    match (hours, minutes) {
        (0, 0) if seconds < 9.95 => format!("{seconds:.1} s"),
        (0, 0) => format!("{rest} s"),
        (0, _) => format!("{minutes}:{rest:02}"),
        _ => format!("{hours}:{minutes:02}:{rest:02}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn base64_follows_the_standard() {
        for (text, encoded) in [
            ("", ""),
            ("f", "Zg=="),
            ("fo", "Zm8="),
            ("foo", "Zm9v"),
            ("foobar", "Zm9vYmFy"),
            ("\u{fffd}>?", "77+9Pj8="),
        ] {
            assert_eq!(base64(text.as_bytes()), encoded);
        }
    }

    #[test]
    fn thousands_are_separated() {
        assert_eq!(thousands(0), "0");
        assert_eq!(thousands(999), "999");
        assert_eq!(thousands(1_000), "1,000");
        assert_eq!(thousands(82_118_400), "82,118,400");
        assert_eq!(count(1, "row"), "1 row");
    }

    #[test]
    fn clipping_counts_characters() {
        assert_eq!(clip("äöü", 3), "äöü");
        assert_eq!(clip("äö üx", 3), "äö…");
    }

    #[test]
    fn text_is_escaped() {
        assert_eq!(
            escape("<script>alert('&\"')</script>\u{1b}"),
            "&lt;script&gt;alert(&#39;&amp;&quot;&#39;)&lt;/script&gt;\u{fffd}"
        );
    }

    #[test]
    fn durations_are_formatted_like_a_clock() {
        for (seconds, text) in [
            (0.04, "0.0 s"),
            (9.94, "9.9 s"),
            (42.4, "42 s"),
            (187.0, "3:07"),
            (3729.0, "1:02:09"),
            (f64::INFINITY, "?"),
        ] {
            assert_eq!(duration(seconds), text);
        }
    }
}
