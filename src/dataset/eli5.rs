//! ELI5: questions of r/askscience with their answers, the guide's text.

use std::path::{Path, PathBuf};

use arrow::datatypes::DataType;

use super::cast::cast_batch;
use super::dict::DatasetDict;
use super::eli5_layouts::{split_of, to_original};
use super::eli5_schema::eli5_schema;
use super::load::Loader;
use super::split;
use super::table::Dataset;
use crate::{Error, Result};

/// The sample that is included in the crate.
const SAMPLE: &str = "bundled:eli5_sample.jsonl";

/// The original name of the dataset, and its current location.
const ELI5: &str = "eli5";
const HOME: &str = "dany0407/eli5_category";

/// The splits of r/askscience in the original; the sample has the first.
const SPLITS: [&str; 3] = ["train_asks", "validation_asks", "test_asks"];

/// Returns the part `split` (`train_asks[:5000]`; see [`DatasetDict::split`]) of the bundled ELI5 sample, in the exact
/// schema of the original. The sample has the split `train_asks` with some hundreds of questions; larger boundaries are
/// clamped, with a note. It makes no network request: for the whole ELI5 pass a name to [`load_eli5_from`].
///
/// ```no_run
/// use cloze::prelude::*;
/// let eli5 = load_eli5("train_asks[:5000]")?;
/// println!("{}", eli5.row(0)?);
/// # Ok::<(), cloze::Error>(())
/// ```
pub fn load_eli5(split: impl AsRef<str>) -> Result<Dataset> {
    let split = split.as_ref();
    let sample = load_eli5_from(SAMPLE, split)?;
    let wanted: Option<usize> = split::parse(split)?
        .iter()
        .map(|term| term.fixed().map(|rows| rows.len()))
        .sum();
    if let Some(wanted) = wanted.filter(|&wanted| wanted > sample.len()) {
        eprintln!(
            "note: the bundled sample of ELI5 has {} of the {wanted} requested questions; load_eli5_from({ELI5:?}, {split:?}) downloads them from the Hub",
            sample.len()
        );
    }
    Ok(sample)
}

/// Returns whether `name` is what the dataset was called, and nothing here.
pub(super) fn is_eli5(name: &str) -> bool {
    name == ELI5 && !Path::new(name).exists()
}

/// Returns the part `split` of an ELI5 from another source: a file (which is `train_asks`, unless its name begins with
/// that of another split), a folder with such files, or a name for [`load_dataset`](super::load_dataset). Of a dataset
/// on the Hub only the files with the rows of `split` are downloaded.
///
/// `eli5`, the name in older guides, refers to `dany0407/eli5_category`, where the data are since the original was
/// withdrawn. There and in mirrors the splits of r/askscience have plainer names (`train` for `train_asks`); both work.
/// JSON, Parquet and Arrow files of any layout that ELI5 has had are converted to the schema of the original,
/// additional columns are dropped, and a note says what was used.
///
/// ```no_run
/// use cloze::prelude::*;
/// let eli5 = load_eli5_from("eli5", "train_asks[:5000]")?;
/// # Ok::<(), cloze::Error>(())
/// ```
pub fn load_eli5_from(path_or_name: impl AsRef<str>, split: impl AsRef<str>) -> Result<Dataset> {
    let (mut name, split) = (path_or_name.as_ref(), split.as_ref());
    if is_eli5(name) {
        eprintln!("note: {ELI5:?} is no longer published; using {HOME:?} instead");
        name = HOME;
    }
    #[cfg(feature = "hub")]
    if let Some(dataset) = super::load::on_hub(name, &super::Selection::default())? {
        let dataset = dataset.regroup(|path| original_split(Path::new(path)));
        let available = dataset.splits();
        let rename = |asked: &str| match split_of(asked, &available) {
            Some(found) => {
                eprintln!("note: {name} has no split {asked:?}; using its {found:?}");
                found.to_owned()
            }
            None => asked.to_owned(),
        };
        let part = Loader::new(name).part_of(&dataset, split, &rename)?;
        return to_schema(&to_original(&part, name)?, Path::new(name));
    }
    load_eli5_files(name, &crate::hub::resolve("dataset", name)?, split)
}

fn load_eli5_files(name: &str, path: &Path, split: &str) -> Result<Dataset> {
    let files = eli5_files(path)?;
    if files.is_empty() {
        return load_mirror(name, path, split);
    }
    let available: Vec<&str> = files.iter().map(|(split, _)| *split).collect();
    let mut dict = DatasetDict::new();
    for term in split::parse(split)? {
        let Some((known, file)) = files.iter().find(|(known, _)| *known == term.name) else {
            return Err(Error::Split {
                split: split.to_owned(),
                message: format!(
                    "{name} has {}{}",
                    match available[..] {
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
        let original = to_original(loaded.get("train")?, name)?;
        dict.insert(*known, to_schema(&original, file)?);
    }
    dict.split(split)
}

/// Returns a folder whose files have other names than the splits of the original.
fn load_mirror(name: &str, path: &Path, split: &str) -> Result<Dataset> {
    let mut dict = Loader::new(path.to_string_lossy()).load()?;
    let names = dict.names();
    let available: Vec<&str> = names.iter().map(String::as_str).collect();
    for original in SPLITS {
        if let Some(found) = split_of(original, &available) {
            dict.insert(original, dict.get(found)?.clone());
        }
    }
    to_schema(&to_original(&dict.split(split)?, name)?, path)
}

/// Returns the files by split. A Hub name or a folder has one per split, named after it.
fn eli5_files(path: &Path) -> Result<Vec<(&'static str, PathBuf)>> {
    if path.is_file() {
        return Ok(vec![(
            original_split(path).unwrap_or(SPLITS[0]),
            path.to_owned(),
        )]);
    }
    let io = |error| Error::io("read", path, error);
    let mut files = Vec::new();
    for entry in std::fs::read_dir(path).map_err(io)? {
        let file = entry.map_err(io)?.path();
        files.extend(
            original_split(&file)
                .filter(|_| file.is_file())
                .map(|split| (split, file)),
        );
    }
    files.sort();
    if let Some(pair) = files.windows(2).find(|pair| pair[0].0 == pair[1].0) {
        return Err(Error::Dataset(format!(
            "{} and {} both contain the split {}; give the path of one of them",
            pair[0].1.display(),
            pair[1].1.display(),
            pair[0].0
        )));
    }
    files.sort_by_key(|(split, _)| SPLITS.iter().position(|known| known == split));
    Ok(files)
}

/// Returns the split of the original that a file is named after.
fn original_split(path: &Path) -> Option<&'static str> {
    let name = path.file_name()?.to_str()?;
    SPLITS.into_iter().find(|split| name.starts_with(split))
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
    Ok(Dataset::from_parts(schema, batches, content).with_origin(dataset.origin()))
}
