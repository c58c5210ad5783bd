//! Determines splits and a format from the paths in a folder or repository: from the card, or else from names.
//!
//! Only names are used, so this serves both folders and repositories on the Hub.

use glob::{MatchOptions, Pattern};

use super::card::{self, Argument, CardConfig};
use super::source::COMPRESSED;
use super::{FileFormat, Options, SampleBy};
use crate::{Error, Result};

/// The request, besides the name.
#[derive(Clone, Debug, Default)]
pub(crate) struct Selection {
    pub(crate) config: Option<String>,
    pub(crate) format: Option<FileFormat>,
    pub(crate) data_dir: Option<String>,
    pub(crate) data_files: Vec<(String, Vec<String>)>,
}

/// Files by split, their format, and the card's arguments for reading them.
#[derive(Clone, Debug)]
pub(crate) struct Layout {
    pub(crate) format: FileFormat,
    pub(crate) splits: Splits,
    pub(crate) options: Options,
}

/// The paths of every split's files, in order.
pub(crate) type Splits = Vec<(String, Vec<String>)>;

/// Files that describe a dataset and are no part of it.
const DESCRIPTIONS: [&str; 6] = [
    "README.md",
    "config.json",
    "dataset_info.json",
    "dataset_infos.json",
    "dataset_dict.json",
    "state.json",
];

/// Prefixes of text files that accompany data but are not data.
const SIDE_FILES: [&str; 15] = [
    "license",
    "licence",
    "licenses",
    "copying",
    "copyright",
    "notice",
    "readme",
    "changelog",
    "changes",
    "authors",
    "contributors",
    "contributing",
    "citation",
    "requirements",
    "disclaimer",
];

/// The words in the names of files and folders that make a split, and the split's name.
const KEYWORDS: [(&str, &[&str]); 3] = [
    ("train", &["train", "training"]),
    ("validation", &["validation", "valid", "dev", "val"]),
    ("test", &["test", "testing", "eval", "evaluation"]),
];

/// The endings of data files, the formats first that are preferred where there are as many of one as of another.
const FORMATS: [(FileFormat, &[&str]); 7] = [
    (FileFormat::Parquet, &["parquet"]),
    (FileFormat::Json, &["jsonl", "ndjson", "json"]),
    (FileFormat::Csv, &["csv"]),
    (FileFormat::Arrow, &["arrow", "feather", "ipc"]),
    (FileFormat::Tsv, &["tsv"]),
    (FileFormat::Text, &["txt"]),
    (FileFormat::Audio, &["wav", "flac"]),
];

/// The files that say what the recordings of their folder are.
const METADATA: [&str; 2] = ["metadata.csv", "metadata.jsonl"];

/// The endings in words.
pub(super) const KNOWN: &str = ".jsonl, .ndjson, .json, .parquet, .arrow, .csv, .tsv, .txt, also followed by .gz, .bz2, .xz, .zst or .lz4, .wav, .flac; see Loader::format";

/// Returns the format from a file's name.
pub(super) fn format_of(path: &str) -> Option<FileFormat> {
    let name = path
        .rsplit('/')
        .next()
        .unwrap_or_default()
        .to_ascii_lowercase();
    let mut endings = name.rsplit('.');
    let mut ending = endings.next()?;
    if COMPRESSED.contains(&ending) {
        ending = endings.next()?;
    }
    // A name that is nothing but an ending has none.
    endings.next()?;
    FORMATS
        .iter()
        .find(|(_, endings)| endings.contains(&ending))
        .map(|(format, _)| *format)
}

/// Returns which of `files`, the paths in the folder or repository `name`, to load, and as which split.
///
/// # Errors
/// If something is wrong with the card or the request, or no file fits.
pub(crate) fn plan(
    name: &str,
    files: &[String],
    card: Option<&str>,
    request: &Selection,
) -> Result<Layout> {
    let not_found = |message: String| Error::NotFound {
        kind: "dataset",
        name: name.to_owned(),
        message,
    };
    if !request.data_files.is_empty() {
        let base = folder(request.data_dir.as_deref());
        let splits = expand(files, &base, &request.data_files).map_err(not_found)?;
        return by_format(name, splits, request.format, Options::default());
    }
    if let Some(data_dir) = &request.data_dir {
        return by_names(
            name,
            files,
            &folder(Some(data_dir)),
            request.format,
            Options::default(),
        );
    }
    let configs = card.map_or(Ok(Vec::new()), card::configs);
    let configs = configs.map_err(|reason| {
        not_found(format!(
            "its card (README.md) can't be used: {reason}. Correct it, or name the files with Loader::data_files"
        ))
    })?;
    if configs.is_empty() {
        let base = match &request.config {
            None => String::new(),
            Some(config) => {
                let base = folder(Some(config));
                if !files.iter().any(|path| path.starts_with(&base)) {
                    return Err(Error::argument(
                        "config",
                        format!("{name} declares no configurations and has no folder {config:?}"),
                    ));
                }
                base
            }
        };
        return by_names(name, files, &base, request.format, Options::default());
    }
    let config = choose(name, &configs, request.config.as_deref())?;
    let options = options(name, config)?;
    let base = folder(config.data_dir.as_deref());
    if config.data_files.is_empty() {
        return by_names(name, files, &base, request.format, options);
    }
    let splits = expand(files, &base, &config.data_files).map_err(|reason| {
        not_found(format!(
            "{reason}; its card (README.md) names it for the configuration {:?}",
            config.name
        ))
    })?;
    by_format(name, splits, request.format, options)
}

/// Returns the configuration that was asked for, or the one that is meant when none was.
fn choose<'a>(
    name: &str,
    configs: &'a [CardConfig],
    asked: Option<&str>,
) -> Result<&'a CardConfig> {
    let names = || {
        let names: Vec<&str> = configs.iter().map(|config| config.name.as_str()).collect();
        names.join(", ")
    };
    if let Some(asked) = asked {
        let found = configs.iter().find(|config| config.name == asked);
        return found.ok_or_else(|| {
            Error::argument(
                "config",
                format!("{name} has no configuration {asked:?}; it has {}", names()),
            )
        });
    }
    let defaults: Vec<_> = configs.iter().filter(|config| config.is_default).collect();
    match (configs, &defaults[..]) {
        ([only], _) => Ok(only),
        (_, [only]) => Ok(only),
        (_, []) if configs.iter().any(|config| config.name == "default") => {
            choose(name, configs, Some("default"))
        }
        _ => Err(Error::argument(
            "config",
            format!("{name} has several configurations, choose one: {}", names()),
        )),
    }
}

/// Returns the name of the configuration that a card marks as the one that is meant when none is asked for.
#[cfg(feature = "hub")]
pub(crate) fn default_config(card: &str) -> Option<String> {
    let configs = card::configs(card).ok()?;
    let mut marked = configs.into_iter().filter(|config| config.is_default);
    marked.next().map(|config| config.name)
}

/// Arguments that change what is read in pandas and datasets, and that are not supported here.
const UNSUPPORTED: [&str; 22] = [
    "columns",
    "comment",
    "converters",
    "decimal",
    "dtype",
    "escapechar",
    "false_values",
    "filters",
    "header",
    "index_col",
    "keep_default_na",
    "keep_linebreaks",
    "lineterminator",
    "na_values",
    "nrows",
    "quotechar",
    "quoting",
    "skipfooter",
    "skipinitialspace",
    "skiprows",
    "thousands",
    "usecols",
];

/// Returns the configuration's arguments for reading the files of the dataset `name`; those for other readers are ignored.
fn options(name: &str, config: &CardConfig) -> Result<Options> {
    let mut options = Options::default();
    for (key, argument) in &config.arguments {
        match (key.as_str(), argument) {
            ("sep" | "delimiter", Argument::One(text)) => {
                let mut characters = text.chars();
                match (text.as_str(), characters.next(), characters.next()) {
                    ("\\t", ..) => options.set_delimiter('\t')?,
                    (_, Some(one), None) => options.set_delimiter(one)?,
                    _ => {
                        return Err(Error::argument(
                            "delimiter",
                            format!(
                                "the card (README.md) of {name} sets {key} to {text:?}, but a delimiter is one character; \
                                 name the files with Loader::data_files and their delimiter with Loader::delimiter"
                            ),
                        ));
                    }
                }
            }
            ("names" | "column_names", Argument::Several(names)) => {
                options.column_names = Some(names.clone());
            }
            ("sample_by", Argument::One(kind)) => {
                options.sample_by = match kind.as_str() {
                    "paragraph" => SampleBy::Paragraph,
                    "document" => SampleBy::Document,
                    _ => SampleBy::Line,
                };
            }
            ("encoding", Argument::One(label)) => options.set_encoding(label)?,
            ("field", Argument::One(field)) => options.field = Some(field.clone()),
            ("header", Argument::One(row)) if row == "0" || row == "infer" => {}
            _ if UNSUPPORTED.contains(&key.as_str()) => eprintln!(
                "warning: {name}: its card (README.md) sets {key}, which is not supported and has no effect"
            ),
            _ => {}
        }
    }
    Ok(options)
}

/// Returns a folder as the beginning of the paths in it.
fn folder(name: Option<&str>) -> String {
    let name = name.unwrap_or_default().trim_matches('/');
    let name = name.strip_prefix("./").unwrap_or(name);
    match name {
        "" | "." => String::new(),
        name => format!("{name}/"),
    }
}

/// Returns the files that match patterns, by split, sorted and without duplicates.
///
/// # Errors
/// The pattern that means none, in words.
fn expand(
    files: &[String],
    base: &str,
    splits: &[(String, Vec<String>)],
) -> Result<Splits, String> {
    let mut expanded = Vec::new();
    for (split, patterns) in splits {
        let mut paths: Vec<String> = Vec::new();
        for pattern in patterns {
            let mut found = matching(files, base, pattern)?;
            if found.is_empty() {
                return Err(match pattern.contains(['*', '?', '[']) {
                    true => format!(
                        "no file matches the pattern \"{base}{pattern}\" of the split {split:?}"
                    ),
                    false => format!(
                        "there is no file \"{base}{pattern}\", which belongs to the split {split:?}"
                    ),
                });
            }
            found.retain(|path| !paths.contains(path));
            paths.extend(found);
        }
        expanded.push((split.clone(), paths));
    }
    Ok(expanded)
}

/// Returns the files under `base` that match a pattern: a named file, all of a folder, or all matches.
fn matching(files: &[String], base: &str, pattern: &str) -> Result<Vec<String>, String> {
    let pattern = pattern.strip_prefix("./").unwrap_or(pattern);
    let exact = format!("{base}{pattern}");
    if files.contains(&exact) {
        return Ok(vec![exact]);
    }
    let inside = format!("{}/", exact.trim_end_matches('/'));
    let of_folder: Vec<String> = files
        .iter()
        .filter(|path| path.starts_with(&inside) && !is_ignored(&path[inside.len()..]))
        .cloned()
        .collect();
    if !of_folder.is_empty() {
        return Ok(of_folder);
    }
    let compiled = Pattern::new(pattern)
        .map_err(|error| format!("the pattern {pattern:?} is malformed: {error}"))?;
    let options = MatchOptions {
        require_literal_separator: true,
        ..MatchOptions::new()
    };
    let fits = |path: &&String| {
        let inner = path.strip_prefix(base);
        inner.is_some_and(|inner| !is_ignored(inner) && compiled.matches_with(inner, options))
    };
    Ok(files.iter().filter(fits).cloned().collect())
}

/// Returns the splits recognised in the names of the files under `base`.
fn by_names(
    name: &str,
    files: &[String],
    base: &str,
    format: Option<FileFormat>,
    options: Options,
) -> Result<Layout> {
    let is_data = |path: &&String| {
        let inner = path.strip_prefix(base);
        inner.is_some_and(|inner| {
            !is_ignored(inner) && (format.is_some() || format_of(inner).is_some())
        })
    };
    let mut data: Vec<String> = files.iter().filter(is_data).cloned().collect();
    if data.iter().any(|path| !is_side_file(path)) {
        data.retain(|path| !is_side_file(path));
    }
    if data.is_empty() {
        let place = match base {
            "" => name.to_owned(),
            base => format!("{} of {name}", base.trim_end_matches('/')),
        };
        let some = files
            .iter()
            .filter(|path| path.starts_with(base))
            .map(String::as_str)
            .take(10)
            .collect::<Vec<_>>()
            .join(", ");
        let holds = match some.as_str() {
            "" => "it contains no files".to_owned(),
            some if some.contains(".py") => {
                format!("it contains {some}. Datasets made by a script must be converted first")
            }
            some => format!("it holds {some}"),
        };
        return Err(Error::NotFound {
            kind: "dataset",
            name: name.to_owned(),
            message: format!("no file in {place} has a known format ({KNOWN}); {holds}"),
        });
    }
    let (metadata, others): (Vec<_>, Vec<_>) = data.iter().cloned().partition(|p| is_metadata(p));
    let sound = match format {
        Some(format) => format == FileFormat::Audio,
        None => most_frequent(&others) == Some(FileFormat::Audio),
    };
    if sound {
        data = others;
    }
    let mut layout = by_format(name, split_by_names(base, &data), format, options)?;
    if sound {
        // They may lie above the folders of all splits.
        for (_, paths) in &mut layout.splits {
            paths.extend(metadata.iter().cloned());
        }
    }
    let used: Vec<&String> = layout.splits.iter().flat_map(|(_, paths)| paths).collect();
    let left: Vec<&str> = data
        .iter()
        .filter(|path| !used.contains(path))
        .map(String::as_str)
        .collect();
    if !left.is_empty() {
        let shown = left.iter().take(5).copied().collect::<Vec<_>>().join(", ");
        let more = match left.len() {
            ..=5 => String::new(),
            count => format!(" and {} more", count - 5),
        };
        eprintln!(
            "note: {name}: these of its data files are not loaded, because their names or formats differ from the others: {shown}{more}; Loader::data_files names the files of every split"
        );
    }
    Ok(layout)
}

/// Finds the format of every split's files, which must be the same for all, and leaves other files out.
pub(super) fn by_format(
    name: &str,
    mut splits: Splits,
    format: Option<FileFormat>,
    options: Options,
) -> Result<Layout> {
    if let Some(format) = format {
        if format == FileFormat::Audio {
            for (_, paths) in &mut splits {
                paths.retain(|path| is_metadata(path) || format_of(path) == Some(format));
            }
        }
        return Ok(Layout {
            format,
            splits,
            options,
        });
    }
    let not_found = |message: String| Error::NotFound {
        kind: "dataset",
        name: name.to_owned(),
        message,
    };
    let mut chosen: Option<(FileFormat, &str)> = None;
    for (split, paths) in &splits {
        let found = most_frequent(paths).ok_or_else(|| {
            let shown = paths.iter().take(5).map(String::as_str).collect::<Vec<_>>();
            not_found(format!(
                "no file of the split {split:?} ({}) has a known format ({KNOWN})",
                shown.join(", ")
            ))
        })?;
        match chosen {
            Some((format, other)) if format != found => {
                return Err(not_found(format!(
                    "the files of the split {other:?} are {format:?} and those of {split:?} are {found:?}, but a dataset must have one format; name the files with Loader::data_files, or choose with Loader::format"
                )));
            }
            _ => chosen = Some((found, split)),
        }
    }
    let (format, _) = chosen.ok_or_else(|| not_found("no files were named".to_owned()))?;
    for (_, paths) in &mut splits {
        let describes = |path: &str| format == FileFormat::Audio && is_metadata(path);
        paths.retain(|path| format_of(path) == Some(format) || describes(path));
    }
    Ok(Layout {
        format,
        splits,
        options,
    })
}

/// Returns the format that most files have; of equally many the one that is named first.
fn most_frequent(paths: &[String]) -> Option<FileFormat> {
    let sound = |path: &String| format_of(path) == Some(FileFormat::Audio);
    // What describes recordings is none of the others' data.
    let describes = |path: &String| is_metadata(path) && paths.iter().any(sound);
    let count = |format: FileFormat| {
        let of_it = paths.iter().filter(|path| format_of(path) == Some(format));
        of_it.filter(|path| !describes(path)).count()
    };
    // The last of equals is taken, so the preferred ones come last.
    FORMATS
        .iter()
        .rev()
        .map(|(format, _)| (count(*format), *format))
        .filter(|(count, _)| *count > 0)
        .max_by_key(|(count, _)| *count)
        .map(|(_, format)| format)
}

/// Returns whether a file contains metadata of the recordings in its folder.
pub(super) fn is_metadata(path: &str) -> bool {
    METADATA.contains(&path.rsplit('/').next().unwrap_or_default())
}

/// Returns whether a file is hidden, private or a description.
pub(super) fn is_ignored(path: &str) -> bool {
    let mut parts = path.split('/').rev();
    let name = parts.next().unwrap_or_default();
    let hidden = |part: &str| part.starts_with('.') && part != "." && part != "..";
    DESCRIPTIONS.contains(&name)
        || hidden(name)
        || parts.any(|part| hidden(part) || part.starts_with("__"))
}

/// Returns whether a text file customarily accompanies data: a licence, a list of requirements.
fn is_side_file(path: &str) -> bool {
    let name = path
        .rsplit('/')
        .next()
        .unwrap_or_default()
        .to_ascii_lowercase();
    let word = name.split(['.', '-', '_', ' ']).next().unwrap_or_default();
    format_of(path) == Some(FileFormat::Text) && SIDE_FILES.contains(&word)
}

/// Assigns files to splits by their names relative to `base`; all of them are `train` if no name is recognised.
fn split_by_names(base: &str, paths: &[String]) -> Splits {
    type Rule = fn(&str) -> Option<String>;
    let rules: [Rule; 3] = [shard_split, folder_split, file_split];
    for rule in rules {
        let mut found: Splits = Vec::new();
        for path in paths {
            let Some(split) = rule(path.strip_prefix(base).unwrap_or(path)) else {
                continue;
            };
            match found.iter_mut().find(|(name, _)| *name == split) {
                Some((_, files)) => files.push(path.clone()),
                None => found.push((split, vec![path.clone()])),
            }
        }
        if !found.is_empty() {
            let rank = |name: &str| {
                let known = KEYWORDS.iter().position(|(split, _)| *split == name);
                known.unwrap_or(KEYWORDS.len())
            };
            found.sort_by(|(a, _), (b, _)| (rank(a), a).cmp(&(rank(b), b)));
            return found;
        }
    }
    vec![("train".to_owned(), paths.to_vec())]
}

/// Returns `data/NAME-00000-of-00003...`
fn shard_split(path: &str) -> Option<String> {
    let name = path
        .strip_prefix("data/")
        .filter(|name| !name.contains('/'))?;
    name.match_indices("-of-").find_map(|(of, _)| {
        let digits = |part: &str| part.len() == 5 && part.bytes().all(|byte| byte.is_ascii_digit());
        let (before, after) = (name.get(..of)?, name.get(of + 4..of + 9)?);
        let (split, number) = before.rsplit_once('-')?;
        (digits(number) && digits(after) && !split.is_empty()).then(|| split.to_owned())
    })
}

fn folder_split(path: &str) -> Option<String> {
    let mut folders = path.rsplit('/').skip(1);
    folders.find_map(|folder| keyword_split(folder, true))
}

fn file_split(path: &str) -> Option<String> {
    keyword_split(path.rsplit('/').next()?, false)
}

/// Returns the split whose word is in `name` between separators, or only at its end if `whole_end`.
fn keyword_split(name: &str, whole_end: bool) -> Option<String> {
    let separator = |byte: u8| b"-._ ".contains(&byte) || byte.is_ascii_digit();
    let bytes = name.as_bytes();
    let has = |word: &str| {
        name.match_indices(word).any(|(start, _)| {
            let end = start + word.len();
            let ends = if end == bytes.len() {
                whole_end
            } else {
                separator(bytes[end])
            };
            (start == 0 || separator(bytes[start - 1])) && ends
        })
    };
    KEYWORDS
        .iter()
        .find(|(_, words)| words.iter().any(|word| has(word)))
        .map(|(split, _)| (*split).to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn owned(files: &[&str]) -> Vec<String> {
        files.iter().map(|file| (*file).to_owned()).collect()
    }

    fn planned(files: &[&str], card: Option<&str>, request: &Selection) -> Result<Layout> {
        let mut files = owned(files);
        files.sort();
        plan("x", &files, card, request)
    }

    fn split_of(files: &[&str]) -> Splits {
        planned(files, None, &Selection::default()).unwrap().splits
    }

    fn splits(expected: &[(&str, &[&str])]) -> Splits {
        expected
            .iter()
            .map(|(split, files)| ((*split).to_owned(), owned(files)))
            .collect()
    }

    #[test]
    fn folders_give_the_same_splits_as_in_datasets() {
        assert_eq!(
            split_of(&[
                "test.jsonl",
                "train-0.jsonl",
                "train-1.jsonl",
                "my_dev.jsonl",
                "README.md",
                "extra.jsonl"
            ]),
            splits(&[
                ("train", &["train-0.jsonl", "train-1.jsonl"]),
                ("validation", &["my_dev.jsonl"]),
                ("test", &["test.jsonl"]),
            ])
        );
        assert_eq!(
            split_of(&["train/a.csv", "train/b.csv", "test-set/a.csv"]),
            splits(&[
                ("train", &["train/a.csv", "train/b.csv"]),
                ("test", &["test-set/a.csv"])
            ])
        );
        assert_eq!(
            split_of(&[
                "data/zeta-00000-of-00001-abc.parquet",
                "data/test-00000-of-00001.parquet"
            ]),
            splits(&[
                ("test", &["data/test-00000-of-00001.parquet"]),
                ("zeta", &["data/zeta-00000-of-00001-abc.parquet"]),
            ])
        );
        assert_eq!(
            split_of(&[
                "b.txt",
                "deep/a.txt",
                ".hidden/train.txt",
                "__pycache__/x.txt",
                "trainers.txt"
            ]),
            splits(&[("train", &["b.txt", "deep/a.txt", "trainers.txt"])])
        );
    }

    #[test]
    fn split_names_take_precedence_over_the_most_common_format() {
        let side = [
            "LICENSE.txt",
            "notes.txt",
            "requirements-test.txt",
            "todo.txt",
        ];
        let with = |data: &[&'static str]| split_of(&[&side[..], data].concat());
        assert_eq!(
            with(&["train.jsonl", "eval.jsonl"]),
            splits(&[("train", &["train.jsonl"]), ("test", &["eval.jsonl"])])
        );
        assert_eq!(
            with(&["train.csv.gz", "training-2.csv"]),
            splits(&[("train", &["train.csv.gz", "training-2.csv"])])
        );
        // Without such names the format of most files counts, but a licence is no data.
        assert_eq!(
            split_of(&["a.jsonl", "LICENSE.txt", "requirements.txt", "COPYING.txt"]),
            splits(&[("train", &["a.jsonl"])])
        );
        assert_eq!(
            split_of(&["a.jsonl", "notes.txt"]),
            splits(&[("train", &["a.jsonl"])])
        );
        assert_eq!(
            split_of(&["a.parquet", "a.csv"]),
            splits(&[("train", &["a.parquet"])])
        );
        assert_eq!(
            split_of(&["license.txt"]),
            splits(&[("train", &["license.txt"])])
        );
        let error = planned(&["train.csv", "test.jsonl"], None, &Selection::default())
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("\"train\" are Csv and those of \"test\" are Json"),
            "{error}"
        );
    }

    const CARD: &str = "---\nconfigs:\n- config_name: en\n  data_files:\n  - split: train\n    path: en/*.csv\n  - split: held\n    \
                        path: [more/b.csv, 'more/**/c*.csv']\n  sep: ';'\n- config_name: de\n  data_dir: german\n---\n# x\n";

    #[test]
    fn the_card_determines_the_splits() {
        let files = [
            "en/a.csv",
            "en/deep/x.csv",
            "en/b.csv",
            "more/b.csv",
            "more/one/two/c3.csv",
            "german/train.jsonl",
            "german/test.jsonl",
            "train.csv",
        ];
        let config = |name: Option<&str>| Selection {
            config: name.map(str::to_owned),
            ..Selection::default()
        };
        let en = planned(&files, Some(CARD), &config(Some("en"))).unwrap();
        assert_eq!(
            en.splits,
            splits(&[
                ("train", &["en/a.csv", "en/b.csv"]),
                ("held", &["more/b.csv", "more/one/two/c3.csv"])
            ])
        );
        assert_eq!(en.options.delimiter, Some(b';'));
        let de = planned(&files, Some(CARD), &config(Some("de"))).unwrap();
        assert_eq!(
            de.splits,
            splits(&[
                ("train", &["german/train.jsonl"]),
                ("test", &["german/test.jsonl"])
            ])
        );
        let error = planned(&files, Some(CARD), &config(None))
            .unwrap_err()
            .to_string();
        assert!(error.contains("choose one: en, de"), "{error}");
        let error = planned(&files, Some(CARD), &config(Some("fr")))
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("no configuration \"fr\"; it has en, de"),
            "{error}"
        );
        let marked = CARD.replace("config_name: de", "config_name: de\n  default: true");
        assert_eq!(
            planned(&files, Some(&marked), &config(None))
                .unwrap()
                .splits,
            de.splits
        );
        let named = CARD.replace("config_name: de", "config_name: default");
        assert_eq!(
            planned(&files, Some(&named), &config(None)).unwrap().splits,
            de.splits
        );
    }

    #[test]
    fn a_name_with_a_data_files_ending_is_no_repository() {
        let formats = FORMATS.iter().flat_map(|(_, endings)| endings.iter());
        for ending in formats.chain(&COMPRESSED) {
            let name = format!("own/absent.{ending}");
            let error = super::super::files::locate(&name).unwrap_err().to_string();
            assert!(error.contains("there is no such file"), "{error}");
        }
    }

    #[test]
    fn an_inconsistent_card_is_reported() {
        for (card, expected) in [
            (
                CARD.replace("en/*.csv", "nothing/*.csv"),
                "no file matches the pattern \"nothing/*.csv\"",
            ),
            (
                CARD.replace("en/*.csv", "absent.csv"),
                "there is no file \"absent.csv\"",
            ),
            (CARD.replace("en/*.csv", "a/***.csv"), "malformed"),
            (
                CARD.replace("- config_name: en", "- no_name: en"),
                "no config_name",
            ),
            (CARD.replace("';'", "'||'"), "sets sep to \"||\""),
            (CARD.replace("';'", "''"), "sets sep to \"\""),
        ] {
            let request = Selection {
                config: Some("en".to_owned()),
                ..Selection::default()
            };
            let error = planned(&["en/a.csv", "more/b.csv"], Some(&card), &request)
                .unwrap_err()
                .to_string();
            assert!(
                error.contains(expected) && error.contains("README.md"),
                "{error}"
            );
        }
    }

    #[test]
    fn files_may_be_given_by_split() {
        let request = Selection {
            data_files: vec![
                ("a".to_owned(), owned(&["x/*.jsonl", "y.jsonl"])),
                ("b".to_owned(), owned(&["z"])),
            ],
            data_dir: Some("sub/".to_owned()),
            ..Selection::default()
        };
        let files = [
            "sub/x/2.jsonl",
            "sub/x/1.jsonl",
            "sub/y.jsonl",
            "sub/z/q.jsonl",
            "x/3.jsonl",
        ];
        // They come before what a card says.
        let layout = planned(&files, Some(CARD), &request).unwrap();
        assert_eq!(
            layout.splits,
            splits(&[
                ("a", &["sub/x/1.jsonl", "sub/x/2.jsonl", "sub/y.jsonl"]),
                ("b", &["sub/z/q.jsonl"])
            ])
        );
    }

    #[test]
    fn an_error_lists_what_was_found_instead_of_data() {
        let error = planned(&["eli5.py", "README.md"], None, &Selection::default())
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("script") && error.contains("eli5.py"),
            "{error}"
        );
        assert_eq!(format_of("deep.er/lines.JSONL.gz"), Some(FileFormat::Json));
        assert_eq!(format_of("a.tar.gz"), None);
        assert_eq!(format_of("csv"), None);
        assert_eq!(format_of(".csv"), Some(FileFormat::Csv));
    }
}
