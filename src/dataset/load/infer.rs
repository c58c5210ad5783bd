//! The type of JSON values, found by reading them.

use std::collections::HashMap;
use std::fmt;

use arrow::datatypes::{DataType, Field, Fields};
use serde::de::{DeserializeSeed, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};

use crate::dataset::data_type::list_of;

/// The common type of the values seen so far.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) enum Inferred {
    /// Nothing but nulls.
    #[default]
    Null,
    Bool,
    Int,
    Float,
    Text,
    /// The type of the items, and their number in all lists.
    List(Box<Inferred>, u64),
    /// Fields in the order in which they first came.
    Record(Known),
}

/// The fields that records have had so far.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Known {
    list: Vec<(String, Inferred)>,
    /// The index of each field in the list, once there are many.
    index: HashMap<String, usize>,
    /// The number of the record that is being read, and for each field the record that had it last.
    record: u64,
    last: Vec<u64>,
}

/// Looking through fewer names than this takes no index.
const FEW: usize = 16;

impl Known {
    /// Returns the position of the field `name`, which is added if it is new.
    fn position(&mut self, name: &str) -> usize {
        let found = match self.index.is_empty() {
            true => self.list.iter().position(|(field, _)| field == name),
            false => self.index.get(name).copied(),
        };
        found.unwrap_or_else(|| {
            let position = self.list.len();
            self.list.push((name.to_owned(), Inferred::Null));
            self.last.push(0);
            if position == FEW {
                let names = self.list.iter().enumerate();
                self.index = names.map(|(at, (name, _))| (name.clone(), at)).collect();
            } else if position > FEW {
                self.index.insert(name.to_owned(), position);
            }
            position
        })
    }
}

impl Inferred {
    /// Returns the Arrow type: whole numbers are `int64`, decimal ones `float64`, values that are always null `null`.
    pub(crate) fn data_type(&self) -> DataType {
        match self {
            Self::Null => DataType::Null,
            Self::Bool => DataType::Boolean,
            Self::Int => DataType::Int64,
            Self::Float => DataType::Float64,
            Self::Text => DataType::Utf8,
            Self::List(item, _) => list_of(item.data_type()),
            Self::Record(_) => DataType::Struct(self.fields()),
        }
    }

    /// Returns the fields, if these are records.
    pub(crate) fn fields(&self) -> Fields {
        match self {
            Self::Record(known) => known
                .list
                .iter()
                .map(|(name, inferred)| Field::new(name, inferred.data_type(), true))
                .collect(),
            _ => Fields::empty(),
        }
    }

    /// Returns the fields that were there, of those that are known.
    pub(crate) fn seen(&self) -> impl Iterator<Item = &str> {
        let known = match self {
            Self::Record(known) => Some(known),
            _ => None,
        };
        let fields = known
            .into_iter()
            .flat_map(|known| known.list.iter().zip(&known.last));
        fields
            .filter(|(_, last)| **last > 0)
            .map(|((name, _), _)| name.as_str())
    }

    /// Returns the cells of a table with these values in `rows` rows, nulls counted.
    pub(crate) fn cells(&self, rows: u64) -> u64 {
        match self {
            Self::Null => 0,
            Self::List(item, items) => rows.saturating_add(item.cells(*items)),
            Self::Record(known) => known.list.iter().fold(0u64, |sum, (_, field)| {
                sum.saturating_add(field.cells(rows))
            }),
            _ => rows,
        }
    }

    /// Returns the same types, with nothing counted.
    pub(crate) fn without_counts(&self) -> Self {
        match self {
            Self::List(item, _) => Self::List(Box::new(item.without_counts()), 0),
            Self::Record(known) => {
                let mut known = known.clone();
                known.record = 0;
                known.last.fill(0);
                for (_, field) in &mut known.list {
                    *field = field.without_counts();
                }
                Self::Record(known)
            }
            other => other.clone(),
        }
    }

    fn kind(&self) -> &'static str {
        match self {
            Self::Null => "nothing but nulls",
            Self::Bool => "true or false",
            Self::Int | Self::Float => "numbers",
            Self::Text => "text",
            Self::List(..) => "lists",
            Self::Record(_) => "records",
        }
    }

    /// Merges the type found elsewhere; an error if no type holds both.
    pub(crate) fn merge(&mut self, other: Self) -> Result<(), ()> {
        match (&mut *self, other) {
            (_, Self::Null) => {}
            (Self::Null, other) => *self = other,
            (Self::Int | Self::Float, Self::Float) => *self = Self::Float,
            (Self::Float, Self::Int) => {}
            (Self::List(item, items), Self::List(other, more)) => {
                *items += more;
                item.merge(*other)?;
            }
            (Self::Record(known), Self::Record(others)) => {
                for (name, other) in others.list {
                    let position = known.position(&name);
                    known.list[position].1.merge(other)?;
                }
            }
            (mine, other) if *mine == other => {}
            _ => return Err(()),
        }
        Ok(())
    }

    /// Returns the type for a scalar of another kind, or the words for why there is none.
    fn scalar<E: serde::de::Error>(&mut self, found: Self, path: &Path) -> Result<(), E> {
        let kind = self.kind();
        let name = found.kind();
        self.merge(found).map_err(|()| conflict(path, name, kind))
    }
}

fn conflict<E: serde::de::Error>(path: &Path, found: &str, before: &str) -> E {
    E::custom(format!(
        "{path} is {found} here and {before} before; all values of a column must have one type"
    ))
}

/// The position of a value in a record.
#[derive(Clone, Copy)]
pub(crate) enum Path<'a> {
    Root,
    Field(&'a Path<'a>, &'a str),
    Item(&'a Path<'a>),
}

impl fmt::Display for Path<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Root => f.write_str("the record"),
            Self::Field(Self::Root, name) => write!(f, "{name:?}"),
            Self::Field(outer, name) => write!(f, "{name:?} in {outer}"),
            Self::Item(outer) => write!(f, "an item of {outer}"),
        }
    }
}

/// Merges the type of one value.
pub(crate) struct Seed<'a> {
    pub(crate) inferred: &'a mut Inferred,
    pub(crate) path: Path<'a>,
}

impl<'de> DeserializeSeed<'de> for Seed<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Seed<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_bool<E: serde::de::Error>(self, _: bool) -> Result<(), E> {
        self.inferred.scalar(Inferred::Bool, &self.path)
    }

    fn visit_i64<E: serde::de::Error>(self, _: i64) -> Result<(), E> {
        self.inferred.scalar(Inferred::Int, &self.path)
    }

    fn visit_u64<E: serde::de::Error>(self, value: u64) -> Result<(), E> {
        let fits = i64::try_from(value).is_ok();
        self.inferred.scalar(
            if fits { Inferred::Int } else { Inferred::Float },
            &self.path,
        )
    }

    fn visit_f64<E: serde::de::Error>(self, _: f64) -> Result<(), E> {
        self.inferred.scalar(Inferred::Float, &self.path)
    }

    fn visit_str<E: serde::de::Error>(self, _: &str) -> Result<(), E> {
        self.inferred.scalar(Inferred::Text, &self.path)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<(), A::Error> {
        let kind = self.inferred.kind();
        if *self.inferred == Inferred::Null {
            *self.inferred = Inferred::List(Box::default(), 0);
        }
        let Inferred::List(item, count) = self.inferred else {
            return Err(conflict(&self.path, "a list", kind));
        };
        loop {
            let seed = Seed {
                inferred: &mut *item,
                path: Path::Item(&self.path),
            };
            if items.next_element_seed(seed)?.is_none() {
                return Ok(());
            }
            *count += 1;
        }
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<(), A::Error> {
        let kind = self.inferred.kind();
        if *self.inferred == Inferred::Null {
            *self.inferred = Inferred::Record(Known::default());
        }
        let Inferred::Record(known) = self.inferred else {
            return Err(conflict(&self.path, "a record", kind));
        };
        known.record += 1;
        let record = known.record;
        // Records mostly have their fields in the same order: look there first.
        let mut next = 0;
        while let Some(position) = entries.next_key_seed(Key {
            known: &mut *known,
            next,
        })? {
            let (name, inferred) = &mut known.list[position];
            let path = Path::Field(&self.path, name);
            if std::mem::replace(&mut known.last[position], record) == record {
                return Err(A::Error::custom(format!(
                    "{path} occurs twice in one record, and only one value could be kept"
                )));
            }
            entries.next_value_seed(Seed { inferred, path })?;
            next = position + 1;
        }
        Ok(())
    }
}

/// Finds a field's position by its name, adding it if it is new.
struct Key<'a> {
    known: &'a mut Known,
    next: usize,
}

impl<'de> DeserializeSeed<'de> for Key<'_> {
    type Value = usize;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<usize, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for Key<'_> {
    type Value = usize;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a field's name")
    }

    fn visit_str<E>(self, name: &str) -> Result<usize, E> {
        let expected = self.known.list.get(self.next);
        if expected.is_some_and(|(field, _)| field == name) {
            return Ok(self.next);
        }
        Ok(self.known.position(name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataset::data_type::type_name;

    fn infer(values: &[&str]) -> Result<String, String> {
        let mut inferred = Inferred::Null;
        for value in values {
            let mut deserializer = serde_json::Deserializer::from_str(value);
            let seed = Seed {
                inferred: &mut inferred,
                path: Path::Root,
            };
            seed.deserialize(&mut deserializer)
                .map_err(|error| error.to_string())?;
        }
        Ok(type_name(&inferred.data_type()))
    }

    #[test]
    fn inferred_types_equal_those_of_datasets() {
        assert_eq!(
            infer(&[r#"{"a": 1, "b": [], "c": null}"#]).unwrap(),
            "struct<a: int64, b: list<null>, c: null>"
        );
        assert_eq!(
            infer(&[r#"{"a": 1}"#, r#"{"a": 1.5, "b": "x"}"#]).unwrap(),
            "struct<a: float64, b: string>"
        );
        assert_eq!(
            infer(&[
                r#"{"b": [], "a": {"x": null}}"#,
                r#"{"a": {"y": true, "x": [[1]]}, "b": ["t"]}"#
            ])
            .unwrap(),
            "struct<b: list<string>, a: struct<x: list<list<int64>>, y: bool>>"
        );
        assert_eq!(infer(&["18446744073709551615"]).unwrap(), "float64");
    }

    #[test]
    fn a_duplicate_field_is_named() {
        let error = infer(&[r#"{"a": 1, "b": 2}"#, r#"{"b": 1, "a": 2, "b": 3}"#]).unwrap_err();
        assert!(
            error.starts_with("\"b\" occurs twice in one record"),
            "{error}"
        );
        let error = infer(&[r#"{"x": [{"a": 1}, {"a": 1, "a": 1}]}"#]).unwrap_err();
        assert!(
            error.starts_with("\"a\" in an item of \"x\" occurs twice"),
            "{error}"
        );
        infer(&[r#"{"x": [{"a": 1}, {"a": 1}]}"#, r#"{"x": [], "a": 1}"#]).unwrap();
    }

    #[test]
    fn many_fields_take_linear_time() {
        let fields: Vec<String> = (0..40_000).map(|n| format!("\"field{n}\": {n}")).collect();
        let forwards = format!("{{{}}}", fields.join(","));
        let backwards: Vec<String> = fields.iter().rev().cloned().collect();
        let backwards = format!("{{{}}}", backwards.join(","));
        let started = std::time::Instant::now();
        infer(&[&forwards, &backwards]).unwrap();
        assert!(started.elapsed().as_secs_f64() < 2.0);
    }

    #[test]
    fn conflicting_values_are_reported_with_their_position() {
        let error = infer(&[
            r#"{"answers": {"score": [1]}}"#,
            r#"{"answers": {"score": ["1"]}}"#,
        ])
        .unwrap_err();
        assert!(
            error
                .starts_with("an item of \"score\" in \"answers\" is text here and numbers before"),
            "{error}"
        );
        assert!(
            infer(&[r#"{"a": 1}"#, r#"{"a": {}}"#])
                .unwrap_err()
                .starts_with("\"a\" is a record here")
        );
        assert!(infer(&[r#"{"a": true}"#, r#"{"a": 0}"#]).is_err());
    }
}
