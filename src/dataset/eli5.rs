//! ELI5: questions of r/askscience with their answers, the guide's text.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use arrow::datatypes::{DataType, Field, Fields, Schema, SchemaRef};

use super::cast::cast_batch;
use super::data_type::list_of;
use super::dict::DatasetDict;
use super::load::Loader;
use super::split;
use super::table::Dataset;
use crate::{Error, Result};

/// What ships with the crate.
const SAMPLE: &str = "bundled:eli5_sample.jsonl";

/// The splits of r/askscience in the original; the sample has the first.
const SPLITS: [&str; 3] = ["train_asks", "validation_asks", "test_asks"];

/// The schema of ELI5: what the Python guide shows, field by field.
pub fn eli5_schema() -> SchemaRef {
    let text = |name: &str| Field::new(name, DataType::Utf8, true);
    let texts = |name: &str| Field::new(name, list_of(DataType::Utf8), true);
    let record = |name: &str, fields: Vec<Field>| {
        Field::new(name, DataType::Struct(Fields::from(fields)), true)
    };
    let answers = vec![
        texts("a_id"),
        texts("text"),
        Field::new("score", list_of(DataType::Int32), true),
    ];
    Arc::new(Schema::new(vec![
        text("q_id"),
        text("title"),
        text("selftext"),
        text("document"),
        text("subreddit"),
        record("answers", answers),
        record("title_urls", vec![texts("url")]),
        record("selftext_urls", vec![texts("url")]),
        record("answers_urls", vec![texts("url")]),
    ]))
}

/// The part `split` (`train_asks[:5000]`; see [`DatasetDict::split`]) of the ELI5 sample that ships with this crate, in
/// the exact schema of the original. The sample has the split `train_asks` and some hundreds of questions; boundaries
/// past its end are its end. For the whole ELI5 see [`load_eli5_from`].
///
/// ```no_run
/// use cloze::prelude::*;
/// let eli5 = load_eli5("train_asks[:5000]")?;
/// println!("{}", eli5.row(0)?);
/// # Ok::<(), cloze::Error>(())
/// ```
pub fn load_eli5(split: impl AsRef<str>) -> Result<Dataset> {
    load_eli5_from(SAMPLE, split)
}

/// The part `split` of an ELI5 that lies elsewhere: a file (which is `train_asks`, unless its name begins with that of
/// another split), a folder with such files, or a name that [`load_dataset`](super::load_dataset) knows.
///
/// JSON, Parquet and Arrow files will do; columns are brought to the schema of the original, others are left out.
pub fn load_eli5_from(path_or_name: impl AsRef<str>, split: impl AsRef<str>) -> Result<Dataset> {
    let (name, split) = (path_or_name.as_ref(), split.as_ref());
    #[cfg(feature = "hub")]
    if let Some(dataset) = super::load::on_hub(name, None)? {
        if dataset.splits().is_some() {
            let part = super::eli5_hub::load(&Loader::new(name), &dataset, name, split)?;
            return to_schema(&part, Path::new(name));
        }
        return load_eli5_files(name, &dataset.folder()?, split);
    }
    load_eli5_files(name, &crate::hub::resolve("dataset", name)?, split)
}

fn load_eli5_files(name: &str, path: &Path, split: &str) -> Result<Dataset> {
    let files = eli5_files(path)?;
    let available: Vec<&str> = files.iter().map(|(split, _)| *split).collect();
    let mut dict = DatasetDict::new();
    for term in split::parse(split)? {
        let Some((known, file)) = files.iter().find(|(known, _)| *known == term.name) else {
            return Err(Error::Split {
                split: split.to_owned(),
                message: format!(
                    "{name} has {}{}",
                    match available[..] {
                        [] => "no split of ELI5".to_owned(),
                        [only] => format!("only the split {only}"),
                        _ => format!("the splits {}", available.join(", ")),
                    },
                    match SPLITS.contains(&term.name.as_str()) {
                        true =>
                            "; divide it with train_test_split, or load the whole ELI5 with load_eli5_from",
                        false => "",
                    }
                ),
            });
        };
        let loaded = Loader::new(file.to_string_lossy()).load()?;
        dict.insert(*known, to_schema(loaded.get("train")?, file)?);
    }
    dict.split(split)
}

/// The files by split. A Hub name or a folder has one per split, named after it.
fn eli5_files(path: &Path) -> Result<Vec<(&'static str, PathBuf)>> {
    let split_of = |path: &Path| {
        let name = path.file_name()?.to_str()?;
        SPLITS.into_iter().find(|split| name.starts_with(split))
    };
    if path.is_file() {
        return Ok(vec![(split_of(path).unwrap_or(SPLITS[0]), path.to_owned())]);
    }
    let io = |error| Error::io("read", path, error);
    let mut files = Vec::new();
    for entry in std::fs::read_dir(path).map_err(io)? {
        let file = entry.map_err(io)?.path();
        files.extend(
            split_of(&file)
                .filter(|_| file.is_file())
                .map(|split| (split, file)),
        );
    }
    files.sort();
    if let Some(pair) = files.windows(2).find(|pair| pair[0].0 == pair[1].0) {
        return Err(Error::Dataset(format!(
            "{} and {} both hold the split {}; give one of them by its own path",
            pair[0].1.display(),
            pair[1].1.display(),
            pair[0].0
        )));
    }
    files.sort_by_key(|(split, _)| SPLITS.iter().position(|known| known == split));
    Ok(files)
}

fn to_schema(dataset: &Dataset, path: &Path) -> Result<Dataset> {
    let schema = eli5_schema();
    for field in schema.fields() {
        let found = dataset
            .schema()
            .field(dataset.position(field.name())?)
            .data_type();
        if let (DataType::Struct(wanted), DataType::Struct(found)) = (field.data_type(), found)
            && let Some(missing) = wanted
                .iter()
                .find(|inner| found.find(inner.name()).is_none())
        {
            return Err(Error::MissingColumn {
                name: format!("{}.{}", field.name(), missing.name()),
                available: found
                    .iter()
                    .map(|inner| format!("{}.{}", field.name(), inner.name()))
                    .collect(),
            });
        }
    }
    let batches = dataset
        .batches()
        .iter()
        .map(|batch| cast_batch(batch, &schema))
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| {
            Error::format(
                path,
                format!("its values do not fit the schema of ELI5: {error}"),
            )
        })?;
    let content = dataset.content().derive("eli5", &[]);
    Ok(Dataset::from_parts(schema, batches, content))
}
