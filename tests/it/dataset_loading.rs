//! Loading what people have: cards, side files, compressed files, other line ends, and files that are not quite right.

use std::path::{Path, PathBuf};

use cloze::dataset::{DatasetDict, Loader, concatenate, load_dataset};

/// A folder with these files.
fn folder(files: &[(&str, &[u8])]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for (name, bytes) in files {
        let path = folder.path().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, bytes).unwrap();
    }
    folder
}

fn load(path: impl AsRef<Path>) -> cloze::Result<DatasetDict> {
    Loader::new(path.as_ref().to_str().unwrap())
        .cache(false)
        .load()
}

/// Every split with its rows.
fn rows(dict: &DatasetDict) -> Vec<(String, Vec<String>)> {
    dict.iter()
        .map(|(name, dataset)| {
            (
                name.to_owned(),
                dataset.iter().map(|row| row.to_string()).collect(),
            )
        })
        .collect()
}

fn split(name: &str, rows: &[&str]) -> (String, Vec<String>) {
    (
        name.to_owned(),
        rows.iter().map(|row| (*row).to_owned()).collect(),
    )
}

#[test]
fn the_card_of_a_folder_determines_its_splits() {
    let card = b"---\nconfigs:\n- config_name: main\n  data_files:\n  - split: train\n    path: 'part-*.csv'\n  - split: secret\n    \
                 path: held/x.csv\n  sep: '|'\n- config_name: other\n  data_dir: held\n---\n# Words\n";
    let folder = folder(&[
        ("README.md", card),
        ("part-1.csv", b"a|b\n1|x\n"),
        ("part-2.csv", b"a|b\n2|y\n"),
        ("held/x.csv", b"a|b\n3|z\n"),
        ("train.csv", b"never\n"),
    ]);
    let loader = || Loader::new(folder.path().to_str().unwrap()).cache(false);
    let error = loader().load().unwrap_err().to_string();
    assert!(error.contains("main, other"), "{error}");
    assert_eq!(
        rows(&loader().config("main").load().unwrap()),
        [
            split("train", &["{'a': 1, 'b': 'x'}", "{'a': 2, 'b': 'y'}"]),
            split("secret", &["{'a': 3, 'b': 'z'}"]),
        ]
    );
    assert_eq!(
        loader().config("other").load().unwrap()["train"].column_names(),
        ["a|b"]
    );
    let named = loader()
        .data_files("mine", ["held/x.csv"])
        .delimiter('|')
        .load()
        .unwrap();
    assert_eq!(rows(&named), [split("mine", &["{'a': 3, 'b': 'z'}"])]);
}

#[test]
fn other_files_in_the_folder_are_ignored() {
    let folder = folder(&[
        ("LICENSE.txt", b"words\n"),
        ("CHANGES.txt", b"words\n"),
        ("notes.txt", b"words\n"),
        ("more.txt", b"words\n"),
        ("dev.jsonl", b"{\"t\": 2}\n"),
        ("train.jsonl", b"{\"t\": 1}\n"),
    ]);
    assert_eq!(
        rows(&load(folder.path()).unwrap()),
        [
            split("train", &["{'t': 1}"]),
            split("validation", &["{'t': 2}"])
        ]
    );
}

#[test]
fn compressed_files_are_recognised_by_content_and_by_name() {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/compressed");
    let expected = [
        "{'word': 'uno', 'n': 1}",
        "{'word': 'dos', 'n': 2}",
        "{'word': 'tres', 'n': 3}",
    ];
    let home = tempfile::tempdir().unwrap();
    for ending in ["gz", "bz2", "xz"] {
        let path = fixtures.join(format!("words.jsonl.{ending}"));
        assert_eq!(
            rows(&load(&path).unwrap()),
            [split("train", &expected)],
            "{ending}"
        );
        // Whatever it is called, and in a folder that tells its split.
        let inside = home
            .path()
            .join(ending)
            .join(format!("test.jsonl.{ending}"));
        std::fs::create_dir_all(inside.parent().unwrap()).unwrap();
        std::fs::copy(&path, &inside).unwrap();
        assert_eq!(
            rows(&load(inside.parent().unwrap()).unwrap()),
            [split("test", &expected)]
        );
        let nameless = home.path().join(format!("nameless-{ending}"));
        std::fs::copy(&path, &nameless).unwrap();
        assert_eq!(
            rows(&load(&nameless).unwrap()),
            [split("train", &expected)],
            "{ending}"
        );
        // Cut short, it is no shorter dataset.
        let bytes = std::fs::read(&path).unwrap();
        std::fs::write(&inside, &bytes[..bytes.len() - 9]).unwrap();
        let error = load(&inside).unwrap_err().to_string();
        assert!(error.contains("truncated or damaged"), "{error}");
    }
    let zip = home.path().join("data.jsonl");
    std::fs::write(&zip, b"PK\x03\x04 and so on").unwrap();
    let error = load(&zip).unwrap_err().to_string();
    assert!(error.contains("ZIP archive"), "{error}");
}

#[test]
fn a_compressed_parquet_file_opens() {
    let folder = folder(&[("a.jsonl", b"{\"t\": 1}\n{\"t\": 2}\n")]);
    let path = folder.path().join("a.parquet");
    load(folder.path().join("a.jsonl")).unwrap()["train"]
        .to_parquet(&path)
        .unwrap();
    let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    std::io::Write::write_all(&mut packed, &std::fs::read(&path).unwrap()).unwrap();
    let path = folder.path().join("b.parquet.gz");
    std::fs::write(&path, packed.finish().unwrap()).unwrap();
    let cache = tempfile::tempdir().unwrap();
    let dict = Loader::new(path.to_str().unwrap())
        .cache_dir(cache.path())
        .load()
        .unwrap();
    assert_eq!(rows(&dict), [split("train", &["{'t': 1}", "{'t': 2}"])]);
}

#[test]
fn a_byte_order_mark_before_data_is_skipped() {
    let expected = [split(
        "train",
        &["{'t': 'é', 'n': 1}", "{'t': 'b', 'n': 2}"],
    )];
    for (name, text) in [
        (
            "lines.jsonl",
            "{\"t\": \"é\", \"n\": 1}\n{\"t\": \"b\", \"n\": 2}\n",
        ),
        (
            "list.json",
            "[{\"t\": \"é\", \"n\": 1}, {\"t\": \"b\", \"n\": 2}]",
        ),
        (
            "list_on_lines.json",
            "\n[\n{\"t\": \"é\", \"n\": 1},\n{\"t\": \"b\", \"n\": 2}\n]\n",
        ),
        ("table.csv", "t,n\né,1\nb,2\n"),
        ("table.tsv", "t\tn\né\t1\nb\t2\n"),
    ] {
        let utf8 = [b"\xef\xbb\xbf", text.as_bytes()].concat();
        let utf16 = |bytes: fn(u16) -> [u8; 2]| -> Vec<u8> {
            let units = format!("\u{feff}{text}");
            units.encode_utf16().flat_map(bytes).collect()
        };
        let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        std::io::Write::write_all(&mut packed, &utf8).unwrap();
        for (name, bytes) in [
            (name.to_owned(), utf8),
            (name.to_owned(), utf16(u16::to_le_bytes)),
            (name.to_owned(), utf16(u16::to_be_bytes)),
            (format!("{name}.gz"), packed.finish().unwrap()),
        ] {
            let folder = folder(&[(&name, &bytes)]);
            let dict = load(folder.path().join(&name)).unwrap();
            assert_eq!(rows(&dict), expected, "{name}");
        }
    }
}

#[test]
fn a_doubly_compressed_file_is_named() {
    let gzip = |bytes: &[u8]| {
        let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        std::io::Write::write_all(&mut packed, bytes).unwrap();
        packed.finish().unwrap()
    };
    let words = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/compressed");
    for inner in ["gz", "bz2", "xz"] {
        let inside = std::fs::read(words.join(format!("words.jsonl.{inner}"))).unwrap();
        for name in ["a.jsonl.gz", "a.csv.gz", "a.txt.gz", "a", "a.parquet.gz"] {
            let folder = folder(&[(name, &gzip(&inside))]);
            let error = load(folder.path().join(name)).unwrap_err().to_string();
            assert!(
                error.contains("compressed twice") && error.contains(name),
                "{error}"
            );
        }
    }
}

#[test]
fn all_three_line_endings_are_read() {
    let folder = folder(&[
        ("mac.txt", b"uno\rdos\r\rtres"),
        ("twice.txt", b"uno\r\r\ndos\r\n"),
        ("mixed.txt", b"uno\ndos\r\ntres\rcuatro\n"),
        (
            "lines.jsonl",
            b"{\"t\":\"a\\r\"}\r{\"t\":\"b\"}\r\r\n{\"t\":\"c\"}",
        ),
    ]);
    let texts = |name: &str, column: &str| {
        load(folder.path().join(name)).unwrap()["train"]
            .column::<String>(column)
            .unwrap()
    };
    assert_eq!(texts("mac.txt", "text"), ["uno", "dos", "", "tres"]);
    assert_eq!(texts("twice.txt", "text"), ["uno", "", "dos"]);
    assert_eq!(texts("mixed.txt", "text"), ["uno", "dos", "tres", "cuatro"]);
    assert_eq!(texts("lines.jsonl", "t"), ["a\r", "b", "c"]);
}

#[test]
fn nan_and_infinities_are_read_from_json() {
    for text in [
        "{\"s\": NaN, \"t\": \"NaN\", \"l\": [1, Infinity]}\n{\"s\": -Infinity, \"t\": \"x\", \"l\": []}\n{\"s\": 2, \"t\": null, \"l\": null}\n",
        "[{\"s\": NaN, \"t\": \"NaN\", \"l\": [1, Infinity]},\n {\"s\": -Infinity, \"t\": \"x\", \"l\": []}, {\"s\": 2, \"t\": null, \"l\": null}]",
    ] {
        let folder = folder(&[("scores.json", text.as_bytes())]);
        let dataset = load(folder.path()).unwrap()["train"].clone();
        let scores = dataset.column::<f64>("s").unwrap();
        assert!(scores[0].is_nan());
        assert_eq!(scores[1..], [f64::NEG_INFINITY, 2.0]);
        assert_eq!(
            dataset.column::<Option<String>>("t").unwrap()[0].as_deref(),
            Some("NaN")
        );
        let lists = dataset.column::<Option<Vec<f64>>>("l").unwrap();
        assert_eq!(lists[0].as_deref(), Some(&[1.0, f64::INFINITY][..]));
    }
    let folder = folder(&[("bad.jsonl", b"{\"s\": nan}\n")]);
    let error = load(folder.path()).unwrap_err().to_string();
    assert!(error.contains("line 1"), "{error}");
}

#[test]
fn files_with_different_columns_are_refused_in_any_order_with_valid_advice() {
    // Within a file records may lack fields.
    let folder = folder(&[
        ("a.csv", b"t\n1\n"),
        ("b.csv", b"t,u\n2,x\n"),
        ("a.jsonl", b"{\"t\": 1}\n"),
        ("b.jsonl", b"{\"t\": 1}\n{\"t\": 2, \"u\": \"x\"}\n"),
    ]);
    let path = |name: &str| folder.path().join(name);
    for order in [
        ["a.csv", "b.csv"],
        ["b.csv", "a.csv"],
        ["a.jsonl", "b.jsonl"],
        ["b.jsonl", "a.jsonl"],
    ] {
        let error = Loader::from_files(order.map(path))
            .load()
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("\"u\"") && error.contains("concatenate"),
            "{error}"
        );
        assert!(
            error.contains(order[0]) && error.contains(order[1]),
            "{error}"
        );
        let parts = order.map(|name| load(path(name)).unwrap()["train"].clone());
        let all = concatenate(&parts).unwrap();
        let texts = all.column::<Option<String>>("u").unwrap();
        assert_eq!(texts.iter().flatten().count(), 1, "{order:?}");
    }
}

#[test]
fn any_column_name_round_trips() {
    let folder = folder(&[("table.csv", b",a,a,\nx,1,2,y\n")]);
    let dataset = load(folder.path()).unwrap()["train"].clone();
    assert_eq!(
        dataset.column_names(),
        ["Unnamed: 0", "a", "a.1", "Unnamed: 3"]
    );
    let nameless = dataset.rename_column("a", "").unwrap();
    let lines = folder.path().join("out.jsonl");
    nameless.to_json_lines(&lines).unwrap();
    let parquet = folder.path().join("out.parquet");
    nameless.to_parquet(&parquet).unwrap();
    for path in [lines, parquet] {
        let back = load(&path).unwrap()["train"].clone();
        assert_eq!(back.column_names(), ["Unnamed: 0", "", "a.1", "Unnamed: 3"]);
        assert_eq!(
            back.row(0).unwrap().to_string(),
            nameless.row(0).unwrap().to_string()
        );
    }
}

#[test]
fn a_list_of_files_is_one_split_and_each_split_may_have_a_list() {
    let folder = folder(&[
        ("a.txt", b"a\n"),
        ("sub/b.txt", b"b\n"),
        ("c.txt.gz", b"c\n"),
    ]);
    let path = |name: &str| -> PathBuf { folder.path().join(name) };
    let list =
        Loader::from_files([path("c.txt.gz"), path("a.txt"), path("sub/*.txt")]).cache(false);
    assert_eq!(
        list.load().unwrap()["train"]
            .column::<String>("text")
            .unwrap(),
        ["c", "a", "b"]
    );
    let splits = Loader::new("text")
        .cache(false)
        .data_files("one", [path("a.txt")])
        .data_files("two", [path("sub")])
        .data_files("one", [path("c.txt.gz")]);
    assert_eq!(
        rows(&splits.load().unwrap()),
        [
            split("one", &["{'text': 'a'}", "{'text': 'c'}"]),
            split("two", &["{'text': 'b'}"]),
        ]
    );
    let error = Loader::from_files([path("absent-*.txt")])
        .load()
        .unwrap_err()
        .to_string();
    assert!(error.contains("no file matches the pattern"), "{error}");
}

#[test]
fn unknown_names_are_reported_without_network_access() {
    let folder = folder(&[("train.jsonl", b"{}"), ("empty/.keep", b"")]);
    let name = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    for (name, expected) in [
        (name("trian.jsonl"), "did you mean"),
        (
            "data/trian.jsonl".to_owned(),
            "no such file or folder \"data/trian.jsonl\"",
        ),
        ("trian.jsonl.gz".to_owned(), "no such file or folder"),
        (name("*.csv"), "no file matches the pattern"),
        (name("empty"), "is empty"),
    ] {
        let error = load_dataset(&name).unwrap_err().to_string();
        assert!(
            error.contains(expected) && !error.contains("hub:"),
            "{error}"
        );
    }
    let pointer = b"version https://git-lfs.example/spec/v1\noid sha256:0\nsize 9\n";
    std::fs::write(folder.path().join("train.jsonl"), pointer).unwrap();
    let error = load(folder.path()).unwrap_err().to_string();
    assert!(error.contains("Git LFS pointer"), "{error}");
}

#[test]
fn sparse_records_do_not_exhaust_memory() {
    let lines: String = (0..5000).map(|n| format!("{{\"k{n}\":1}}\n")).collect();
    let folder = folder(&[("a.jsonl", lines.as_bytes())]);
    let started = std::time::Instant::now();
    let error = load(folder.path()).unwrap_err().to_string();
    assert!(
        error.contains("share so few of their 5000 fields"),
        "{error}"
    );
    assert!(started.elapsed().as_secs_f64() < 2.0);
}
