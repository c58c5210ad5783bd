//! What a trainer takes as its data: splits, one dataset, pairs.

use super::{AsTheyAre, model, nowhere, rows};
use crate::collate::Example;
use crate::dataset::{Dataset, DatasetDict};
use crate::train::{IntoTrainingData, Trainer};

/// The first rows as a dataset.
fn dataset(count: u32) -> Dataset {
    let rows = rows(count);
    let ids: Vec<Vec<u32>> = rows.iter().map(|row| row.input_ids.clone()).collect();
    let labels: Vec<Vec<i64>> = rows.into_iter().map(|row| row.labels.unwrap()).collect();
    Dataset::builder()
        .column("input_ids", ids)
        .column("labels", labels)
        .build()
        .unwrap()
}

fn splits(sizes: &[(&str, u32)]) -> DatasetDict {
    sizes
        .iter()
        .map(|&(name, size)| (name, dataset(size)))
        .collect()
}

/// Returns the numbers of steps in an epoch and of examples in an evaluation.
fn sizes(data: impl IntoTrainingData) -> (usize, Option<usize>) {
    let mut trainer = Trainer::new(model(3), nowhere().epochs(1), data, AsTheyAre);
    let evaluated = trainer.evaluate().ok().map(|metrics| metrics.samples);
    (trainer.train().unwrap().step(), evaluated)
}

#[test]
fn splits_are_found_by_their_names() {
    let guide = splits(&[("train", 24), ("test", 9)]);
    assert_eq!(sizes(&guide), (6, Some(9)));
    // What a test split is kept for comes after the training.
    let three = splits(&[("test", 9), ("train", 12), ("validation", 5)]);
    assert_eq!(sizes(three), (3, Some(5)));
    assert_eq!(
        sizes(splits(&[("train", 8), ("unsupervised", 4)])),
        (2, None)
    );
}

#[test]
fn a_single_dataset_is_for_training_and_a_pair_for_both() {
    let data = splits(&[("train", 24), ("test", 9), ("more", 7)]);
    assert_eq!(sizes(&data["train"]), (6, None));
    assert_eq!(sizes(rows(12)), (3, None));
    assert_eq!(sizes((&data["train"], &data["more"])), (6, Some(7)));
    assert_eq!(sizes((&data["train"], rows(4))), (6, Some(4)));
    let (nothing, something): (Option<Vec<Example>>, _) = (None, Some(rows(2)));
    assert_eq!(sizes((rows(12), nothing)), (3, None));
    assert_eq!(sizes((rows(12), something)), (3, Some(2)));
    // Of the splits, with others to evaluate on.
    assert_eq!(sizes((&data, &data["more"])), (6, Some(7)));
}

#[test]
fn every_form_of_data_gives_the_same_steps() {
    let data = splits(&[("train", 24), ("test", 9)]);
    let losses = |data: &dyn Fn(&crate::model::MaskedLm) -> Trainer| {
        let history = data(&model(3)).train().unwrap();
        history.losses()
    };
    let of_splits = losses(&|model| Trainer::new(model, nowhere(), &data, AsTheyAre));
    let pair = (data["train"].clone(), data["test"].clone());
    let of_pair = losses(&|model| Trainer::new(model, nowhere(), pair.clone(), AsTheyAre));
    let of_rows = losses(&|model| Trainer::new(model, nowhere(), rows(24), AsTheyAre));
    assert_eq!(of_splits.len(), 12);
    assert_eq!(of_splits, of_pair);
    assert_eq!(of_splits, of_rows);
}

#[test]
fn splits_without_a_training_split_can_be_evaluated() {
    let data = splits(&[("test", 9), ("more", 3)]);
    let mut trainer = Trainer::new(model(3), nowhere(), &data, AsTheyAre);
    assert_eq!(trainer.evaluate().unwrap().samples, 9);
    let error = trainer.train().unwrap_err().to_string();
    assert!(
        error.contains("\"train\"") && error.contains("test, more"),
        "{error}"
    );
    let arguments = nowhere().eval_strategy("epoch");
    let data = splits(&[("train", 8)]);
    let mut trainer = Trainer::new(model(3), arguments, &data, AsTheyAre);
    let error = trainer.train().unwrap_err().to_string();
    assert!(error.contains("validation"), "{error}");
}

#[test]
#[allow(deprecated)]
fn the_older_names_do_the_same() {
    let data = splits(&[("train", 24), ("test", 9)]);
    let mut old = Trainer::of_splits(model(3), nowhere(), &data, AsTheyAre).unwrap();
    let mut new = Trainer::new(model(3), nowhere(), &data, AsTheyAre);
    assert_eq!(old.train().unwrap().losses(), new.train().unwrap().losses());
    let data = splits(&[("test", 9)]);
    assert!(Trainer::of_splits(model(3), nowhere(), &data, AsTheyAre).is_err());
}
