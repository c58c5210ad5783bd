//! An interrupt of the pipeline, which the whole process hears.

use std::path::Path;

use cloze::prelude::*;

#[test]
fn an_interrupt_ends_a_batch_with_an_error_and_the_pipeline_stays_usable() {
    let _alone = crate::alone();
    let folder =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/guide/fill_mask/distilbert");
    let pipeline = FillMask::from_pretrained(folder.to_str().unwrap()).unwrap();
    cloze::interrupt::request();
    let texts = vec!["yo [MASK]"; 10];
    let error = pipeline.fill_batch(&texts).unwrap_err();
    assert!(matches!(error, Error::Interrupted(_)), "{error}");
    assert_eq!(pipeline.fill_batch(&texts).unwrap().len(), 10);
}
