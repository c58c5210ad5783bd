//! The type of JSON values, found by reading them.

use std::fmt;

use arrow::datatypes::{DataType, Field, Fields};
use serde::de::{DeserializeSeed, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};

use crate::dataset::data_type::list_of;

/// What the values seen so far have in common.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) enum Inferred {
    /// Nothing but nulls.
    #[default]
    Null,
    Bool,
    Int,
    Float,
    Text,
    List(Box<Inferred>),
    /// Fields in the order in which they first came.
    Record(Vec<(String, Inferred)>),
}

impl Inferred {
    /// The Arrow type: whole numbers are `int64`, decimal ones `float64`, what is always null is `null`.
    pub(crate) fn data_type(&self) -> DataType {
        match self {
            Self::Null => DataType::Null,
            Self::Bool => DataType::Boolean,
            Self::Int => DataType::Int64,
            Self::Float => DataType::Float64,
            Self::Text => DataType::Utf8,
            Self::List(item) => list_of(item.data_type()),
            Self::Record(_) => DataType::Struct(self.fields()),
        }
    }

    /// The fields, if these are records.
    pub(crate) fn fields(&self) -> Fields {
        match self {
            Self::Record(fields) => fields
                .iter()
                .map(|(name, inferred)| Field::new(name, inferred.data_type(), true))
                .collect(),
            _ => Fields::empty(),
        }
    }

    fn kind(&self) -> &'static str {
        match self {
            Self::Null => "nothing but nulls",
            Self::Bool => "true or false",
            Self::Int | Self::Float => "numbers",
            Self::Text => "text",
            Self::List(_) => "lists",
            Self::Record(_) => "records",
        }
    }

    /// Takes in what was found elsewhere; an error if nothing holds both.
    pub(crate) fn merge(&mut self, other: Self) -> Result<(), ()> {
        match (&mut *self, other) {
            (_, Self::Null) => {}
            (Self::Null, other) => *self = other,
            (Self::Int | Self::Float, Self::Float) => *self = Self::Float,
            (Self::Float, Self::Int) => {}
            (Self::List(item), Self::List(other)) => item.merge(*other)?,
            (Self::Record(fields), Self::Record(others)) => {
                for (name, other) in others {
                    match fields.iter_mut().find(|(field, _)| *field == name) {
                        Some((_, field)) => field.merge(other)?,
                        None => fields.push((name, other)),
                    }
                }
            }
            (mine, other) if *mine == other => {}
            _ => return Err(()),
        }
        Ok(())
    }

    /// The type for a scalar of another kind, or the words for why there is none.
    fn scalar<E: serde::de::Error>(&mut self, found: Self, path: &Path) -> Result<(), E> {
        let kind = self.kind();
        let name = found.kind();
        self.merge(found).map_err(|()| conflict(path, name, kind))
    }
}

fn conflict<E: serde::de::Error>(path: &Path, found: &str, before: &str) -> E {
    E::custom(format!(
        "{path} is {found} here and {before} before; a column holds values of one kind"
    ))
}

/// Where in a record a value stands.
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

/// Reads one value into what is known so far.
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
            *self.inferred = Inferred::List(Box::default());
        }
        let Inferred::List(item) = self.inferred else {
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
        }
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<(), A::Error> {
        let kind = self.inferred.kind();
        if *self.inferred == Inferred::Null {
            *self.inferred = Inferred::Record(Vec::new());
        }
        let Inferred::Record(fields) = self.inferred else {
            return Err(conflict(&self.path, "a record", kind));
        };
        // Records mostly have their fields in the same order: look there first.
        let mut next = 0;
        while let Some(position) = entries.next_key_seed(Key {
            fields: &mut *fields,
            next,
        })? {
            let (name, inferred) = &mut fields[position];
            if name.is_empty() {
                return Err(A::Error::custom("a field has the empty name"));
            }
            let seed = Seed {
                inferred,
                path: Path::Field(&self.path, name),
            };
            entries.next_value_seed(seed)?;
            next = position + 1;
        }
        Ok(())
    }
}

/// Finds a field's position by its name, adding it if it is new.
struct Key<'a> {
    fields: &'a mut Vec<(String, Inferred)>,
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
        if self
            .fields
            .get(self.next)
            .is_some_and(|(field, _)| field == name)
        {
            return Ok(self.next);
        }
        Ok(self
            .fields
            .iter()
            .position(|(field, _)| field == name)
            .unwrap_or_else(|| {
                self.fields.push((name.to_owned(), Inferred::Null));
                self.fields.len() - 1
            }))
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
    fn values_have_the_types_that_the_reference_gives_them() {
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
    fn values_of_two_kinds_are_named_with_their_place() {
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
