//! Numbers and dates in texts, and how those of a column compare.

use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::sync::LazyLock;

use regex::Regex;

use super::super::rules::classes::CharClass;
use super::super::rules::is_space;

/// A number or a date.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Value {
    Number(f64),
    /// Year, month and day, as far as they are said.
    Date([Option<u16>; 3]),
}

/// The part of a column's rows that must have values of a kind for the column to count as being of that kind.
const MOST: f64 = 0.7;
/// The most words that a date has.
const DATE_WORDS: usize = 5;

const NUMBERS: [&str; 13] = [
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten",
    "eleven", "twelve",
];
/// As transformers spells them.
const ORDINALS: [&str; 13] = [
    "zeroth", "first", "second", "third", "fourth", "fith", "sixth", "seventh", "eighth", "ninth",
    "tenth", "eleventh", "twelfth",
];
const MONTHS: [&str; 12] = [
    "january",
    "february",
    "march",
    "april",
    "may",
    "june",
    "july",
    "august",
    "september",
    "october",
    "november",
    "december",
];
const WEEKDAYS: [&str; 7] = [
    "monday",
    "tuesday",
    "wednesday",
    "thursday",
    "friday",
    "saturday",
    "sunday",
];

/// Date formats: `B` is a month's name, `b` its first three letters, `A` a weekday, `Y`, `m`, `d` numbers; each with
/// the fields that it has.
const DATES: &[(&str, [bool; 3])] = &[
    ("B", [false, true, false]),
    ("Y", [true, false, false]),
    ("Ys", [true, false, false]),
    ("b Y", [true, true, false]),
    ("B Y", [true, true, false]),
    ("B d", [false, true, true]),
    ("b d", [false, true, true]),
    ("d b", [false, true, true]),
    ("d B", [false, true, true]),
    ("B d, Y", [true, true, true]),
    ("d B Y", [true, true, true]),
    ("m-d-Y", [true, true, true]),
    ("Y-m-d", [true, true, true]),
    ("Y-m", [true, true, false]),
    ("d b Y", [true, true, true]),
    ("b d, Y", [true, true, true]),
    ("d.m.Y", [true, true, true]),
    ("A, b d", [false, true, true]),
    ("A, B d", [false, true, true]),
];

/// Returns the values in a text, in their order.
pub(super) fn values(text: &str) -> Vec<Value> {
    static NUMBER: LazyLock<Regex> = LazyLock::new(|| {
        let pattern = r"((^|\s)[+-])?((\.\d+)|(\d+(,\d\d\d)*(\.\d*)?))";
        Regex::new(pattern).expect("a pattern without user input")
    });
    let text = text.to_lowercase();
    let words: Vec<&str> = text
        .split(is_space)
        .filter(|word| !word.is_empty())
        .collect();
    let text = words.join(" ");
    let mut found: BTreeMap<(usize, usize), Vec<Value>> = BTreeMap::new();
    for number in NUMBER.find_iter(&text) {
        if let Some(value) = self::number(number.as_str()) {
            found
                .entry((number.start(), number.end()))
                .or_default()
                .push(Value::Number(value));
        }
    }
    for (start, end) in spans(&text, 1) {
        if found.contains_key(&(start, end)) {
            continue;
        }
        let word = &text[start..end];
        let named = [NUMBERS, ORDINALS].map(|names| names.iter().position(|name| *name == word));
        let named = named.into_iter().flatten().map(|number| number as f64);
        let values: Vec<Value> = number(word)
            .into_iter()
            .chain(named)
            .map(Value::Number)
            .collect();
        if !values.is_empty() {
            found.entry((start, end)).or_default().extend(values);
        }
    }
    for (start, end) in spans(&text, DATE_WORDS) {
        if let Some(date) = date(&text[start..end]) {
            found.entry((start, end)).or_default().push(date);
        }
    }
    // The longest first, of equals the first; what lies in another does not count.
    let mut all: Vec<((usize, usize), Vec<Value>)> = found.into_iter().collect();
    let length = |span: (usize, usize)| text[span.0..span.1].chars().count();
    all.sort_by_key(|(span, _)| (std::cmp::Reverse(length(*span)), span.0));
    let mut kept: Vec<((usize, usize), Vec<Value>)> = Vec::new();
    for (span, values) in all {
        let inside =
            |(other, _): &((usize, usize), Vec<Value>)| other.0 <= span.0 && span.1 <= other.1;
        if !kept.iter().any(inside) {
            kept.push((span, values));
        }
    }
    kept.sort_by_key(|(span, _)| span.0);
    kept.into_iter().flat_map(|(_, values)| values).collect()
}

/// Returns all stretches of up to `most` words, by where they end.
fn spans(text: &str, most: usize) -> Vec<(usize, usize)> {
    static WORDS: LazyLock<CharClass> = LazyLock::new(|| CharClass::new(r"[\p{L}\p{N}]"));
    let mut spans = Vec::new();
    let mut starts: Vec<usize> = Vec::new();
    let mut inside = false;
    let end = std::iter::once((text.len(), ' '));
    for (at, c) in text.char_indices().chain(end) {
        let word = WORDS.contains(c);
        if word && !inside {
            starts.push(at);
        }
        if !word && inside {
            let first = starts.len().saturating_sub(most);
            spans.extend(starts[first..].iter().map(|start| (*start, at)));
        }
        inside = word;
    }
    spans
}

/// Returns the number that a text is, with thousands set off by commas, or an ordinal.
fn number(text: &str) -> Option<f64> {
    let ending = ["st", "nd", "rd", "th"]
        .iter()
        .find_map(|ending| text.strip_suffix(ending));
    let plain: String = ending
        .unwrap_or(text)
        .chars()
        .filter(|c| *c != ',')
        .map(|c| digit(c).map_or(c, |digit| (b'0' + digit) as char))
        .collect();
    let value: f64 = plain.trim_matches(is_space).parse().ok()?;
    (!value.is_nan() && value != f64::INFINITY).then_some(value)
}

/// Returns the value of a decimal digit of any script.
fn digit(c: char) -> Option<u8> {
    static DIGITS: LazyLock<CharClass> = LazyLock::new(|| CharClass::new(r"\p{Nd}"));
    if !DIGITS.contains(c) {
        return None;
    }
    // The digits of a script lie in a row, one row behind the other at most.
    let is_digit = |at: &u32| char::from_u32(*at).is_some_and(|c| DIGITS.contains(c));
    let before = (0..u32::from(c)).rev().take_while(is_digit).count();
    Some((before % 10) as u8)
}

/// Returns the date that a text is, from 1700 to 2016.
fn date(text: &str) -> Option<Value> {
    DATES.iter().find_map(|(pattern, says)| {
        let mut parts = [None; 3];
        let rest = pattern
            .chars()
            .try_fold(text, |rest, part| field(rest, part, &mut parts))?;
        let [year, month, day] = parts;
        let (full_year, full_month) = (year.unwrap_or(1900), month.unwrap_or(1));
        let valid = rest.is_empty()
            && (1700..=2016).contains(&full_year)
            && day.is_none_or(|day| day >= 1 && day <= days(full_year, full_month));
        let kept = [0, 1, 2].map(|part| parts[part].filter(|_| says[part]));
        valid.then_some(Value::Date(kept))
    })
}

/// Takes one part of a date's pattern off the beginning of `text`.
fn field<'a>(text: &'a str, part: char, parts: &mut [Option<u16>; 3]) -> Option<&'a str> {
    let word = || {
        let end = text
            .find(|c: char| !c.is_alphanumeric())
            .unwrap_or(text.len());
        text.split_at(end)
    };
    let digits = |most: usize| {
        let number = text
            .bytes()
            .take(most)
            .take_while(u8::is_ascii_digit)
            .count();
        let (number, rest) = text.split_at(number);
        Some((number.parse::<u16>().ok()?, rest))
    };
    match part {
        'B' | 'b' => {
            let (name, rest) = word();
            let known = |month: &&str| {
                if part == 'B' {
                    *month == name
                } else {
                    month[..3] == *name
                }
            };
            let month = MONTHS.iter().position(known)?;
            parts[1] = Some(month as u16 + 1);
            Some(rest)
        }
        'A' => {
            let (name, rest) = word();
            WEEKDAYS.contains(&name).then_some(rest)
        }
        'Y' => {
            let digits: Vec<u8> = text.chars().map_while(digit).take(4).collect();
            let year = digits
                .iter()
                .fold(0, |year, &digit| year * 10 + u16::from(digit));
            parts[0] = Some(year);
            let length = text.chars().take(4).map(char::len_utf8).sum();
            (digits.len() == 4).then(|| &text[length..])
        }
        'm' => {
            let (month, rest) = digits(2)?;
            parts[1] = Some(month);
            (1..=12).contains(&month).then_some(rest)
        }
        'd' => {
            let (day, rest) = digits(2)?;
            parts[2] = Some(day);
            (1..=31).contains(&day).then_some(rest)
        }
        ' ' => {
            let rest = text.trim_start_matches(is_space);
            (rest.len() < text.len()).then_some(rest)
        }
        sign => text.strip_prefix(sign),
    }
}

/// Returns how many days a month has.
fn days(year: u16, month: u16) -> u16 {
    match month {
        2 if year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400)) => {
            29
        }
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

/// Returns the value of each cell of a column: of the kind that most cells have values of, where these are most of all
/// cells.
pub(super) fn column(cells: &[&str]) -> Vec<Option<Value>> {
    let all: Vec<Vec<Value>> = cells.iter().map(|cell| values(cell)).collect();
    let is_date = |value: &Value| matches!(value, Value::Date(_));
    let count = |date: bool| {
        let rows = all.iter();
        rows.filter(|values| values.iter().any(|value| is_date(value) == date))
            .count()
    };
    let (numbers, dates) = (count(false), count(true));
    let most = numbers.max(dates);
    if most == 0 || (most as f64) < all.len() as f64 * MOST {
        return vec![None; cells.len()];
    }
    let rows = all.into_iter();
    rows.map(|values| {
        values
            .into_iter()
            .find(|value| is_date(value) == (dates == most))
    })
    .collect()
}

/// The key that values are compared by; `None` where they have no kind in common.
pub(super) struct Order {
    /// For dates: which of year, month and day all have.
    parts: [bool; 3],
}

impl Order {
    pub(super) fn of<'a>(values: impl Iterator<Item = &'a Value> + Clone) -> Option<Self> {
        let dates = values
            .clone()
            .filter(|value| matches!(value, Value::Date(_)))
            .count();
        let number = values.clone().count();
        if dates == 0 {
            return Some(Self { parts: [false; 3] });
        }
        if dates < number {
            return None;
        }
        let has = |part: usize| {
            let mut values = values.clone();
            values.all(|value| matches!(value, Value::Date(parts) if parts[part].is_some()))
        };
        let parts = [has(0), has(1), has(2)];
        parts.contains(&true).then_some(Self { parts })
    }

    pub(super) fn compare(&self, left: &Value, right: &Value) -> Ordering {
        match (left, right) {
            (Value::Number(left), Value::Number(right)) => {
                left.partial_cmp(right).unwrap_or(Ordering::Equal)
            }
            (Value::Date(left), Value::Date(right)) => {
                let parts = (0..3).filter(|&part| self.parts[part]);
                let mut orders = parts.map(|part| left[part].cmp(&right[part]));
                orders
                    .find(|order| *order != Ordering::Equal)
                    .unwrap_or(Ordering::Equal)
            }
            _ => Ordering::Equal,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(text: &str) -> Vec<f64> {
        let values = values(text).into_iter();
        values
            .filter_map(|value| match value {
                Value::Number(number) => Some(number),
                Value::Date(_) => None,
            })
            .collect()
    }

    #[test]
    fn numbers_are_found_in_all_their_forms() {
        assert_eq!(numbers("It cost 1,200.50, or -3"), [1200.5, -3.0]);
        assert_eq!(numbers("Three men on the 2nd day, 1e3"), [3.0, 2.0, 1000.0]);
        assert_eq!(numbers("a-5 .5 first nan inf"), [5.0, 0.5, 1.0]);
        assert_eq!(numbers("１２ of ٣٤,५.𝟟"), [12.0, 34.0, 5.7]);
        assert_eq!(numbers(""), [0.0; 0]);
    }

    #[test]
    fn dates_are_found_with_their_fields() {
        let date = |year, month, day| Value::Date([year, month, day]);
        assert_eq!(
            values("on 5 March 1999 at"),
            [date(Some(1999), Some(3), Some(5))]
        );
        assert_eq!(values("Mar 5, 1999"), [date(Some(1999), Some(3), Some(5))]);
        assert_eq!(values("the 1990s"), [date(Some(1990), None, None)]);
        assert_eq!(values("july"), [date(None, Some(7), None)]);
        // There is no such day, but there is the month.
        let month = date(Some(1998), Some(2), None);
        assert_eq!(values("1998-02-30"), [month, Value::Number(30.0)]);
        assert_eq!(values("3012"), [Value::Number(3012.0)]);
        let year = date(Some(2010), None, None);
        assert_eq!(values("２０１０"), [Value::Number(2010.0), year]);
    }

    #[test]
    fn a_column_has_the_type_of_most_of_its_cells() {
        assert_eq!(column(&["1", "2", "x"]), [None, None, None]);
        assert_eq!(
            column(&["1", "2", "3", "x"])[..3],
            [1.0, 2.0, 3.0].map(|n| Some(Value::Number(n)))
        );
        let years = column(&["1999", "2001"]);
        assert!(matches!(
            years[0],
            Some(Value::Date([Some(1999), None, None]))
        ));
        let order = Order::of(years.iter().flatten()).unwrap();
        assert_eq!(
            order.compare(&years[0].unwrap(), &years[1].unwrap()),
            Ordering::Less
        );
        let mixed = [Value::Number(1.0), Value::Date([Some(1), None, None])];
        assert!(Order::of(mixed.iter()).is_none());
    }
}
