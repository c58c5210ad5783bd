//! Datasets against datasets: loading, splits, flatten, blocks, and what bad input says.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use cloze::Error;
use cloze::dataset::{eli5_schema, type_name};
use cloze::prelude::*;
use safetensors::SafeTensors;
use serde_json::Value as Json;

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tests/fixtures/guide")
        .join(name)
}

fn load(name: &str) -> DatasetDict {
    load_dataset(fixture(name).to_str().unwrap()).unwrap()
}

fn expected(folder: &str) -> Json {
    let bytes = std::fs::read(fixture(folder).join("expected.json")).unwrap();
    serde_json::from_slice(&bytes).unwrap()
}

fn strings(values: &Json) -> Vec<String> {
    values
        .as_array()
        .unwrap()
        .iter()
        .map(|value| value.as_str().unwrap().to_owned())
        .collect()
}

fn ids(dataset: &Dataset) -> Vec<String> {
    dataset.column("q_id").unwrap()
}

/// `datasets`' words for a type.
fn python_type(data_type: &arrow::datatypes::DataType) -> String {
    use arrow::datatypes::DataType;
    match data_type {
        DataType::List(item) => format!("List({})", python_type(item.data_type())),
        DataType::Struct(fields) => {
            let fields: Vec<String> = fields
                .iter()
                .map(|f| format!("'{}': {}", f.name(), python_type(f.data_type())))
                .collect();
            format!("{{{}}}", fields.join(", "))
        }
        other => format!("Value('{}')", type_name(other)),
    }
}

fn python_features(dataset: &Dataset) -> Vec<(String, String)> {
    let fields = dataset.schema().fields();
    fields
        .iter()
        .map(|field| (field.name().clone(), python_type(field.data_type())))
        .collect()
}

fn write(name: &str, content: impl AsRef<[u8]>) -> (tempfile::TempDir, String) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(name);
    std::fs::write(&path, content).unwrap();
    let path = path.to_str().unwrap().to_owned();
    (folder, path)
}

fn load_error(name: &str, content: impl AsRef<[u8]>) -> String {
    let (_folder, path) = write(name, content);
    load_dataset(&path).unwrap_err().to_string()
}

#[test]
fn columns_and_types_equal_those_of_datasets_for_json_and_parquet() {
    let expected = expected("eli5");
    for (format, file) in [
        ("json", "eli5/train_asks.jsonl"),
        ("parquet", "eli5/train_asks.parquet"),
    ] {
        let dataset = load(file)["train"].clone();
        let expected = &expected[format];
        let features = |name: &str| -> Vec<(String, String)> {
            expected[name]
                .as_array()
                .unwrap()
                .iter()
                .map(|pair| {
                    (
                        pair[0].as_str().unwrap().to_owned(),
                        pair[1].as_str().unwrap().to_owned(),
                    )
                })
                .collect()
        };
        assert_eq!(dataset.len(), 65);
        assert_eq!(dataset.column_names(), strings(&expected["column_names"]));
        assert_eq!(python_features(&dataset), features("features"), "{format}");
        let flat = dataset.flatten().unwrap();
        assert_eq!(
            flat.column_names(),
            strings(&expected["flatten_column_names"])
        );
        assert_eq!(
            python_features(&flat),
            features("flatten_features"),
            "{format}"
        );
    }
}

#[test]
fn json_and_parquet_give_the_same_rows() {
    let lines = std::fs::read_to_string(fixture("eli5/train_asks.jsonl")).unwrap();
    let (json, parquet) = (
        load("eli5/train_asks.jsonl"),
        load("eli5/train_asks.parquet"),
    );
    let lengths: Vec<usize> = expected("eli5")["answers_text_lengths"]
        .as_array()
        .unwrap()
        .iter()
        .map(|n| n.as_u64().unwrap() as usize)
        .collect();
    for (i, line) in lines.lines().enumerate() {
        let source: Json = serde_json::from_str(line).unwrap();
        for dict in [&json, &parquet] {
            let row = dict["train"].row(i).unwrap();
            assert_eq!(row["title"], source["title"].as_str().unwrap());
            let texts = row
                .get("answers")
                .unwrap()
                .get("text")
                .unwrap()
                .as_list()
                .unwrap();
            assert_eq!(texts.len(), lengths[i]);
            for (text, source) in texts
                .iter()
                .zip(source["answers"]["text"].as_array().unwrap())
            {
                assert_eq!(text.as_str(), source.as_str());
            }
            for (score, source) in row["answers"]["score"]
                .as_list()
                .unwrap()
                .iter()
                .zip(source["answers"]["score"].as_array().unwrap())
            {
                assert_eq!(score.as_i64(), source.as_i64());
            }
        }
    }
}

#[test]
fn columns_of_nulls_work_everywhere() {
    // title_urls.url is a list of nulls here.
    let dataset = load("eli5/train_asks.jsonl")["train"].shuffle(1).unwrap();
    let expected: Vec<Row> = dataset.iter().collect();
    let copied = dataset
        .map(
            Map::new(|batch: &Batch| Ok(batch.clone()))
                .batched()
                .batch_size(7),
        )
        .unwrap();
    assert_eq!(copied.iter().collect::<Vec<_>>(), expected);
    let twice = concatenate(&[
        dataset.clone(),
        load("eli5/train_asks.parquet")["train"].clone(),
    ])
    .unwrap();
    assert_eq!(twice.len(), 130);
    assert_eq!(twice.row(3).unwrap(), expected[3]);
    let folder = tempfile::tempdir().unwrap();
    let path = |name: &str| folder.path().join(name).to_str().unwrap().to_owned();
    dataset.save_to_disk(path("saved")).unwrap();
    dataset.to_json_lines(path("rows.jsonl")).unwrap();
    dataset.to_parquet(path("rows.parquet")).unwrap();
    for name in ["saved", "rows.jsonl", "rows.parquet"] {
        let back = load_dataset(path(name)).unwrap()["train"].clone();
        assert_eq!(back.iter().collect::<Vec<_>>(), expected, "{name}");
        assert_eq!(back.schema(), dataset.schema(), "{name}");
    }
    let nothing = load_dataset({
        std::fs::write(path("null.jsonl"), "{\"a\": null}\n{\"a\": null}\n{}\n").unwrap();
        path("null.jsonl")
    });
    let nothing = nothing.unwrap()["train"].shuffle(2).unwrap();
    assert_eq!(
        nothing.column::<Option<String>>("a").unwrap(),
        [None, None, None]
    );
    assert_eq!(nothing.features(), [("a".to_owned(), "null".to_owned())]);
}

#[test]
fn every_kind_of_split_gives_the_rows_of_datasets() {
    let dict = load("eli5/train_asks.parquet");
    let expected = expected("eli5");
    let slices = expected["slices"].as_object().unwrap();
    assert!(slices.len() >= 28);
    for (split, expected) in slices {
        match dict.split(split) {
            Ok(dataset) => {
                assert!(
                    expected.get("error").is_none(),
                    "{split} is an error in datasets"
                );
                assert_eq!(ids(&dataset), strings(&expected["q_ids"]), "{split}");
                assert_eq!(
                    dataset.len() as u64,
                    expected["n"].as_u64().unwrap(),
                    "{split}"
                );
            }
            Err(error) => {
                assert!(expected.get("error").is_some(), "{split}: {error}");
                assert!(matches!(error, Error::Split { .. }), "{split}: {error}");
            }
        }
    }
    let error = dict.split("validation").unwrap_err().to_string();
    assert_eq!(
        error,
        "split \"validation\": there is no split \"validation\"; the splits are train"
    );
}

#[test]
fn percentages_round_as_in_datasets() {
    let expected = expected("eli5");
    let table = expected["percent_table"].as_array().unwrap();
    assert!(table.len() >= 100);
    for row in table {
        let [percent, rows, boundary] = [0, 1, 2].map(|i| row[i].as_i64().unwrap());
        let numbers = (0..rows).collect::<Vec<_>>();
        let dataset = Dataset::builder().column("n", numbers).build().unwrap();
        let dict = DatasetDict::from_iter([("train", dataset)]);
        // The table has the boundary before it is counted from the end and clipped.
        let end = if boundary < 0 {
            (rows + boundary).max(0)
        } else {
            boundary.min(rows)
        };
        // A per cent that rounds down to no row at the end means the beginning, as in datasets.
        match dict.split(format!("train[:{percent}%]")) {
            Ok(dataset) => assert_eq!(dataset.len() as i64, end, "{percent}% of {rows}"),
            Err(_) => assert_eq!(end, 0, "{percent}% of {rows}"),
        }
    }
}

#[test]
fn train_and_test_have_the_sizes_and_rows_of_datasets() {
    let expected = expected("eli5");
    let rows = expected["train_test_split_sizes"]["rows"]
        .as_array()
        .unwrap();
    assert!(rows.len() >= 50);
    for row in rows {
        let n = row[0].as_i64().unwrap();
        let dataset = Dataset::builder()
            .column("n", (0..n).collect::<Vec<_>>())
            .build()
            .unwrap();
        let size: TestSize = match row[1].as_u64() {
            Some(count) => (count as usize).into(),
            None => row[1].as_f64().unwrap().into(),
        };
        let split = dataset.train_test_split(size).unwrap();
        let sizes = [split["train"].len() as u64, split["test"].len() as u64];
        assert_eq!(sizes.map(Some), [row[2].as_u64(), row[3].as_u64()], "{row}");
    }
    let dataset = load("eli5/train_asks.jsonl")["train"].clone();
    let split = dataset
        .train_test_split(TrainTestSplit::new(0.2).seed(42))
        .unwrap();
    assert_eq!(
        ids(&split["train"]),
        strings(&expected["train_test_split_seed42"]["train"])
    );
    assert_eq!(
        ids(&split["test"]),
        strings(&expected["train_test_split_seed42"]["test"])
    );
}

fn token_ids(values: &Json) -> Vec<Vec<u32>> {
    let ids = |row: &Json| {
        row.as_array()
            .unwrap()
            .iter()
            .map(|id| id.as_u64().unwrap() as u32)
            .collect()
    };
    values.as_array().unwrap().iter().map(ids).collect()
}

/// The guide's tokenized texts, over batches of 7 rows so that groups run across them.
fn tokenized(expected: &Json) -> Dataset {
    let input_ids = token_ids(&expected["input_ids"]);
    let parts: Vec<Dataset> = input_ids
        .chunks(7)
        .map(|rows| {
            let mask: Vec<Vec<i8>> = rows.iter().map(|row| vec![1; row.len()]).collect();
            Dataset::builder()
                .column("input_ids", rows.to_vec())
                .column("attention_mask", mask)
                .build()
                .unwrap()
        })
        .collect();
    concatenate(&parts).unwrap()
}

#[test]
fn blocks_equal_those_of_the_guide_for_any_number_of_threads() {
    let expected = expected("guide");
    let dataset = tokenized(&expected);
    let mut checked = 0;
    for (name, grouped) in expected["grouped"].as_object().unwrap() {
        // With several processes datasets cuts the dataset first; here blocks do not depend on threads.
        if grouped.get("num_proc").is_some() {
            continue;
        }
        let [block_size, batch_size] =
            ["block_size", "batch_size"].map(|key| grouped[key].as_u64().unwrap() as usize);
        for num_proc in [1, 2, 5] {
            let group = GroupTexts::new(block_size)
                .batch_size(batch_size)
                .num_proc(num_proc)
                .cache(false);
            let blocks = dataset.group_texts(group).unwrap();
            let blocks: Vec<Vec<u32>> = blocks.column("input_ids").unwrap();
            assert_eq!(
                blocks,
                token_ids(&grouped["blocks"]),
                "{name} with {num_proc} threads"
            );
            let short: Vec<(usize, usize)> = blocks
                .iter()
                .map(Vec::len)
                .enumerate()
                .filter(|(_, length)| *length != block_size)
                .collect();
            let expected: Vec<(usize, usize)> =
                serde_json::from_value(grouped["lengths_not_block"].clone()).unwrap();
            assert_eq!(short, expected, "{name}");
        }
        checked += 1;
    }
    assert_eq!(checked, 4);
}

#[test]
fn blocks_equal_the_stored_tensors() {
    let bytes = std::fs::read(fixture("guide/blocks.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let dataset = tokenized(&expected("guide"));
    for block_size in [16, 128] {
        let tensor = tensors
            .tensor(&format!("block{block_size}_batch1000"))
            .unwrap();
        let blocks = dataset
            .group_texts(GroupTexts::new(block_size).cache(false))
            .unwrap();
        assert_eq!(tensor.shape(), [blocks.len(), block_size]);
        let expected: Vec<i64> = tensor
            .data()
            .chunks(8)
            .map(|bytes| i64::from_le_bytes(bytes.try_into().unwrap()))
            .collect();
        assert_eq!(
            blocks.column::<Vec<i64>>("input_ids").unwrap().concat(),
            expected
        );
        let mask: Vec<Vec<u8>> = blocks.column("attention_mask").unwrap();
        assert!(
            mask.iter()
                .all(|row| row.len() == block_size && row.iter().all(|&bit| bit == 1))
        );
    }
}

#[test]
fn eli5_has_the_exact_schema_from_json_and_from_parquet() {
    for file in ["eli5/train_asks.jsonl", "eli5/train_asks.parquet"] {
        let path = fixture(file);
        let eli5 = load_eli5_from(path.to_str().unwrap(), "train_asks[:10%]").unwrap();
        assert_eq!(eli5.len(), 6);
        assert_eq!(eli5.schema(), &eli5_schema());
        assert_eq!(
            python_features(&eli5.flatten().unwrap())[7],
            (
                "answers.score".to_owned(),
                "List(Value('int32'))".to_owned()
            )
        );
    }
    let path = fixture("eli5/train_asks.jsonl");
    let error = load_eli5_from(path.to_str().unwrap(), "test_asks")
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("only the split train_asks") && error.contains("train_test_split"),
        "{error}"
    );
    let error = load_eli5_from(fixture("eli5").to_str().unwrap(), "train_asks")
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("both contain the split train_asks"),
        "{error}"
    );
    let (_folder, other) = write("other.jsonl", "{\"q_id\": \"a\", \"title\": \"b\"}\n");
    let error = load_eli5_from(&other, "train_asks")
        .unwrap_err()
        .to_string();
    assert_eq!(
        error,
        "there is no column \"subreddit\"; the columns are q_id, title"
    );
}

#[test]
fn the_bundled_sample_is_eli5() {
    let eli5 = load_eli5("train_asks[:5000]").unwrap();
    assert!(eli5.len() >= 300, "{} rows", eli5.len());
    assert_eq!(eli5.schema(), &eli5_schema());
    assert_eq!(
        load_dataset("bundled:eli5_sample.jsonl").unwrap()["train"].len(),
        eli5.len()
    );
    let flat = eli5.flatten().unwrap();
    let answers: Vec<Vec<String>> = flat.column("answers.text").unwrap();
    assert!(answers.iter().all(|answers| !answers.is_empty()));
    let split = eli5.train_test_split(0.2).unwrap();
    assert_eq!(
        split["test"].len(),
        (eli5.len() as f64 * 0.2).ceil() as usize
    );
    assert!(
        load_eli5("validation_asks")
            .unwrap_err()
            .to_string()
            .contains("only the split train_asks")
    );
}

#[test]
fn a_malformed_line_is_named_by_file_and_number() {
    let good = "{\"a\": 1, \"text\": \"x\"}\n";
    let error = load_error(
        "data.jsonl",
        format!("{good}{good}\n{{\"a\": 2, \"text\": \n{good}"),
    );
    assert!(
        error.contains("data.jsonl, line 4: malformed JSON at column"),
        "{error}"
    );
    // Far into a file of many chunks.
    let many = good.repeat(600_000);
    let error = load_error("data.jsonl", format!("{many}{{\"a\": 1}} x\n{good}"));
    assert!(
        error.contains("data.jsonl, line 600001: malformed JSON at column 10"),
        "{error}"
    );
    let error = load_error("data.jsonl", format!("{many}{{\"a\": \"one\"}}\n{good}"));
    assert!(
        error.contains("line 600001: \"a\" is text here and numbers before"),
        "{error}"
    );
    let error = load_error("data.jsonl", format!("{good}[1, 2]\n"));
    assert!(
        error
            .contains("line 2: each record must be a JSON object, and this starts with \"[1, 2]\""),
        "{error}"
    );
    let error = load_error(
        "data.jsonl",
        [good.as_bytes(), b"{\"a\": 1, \"text\": \"\xff\xfe\"}\n"].concat(),
    );
    assert!(
        error.contains("line 2: malformed JSON") && error.contains("unicode"),
        "{error}"
    );
}

#[test]
fn json_documents_contain_their_records() {
    let records = "[\n {\"a\": 1, \"b\": \"x, ]}\\\"\"},\n {\"a\": 2,\n  \"b\": null}\n]";
    for (name, content, field) in [
        ("array.json", records.to_owned(), None),
        (
            "object.json",
            format!("{{\n\"version\": [1], \"data\": {records}}}"),
            None,
        ),
        (
            "two.json",
            format!("{{\"version\": [{{\"k\": 1}}], \"data\": {records}}}"),
            Some("data"),
        ),
        (
            "lines.json",
            "{\"a\": 1, \"b\": \"x, ]}\\\"\"}\n{\"a\": 2, \"b\": null}".to_owned(),
            None,
        ),
        ("bom.json", format!("\u{feff}{records}"), None),
        (
            "wide.json",
            "{\n\"a\": 1, \"b\": \"x, ]}\\\"\"}\n{\n\"a\": 2, \"b\": null}\n".to_owned(),
            None,
        ),
    ] {
        let (_folder, path) = write(name, content);
        let loader = Loader::new(&path);
        let loader = field.map_or(loader.clone(), |field| loader.field(field));
        let dataset = loader.load().unwrap()["train"].clone();
        assert_eq!(dataset.column::<i64>("a").unwrap(), [1, 2], "{name}");
        assert_eq!(dataset.row(0).unwrap()["b"], "x, ]}\"", "{name}");
    }
    let (_folder, path) = write("texts.json", "[\"one\", \"two\"]");
    assert_eq!(
        load_dataset(&path).unwrap()["train"]
            .column::<String>("text")
            .unwrap(),
        ["one", "two"]
    );
    let error = load_error("array.json", "[\n{\"a\": 1},\n{\"a\": }\n]");
    assert!(
        error.contains("array.json, line 3: malformed JSON"),
        "{error}"
    );
    let error = load_error("array.json", "[\n{\"a\": 1},\n{\"a\": 2}\n");
    assert!(
        error.contains("array.json, line ") && error.contains("EOF"),
        "{error}"
    );
    let error = load_error("two.json", "{\n\"x\": [{}], \"y\": [{}]}");
    assert!(
        error.contains("several fields with records (x, y); choose one with Loader::field"),
        "{error}"
    );
}

#[test]
fn text_csv_and_arrow_load() {
    let (_folder, path) = write("story.txt", "one\r\n\ntwo \nthrée");
    let text = load_dataset(&path).unwrap()["train"].clone();
    assert_eq!(
        text.column::<String>("text").unwrap(),
        ["one", "", "two ", "thrée"]
    );
    let error = load_error("bad.txt", b"fine\nalso fine\nb\xe4d\n");
    assert!(
        error.contains("bad.txt, line 3: the text is not valid UTF-8"),
        "{error}"
    );

    let (_folder, path) = write(
        "table.csv",
        "\u{feff}id,title,score,day,empty\n1,\"a, \"\"b\"\"\nc\",0.5,2020-01-01,\n2,d,1,2020-01-02,\n",
    );
    let table = load_dataset(&path).unwrap()["train"].clone();
    assert_eq!(table.column::<i64>("id").unwrap(), [1, 2]);
    assert_eq!(
        table.column::<String>("title").unwrap(),
        ["a, \"b\"\nc", "d"]
    );
    assert_eq!(table.column::<f64>("score").unwrap(), [0.5, 1.0]);
    assert_eq!(
        table.column::<String>("day").unwrap(),
        ["2020-01-01", "2020-01-02"]
    );
    assert_eq!(
        table.column::<Option<String>>("empty").unwrap(),
        [None, None]
    );
    let error = load_error("bad.csv", "a,b\n1,2\n3,4,5\n");
    assert!(
        error.contains("bad.csv, line 3: the row has 3 values"),
        "{error}"
    );
    let (_folder, path) = write("table.tsv", "a\tb\nx y\t1\n");
    assert_eq!(
        load_dataset(&path).unwrap()["train"]
            .row(0)
            .unwrap()
            .to_string(),
        "{'a': 'x y', 'b': 1}"
    );

    for magic in ["PAR1", "ARROW1"] {
        let error = load_error("data", format!("{magic} and then something else"));
        assert!(error.contains("truncated or damaged"), "{error}");
    }
}

#[test]
fn truncated_parquet_is_a_clear_error() {
    let whole = std::fs::read(fixture("eli5/train_asks.parquet")).unwrap();
    for length in [0, 3, 100, whole.len() / 2, whole.len() - 1] {
        let error = load_error("part.parquet", &whole[..length]);
        assert!(
            error.contains("part.parquet: not a complete Parquet file"),
            "{length}: {error}"
        );
    }
    for byte in (4..whole.len()).step_by(97) {
        let mut damaged = whole.clone();
        damaged[byte] ^= 0x55;
        let (_folder, path) = write("damaged.parquet", damaged);
        let _ = load_dataset(&path).map_err(|error| error.to_string());
    }
}

#[test]
fn empty_files_and_missing_ones_are_clear_errors() {
    for (name, content) in [
        ("a.jsonl", ""),
        ("a.jsonl", "\n \n"),
        ("a.json", "[]"),
        ("a.txt", ""),
        ("a.csv", "x,y\n"),
    ] {
        let error = load_error(name, content);
        assert!(error.contains("the file has no rows"), "{name}: {error}");
    }
    let error = load_dataset("no/such/file.jsonl").unwrap_err().to_string();
    assert!(
        error.starts_with("dataset \"no/such/file.jsonl\" was not found: "),
        "{error}"
    );
}

#[test]
fn files_of_a_folder_or_a_pattern_form_one_dataset_if_they_agree() {
    let folder = tempfile::tempdir().unwrap();
    let put =
        |name: &str, content: &str| std::fs::write(folder.path().join(name), content).unwrap();
    put("train-0.jsonl", "{\"a\": 1, \"b\": []}\n");
    put(
        "train-1.jsonl",
        "{\"a\": 2.5, \"b\": [\"x\"]}\n{\"a\": 3}\n",
    );
    put("test.jsonl", "{\"a\": 4, \"b\": null}\n");
    let dict = load_dataset(folder.path().to_str().unwrap()).unwrap();
    assert_eq!(dict.names(), ["train", "test"]);
    assert_eq!(dict["train"].column::<f64>("a").unwrap(), [1.0, 2.5, 3.0]);
    assert_eq!(
        dict["train"].column::<Option<Vec<String>>>("b").unwrap()[2],
        None
    );
    let pattern = folder.path().join("train-*.jsonl");
    assert_eq!(
        load_dataset(pattern.to_str().unwrap()).unwrap()["train"].len(),
        3
    );

    put("train-2.jsonl", "{\"a\": 1, \"other\": 2}\n");
    let error = load_dataset(pattern.to_str().unwrap())
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("train-2.jsonl: it has the column \"other\", which ")
            && error.contains("train-0.jsonl")
    );
    put("train-2.jsonl", "{\"a\": 1}\n{\"a\": \"text\"}\n");
    let error = load_dataset(pattern.to_str().unwrap())
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("train-2.jsonl, line 2: \"a\" is text here and numbers before"),
        "{error}"
    );

    let parquet = tempfile::tempdir().unwrap();
    let one = Dataset::builder()
        .column("a", vec![1i32])
        .column("b", vec!["x"])
        .build()
        .unwrap();
    let two = Dataset::builder()
        .column("b", vec!["y"])
        .column("a", vec![2i64])
        .build()
        .unwrap();
    let three = Dataset::builder()
        .column("a", vec!["z"])
        .column("b", vec!["y"])
        .build()
        .unwrap();
    one.to_parquet(parquet.path().join("1.parquet")).unwrap();
    two.to_parquet(parquet.path().join("2.parquet")).unwrap();
    let name = parquet.path().to_str().unwrap();
    assert_eq!(
        load_dataset(name).unwrap()["train"]
            .column::<i64>("a")
            .unwrap(),
        [1, 2]
    );
    three.to_parquet(parquet.path().join("3.parquet")).unwrap();
    let error = load_dataset(name).unwrap_err().to_string();
    assert!(
        error.contains("3.parquet: column \"a\" is string here and int64 in ")
            && error.contains("1.parquet")
    );
    two.remove_columns(["a"])
        .unwrap()
        .to_parquet(parquet.path().join("3.parquet"))
        .unwrap();
    let error = load_dataset(name).unwrap_err().to_string();
    assert!(error.contains("\"a\" only there"), "{error}");
}

fn numbers(rows: i64) -> Dataset {
    let texts: Vec<String> = (0..rows)
        .map(|n| "word ".repeat((n % 7) as usize))
        .collect();
    Dataset::builder()
        .column("n", (0..rows).collect::<Vec<_>>())
        .column("text", texts)
        .build()
        .unwrap()
}

fn doubled() -> Map {
    Map::new(|batch: &Batch| {
        let n = batch.column::<i64>("n")?;
        Batch::new().with_column("twice", n.iter().map(|n| 2 * n).collect::<Vec<_>>())
    })
}

#[test]
fn a_map_is_independent_of_threads_and_batch_size() {
    let dataset = numbers(5_003).shuffle(5).unwrap();
    let expected: Vec<i64> = dataset
        .column::<i64>("n")
        .unwrap()
        .iter()
        .map(|n| 2 * n)
        .collect();
    for num_proc in [1, 2, 4, 9] {
        for map in [
            doubled(),
            doubled().batched(),
            doubled().batched().batch_size(7),
            doubled().batched().batch_size(9999),
        ] {
            let mapped = dataset.map(map.num_proc(num_proc)).unwrap();
            assert_eq!(mapped.column_names(), ["n", "text", "twice"]);
            assert_eq!(mapped.column::<i64>("twice").unwrap(), expected);
        }
    }
    let removed = dataset
        .map(doubled().batched().remove_columns(["text", "n"]))
        .unwrap();
    assert_eq!(removed.column_names(), ["twice"]);
}

#[test]
fn a_map_may_change_columns_and_the_number_of_rows() {
    let dataset = numbers(2_500);
    let whole = Map::new(|batch: &Batch| {
        let length: Vec<u32> = batch
            .strings("text")?
            .iter()
            .map(|text| text.len() as u32)
            .collect();
        batch.clone().with_column("n", length)
    });
    let mapped = dataset
        .map(whole.clone().batched().remove_columns(["text"]))
        .unwrap();
    assert_eq!(
        mapped.column_names(),
        ["n"],
        "a column that is handed on is still removed"
    );
    assert_eq!(
        mapped.column::<usize>("n").unwrap()[..8],
        [0, 5, 10, 15, 20, 25, 30, 0]
    );

    let words = Map::new(|batch: &Batch| {
        let words: Vec<&str> = batch
            .strings("text")?
            .iter()
            .flat_map(|text| text.split_terminator(' '))
            .collect();
        Batch::new().with_column("word", words)
    });
    let split = dataset
        .map(words.clone().batched().remove_columns(["n", "text"]))
        .unwrap();
    assert_eq!(split.len(), (0..2500).map(|n| n % 7).sum::<usize>());
    let error = dataset.map(words.batched()).unwrap_err().to_string();
    assert!(
        error.starts_with("map, rows 0..1000: the function gave")
            && error.contains("remove_columns"),
        "{error}"
    );
    assert!(
        dataset
            .map(doubled().remove_columns(["title"]))
            .unwrap_err()
            .to_string()
            .contains("columns are n, text")
    );
}

#[test]
fn a_column_that_is_null_in_some_batches_has_the_type_of_the_others() {
    let map = Map::new(|batch: &Batch| {
        let n = batch.column::<i64>("n")?;
        if n[0] < 2000 {
            let nothing: Vec<Option<Vec<i32>>> = vec![None; n.len()];
            let nothing = arrow::compute::cast(
                &cloze::dataset::IntoColumn::into_column(nothing),
                &arrow::datatypes::DataType::Null,
            );
            return Batch::new().with_column(
                "ids",
                nothing.unwrap_or_else(|_| Arc::new(arrow::array::NullArray::new(n.len()))),
            );
        }
        Batch::new().with_column("ids", n.iter().map(|&n| vec![n]).collect::<Vec<_>>())
    });
    let mapped = numbers(3_000).map(map.batched()).unwrap();
    let ids: Vec<Option<Vec<i64>>> = mapped.column("ids").unwrap();
    assert_eq!(
        (ids[0].clone(), ids[2500].clone()),
        (None, Some(vec![2500]))
    );
}

#[test]
fn a_failing_function_names_its_rows() {
    let failing = || {
        Map::new(|batch: &Batch| {
            if batch.column::<i64>("n")?.contains(&2345) {
                return Err(Error::Dataset("I don't like this one".to_owned()));
            }
            Ok(batch.clone())
        })
    };
    let error = numbers(5_000).map(failing().batched()).unwrap_err();
    assert!(matches!(error, Error::User { .. }));
    assert_eq!(
        error.to_string(),
        "map, rows 2000..3000: I don't like this one"
    );
    assert_eq!(
        numbers(5_000).map(failing()).unwrap_err().to_string(),
        "map, rows 2345..2346: I don't like this one"
    );
    let panicking = Map::new(|batch: &Batch| {
        assert!(batch.rows().start < 3000, "out of luck");
        Ok(batch.clone())
    });
    let error = numbers(5_000)
        .map(panicking.batched())
        .unwrap_err()
        .to_string();
    assert!(error.contains("panicked: out of luck"), "{error}");
    let missing =
        Map::new(|batch: &Batch| Batch::new().with_column("x", batch.column::<String>("title")?));
    let error = numbers(10).map(missing.batched()).unwrap_err().to_string();
    assert_eq!(
        error,
        "map, rows 0..10: there is no column \"title\"; the columns are n, text"
    );
    let wrong =
        Map::new(|batch: &Batch| Batch::new().with_column("x", batch.column::<String>("n")?));
    let error = numbers(10).map(wrong.batched()).unwrap_err().to_string();
    assert_eq!(
        error,
        "map, rows 0..10: column \"n\" holds int64, but reading it needs string"
    );
    for map in [doubled().num_proc(0), doubled().batched().batch_size(0)] {
        assert!(matches!(numbers(10).map(map), Err(Error::Argument { .. })));
    }
}

#[test]
fn an_empty_dataset_maps_to_an_empty_one_with_the_new_columns() {
    let mapped = numbers(10)
        .slice(0..0)
        .map(doubled().batched().remove_columns(["text"]))
        .unwrap();
    assert!(mapped.is_empty());
    assert_eq!(mapped.column_names(), ["n", "twice"]);
}

/// A function whose results depend on its content, as a tokenizer's do.
struct Scale {
    factor: i64,
    calls: Arc<AtomicUsize>,
}

impl BatchFunction for Scale {
    fn call(&self, batch: &Batch) -> cloze::Result<Batch> {
        self.calls.fetch_add(1, Ordering::SeqCst);
        let n = batch.column::<i64>("n")?;
        Batch::new().with_column(
            "scaled",
            n.iter().map(|n| n * self.factor).collect::<Vec<_>>(),
        )
    }

    fn fingerprint(&self) -> Option<String> {
        Some(format!("scale by {}", self.factor))
    }
}

#[test]
fn the_cache_is_used_for_the_same_work_and_never_for_other_work() {
    let cache = tempfile::tempdir().unwrap();
    let calls = Arc::new(AtomicUsize::new(0));
    let map = |factor| {
        Map::new(Scale {
            factor,
            calls: calls.clone(),
        })
        .batched()
        .cache_dir(cache.path())
    };
    let scaled = |dataset: &Dataset, map: Map| -> (Vec<i64>, usize) {
        let before = calls.load(Ordering::SeqCst);
        let values = dataset.map(map).unwrap().column("scaled").unwrap();
        (values, calls.load(Ordering::SeqCst) - before)
    };
    let dataset = numbers(3_000);
    let times = |factor: i64| (0..3_000).map(|n| n * factor).collect::<Vec<_>>();
    assert_eq!(scaled(&dataset, map(3)), (times(3), 3));
    assert_eq!(scaled(&dataset, map(3)), (times(3), 0), "the same again");
    assert_eq!(
        scaled(&numbers(3_000), map(3).num_proc(5)),
        (times(3), 0),
        "equal rows, other threads"
    );
    assert_eq!(scaled(&dataset, map(4)), (times(4), 3), "another function");
    assert_eq!(
        scaled(&dataset, map(3).batch_size(1500)),
        (times(3), 2),
        "other batches"
    );
    assert_eq!(
        scaled(&dataset, map(3).remove_columns(["text"])),
        (times(3), 3),
        "other columns"
    );
    assert_eq!(scaled(&dataset.slice(0..2_999), map(3)).1, 3, "other rows");
    assert_eq!(
        scaled(&dataset, map(3).cache(false)),
        (times(3), 3),
        "not allowed"
    );
    assert_eq!(
        scaled(&dataset, map(3).fingerprint("named")),
        (times(3), 3),
        "another name"
    );
    let kept = || {
        std::fs::read_dir(cache.path().join("datasets"))
            .unwrap()
            .count()
    };
    assert_eq!(kept(), 6);
    // A chain is known by its steps.
    let chain = |dataset: &Dataset| {
        dataset
            .map(map(3))
            .unwrap()
            .select_columns(["scaled"])
            .unwrap()
            .fingerprint()
    };
    assert_eq!(chain(&dataset), chain(&numbers(3_000)));

    // A closure is known only by the name that it is given.
    let closure = || doubled().batched().cache_dir(cache.path());
    dataset.map(closure()).unwrap();
    assert_eq!(kept(), 6);
    dataset
        .map(closure().fingerprint("doubled, first version"))
        .unwrap();
    assert_eq!(kept(), 7);

    // Damage is seen, and made good.
    for entry in std::fs::read_dir(cache.path().join("datasets")).unwrap() {
        let path = entry.unwrap().path();
        let bytes = std::fs::read(&path).unwrap();
        std::fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
    }
    assert_eq!(
        scaled(&dataset, map(3)),
        (times(3), 3),
        "made again after damage"
    );
    assert_eq!(scaled(&dataset, map(3)), (times(3), 0));
}

#[test]
fn blocks_are_cached_by_their_arguments() {
    let cache = tempfile::tempdir().unwrap();
    let dataset = tokenized(&expected("guide"));
    let kept =
        || std::fs::read_dir(cache.path().join("datasets")).map_or(0, |entries| entries.count());
    let group = |size| GroupTexts::new(size).cache_dir(cache.path());
    let first = dataset.group_texts(group(16)).unwrap();
    assert_eq!(kept(), 1);
    let again = dataset.group_texts(group(16)).unwrap();
    assert_eq!(kept(), 1);
    assert_eq!(
        first.column::<Vec<u32>>("input_ids").unwrap(),
        again.column::<Vec<u32>>("input_ids").unwrap()
    );
    assert_eq!(first.fingerprint(), again.fingerprint());
    dataset.group_texts(group(32)).unwrap();
    dataset.group_texts(group(16).whole_dataset()).unwrap();
    dataset.group_texts(group(16).drop_short_blocks()).unwrap();
    assert_eq!(kept(), 4);
    assert!(dataset.group_texts(group(100_000)).is_err());
    assert_eq!(kept(), 4);
}

#[test]
fn large_files_and_results_are_memory_mapped_and_read_the_same() {
    let cache = tempfile::tempdir().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("large.jsonl");
    let dataset = numbers(200_000);
    dataset.to_json_lines(&path).unwrap();
    let load = || {
        Loader::new(path.to_str().unwrap())
            .memory_limit(1 << 20)
            .cache_dir(cache.path())
            .load()
            .unwrap()
    };
    let kept = || {
        std::fs::read_dir(cache.path().join("datasets"))
            .unwrap()
            .count()
    };
    for _ in 0..2 {
        let large = load()["train"].clone();
        assert_eq!(
            large.column::<String>("text").unwrap(),
            dataset.column::<String>("text").unwrap()
        );
        assert_eq!(kept(), 1);
        let mapped = large
            .map(
                doubled()
                    .batched()
                    .memory_limit(1 << 20)
                    .cache_dir(cache.path()),
            )
            .unwrap();
        assert_eq!(mapped.column::<i64>("twice").unwrap()[199_999], 399_998);
        assert_eq!(kept(), 1, "an unnamed function leaves nothing behind");
    }
    // The file changes: what was made of it is not used any more.
    dataset.slice(0..100_000).to_json_lines(&path).unwrap();
    assert_eq!(load()["train"].len(), 100_000);
    assert_eq!(kept(), 2);
    // Without the cache, the rows still need not fit memory.
    let uncached = Loader::new(path.to_str().unwrap())
        .memory_limit(1 << 20)
        .cache_dir(cache.path())
        .cache(false);
    assert_eq!(uncached.load().unwrap()["train"].len(), 100_000);
    assert_eq!(kept(), 2);
}

#[test]
fn an_unwritable_cache_only_disables_caching() {
    let folder = tempfile::tempdir().unwrap();
    let blocked = folder.path().join("file");
    std::fs::write(&blocked, "in the way of a folder").unwrap();
    let calls = Arc::new(AtomicUsize::new(0));
    let map = Map::new(Scale { factor: 2, calls })
        .batched()
        .cache_dir(&blocked);
    let dataset = numbers(5_000);
    assert_eq!(
        dataset
            .map(map.clone())
            .unwrap()
            .column::<i64>("scaled")
            .unwrap()[4_999],
        9_998
    );
    let error = dataset.map(map.memory_limit(1000)).unwrap_err().to_string();
    assert!(
        error.starts_with("could not create") && error.contains("file/datasets"),
        "{error}"
    );
}
