use crate::ops::IGNORE_INDEX;
use crate::{Error, Result};

/// How what the decoder writes becomes what it reads: one place to the right, and before it...
#[derive(Clone, Copy, Debug)]
pub(in super::super) enum Shift {
    /// This token.
    StartWith(u32),
    /// The last token of the text, which in mBART names its language.
    LastToFront,
}

impl Shift {
    /// Returns what the decoder reads of rows of `len` ids or labels, where -100 becomes the padding token.
    pub(super) fn apply(self, mut rows: Vec<i64>, len: usize, pad: u32) -> Result<Vec<u32>> {
        for id in rows.iter_mut().filter(|id| **id == IGNORE_INDEX) {
            *id = i64::from(pad);
        }
        for row in rows.chunks_mut(len.max(1)) {
            let first = match self {
                Self::StartWith(token) => i64::from(token),
                Self::LastToFront => {
                    // As transformers counts: where padding is inside of a row, that is not its last token.
                    let tokens = row.iter().filter(|&&id| id != i64::from(pad)).count();
                    row[tokens.saturating_sub(1)]
                }
            };
            row.rotate_right(1);
            row[0] = first;
        }
        let id = |label: i64| {
            u32::try_from(label).map_err(|_| {
                Error::argument("labels", format!("{label} is neither -100 nor a token id"))
            })
        };
        rows.into_iter().map(id).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use candle_core::{Device, Tensor};

    use super::*;

    #[test]
    fn rows_move_by_one_place() {
        let shifted = |shift: Shift, rows: &[i64]| shift.apply(rows.to_vec(), 4, 1).unwrap();
        assert_eq!(
            shifted(Shift::StartWith(2), &[5, 6, 7, 8, -100, 6, 1, 1]),
            [2, 5, 6, 7, 2, 1, 6, 1]
        );
        assert_eq!(
            shifted(Shift::LastToFront, &[5, 6, 7, 8, 5, 6, 1, 1, 1, 1, 1, 1]),
            [8, 5, 6, 7, 6, 5, 6, 1, 1, 1, 1, 1]
        );
        assert!(Shift::LastToFront.apply(vec![-3], 1, 1).is_err());
    }

    #[test]
    fn labels_become_the_decoder_inputs_of_transformers() {
        let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/models");
        for (name, shift) in [
            ("bart", Shift::StartWith(2)),
            ("mbart", Shift::LastToFront),
            ("mvp", Shift::StartWith(2)),
        ] {
            let io = fixtures.join(name).join("io.safetensors");
            let io = candle_core::safetensors::load(io, &Device::Cpu).unwrap();
            let values = |t: &Tensor| t.flatten_all().unwrap().to_vec1::<i64>().unwrap();
            let (labels, expected) = (&io["labels"], values(&io["decoder_input_ids"]));
            let len = labels.dims2().unwrap().1;
            let ours = shift.apply(values(labels), len, 1).unwrap();
            assert_eq!(
                ours.into_iter().map(i64::from).collect::<Vec<_>>(),
                expected
            );
        }
    }
}
