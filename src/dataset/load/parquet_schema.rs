//! Checks the tree of columns that the footer of a Parquet file describes: the library that reads it goes down the tree by
//! recursion, and makes room for as many children as are announced.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};

use super::thrift::{INTEGER, LIST, STRUCT, Thrift};

/// The most levels of the tree. A list takes two or three of them.
const DEEPEST: usize = 512;

/// The fields of the description of a file, and of an element of its tree.
const SCHEMA: i64 = 2;
const CHILDREN: i64 = 5;

/// Checks that the tree of columns in the footer of `file` is as large as it says, and not too deep.
///
/// # Errors
/// A description of the problem. That the file is none, or cut short, is left to the library to tell.
pub(super) fn check(file: &mut File) -> Result<(), String> {
    let Some(footer) = footer(file).map_err(|error| error.to_string())? else {
        return Ok(());
    };
    let mut problem = None;
    let mut thrift = Thrift {
        bytes: &footer,
        at: 0,
    };
    let read = thrift.fields(0, &mut |thrift, field, kind| match (field, kind) {
        (SCHEMA, LIST) => {
            let (kind, count) = thrift.list()?;
            let mut open = Vec::new();
            for index in 0..count {
                let children = if kind == STRUCT {
                    children(thrift)?
                } else {
                    return None;
                };
                problem = problem
                    .take()
                    .or_else(|| grow(&mut open, children, count - index - 1));
            }
            Some(())
        }
        _ => thrift.skip(kind, 1),
    });
    match (problem, read) {
        (Some(problem), _) => Err(problem),
        (None, Some(())) => Ok(()),
        (None, None) => Err("its footer can't be parsed".to_owned()),
    }
}

/// Returns the description of the file, if it has one.
fn footer(file: &mut File) -> std::io::Result<Option<Vec<u8>>> {
    const END: usize = 8;
    let size = file.metadata()?.len();
    if size < END as u64 {
        return Ok(None);
    }
    let mut end = [0; END];
    file.seek(SeekFrom::Start(size - END as u64))?;
    file.read_exact(&mut end)?;
    let length = u32::from_le_bytes([end[0], end[1], end[2], end[3]]);
    if &end[4..] != b"PAR1" || u64::from(length) > size - END as u64 {
        return Ok(None);
    }
    let mut footer = vec![0; length as usize];
    file.seek(SeekFrom::Start(size - END as u64 - u64::from(length)))?;
    file.read_exact(&mut footer)?;
    Ok(Some(footer))
}

/// Reads an element of the tree and returns the number of its children.
fn children(thrift: &mut Thrift) -> Option<i64> {
    let mut children = 0;
    thrift.fields(2, &mut |thrift, field, kind| match (field, kind) {
        (CHILDREN, INTEGER) => {
            children = thrift.integer()?;
            Some(())
        }
        _ => thrift.skip(kind, 3),
    })?;
    Some(children)
}

/// Adds an element with `children`, which are among the `left` elements that follow, to the branch that is `open`: how many
/// children each of its elements still lacks. Returns what is wrong with it.
fn grow(open: &mut Vec<i64>, children: i64, left: u64) -> Option<String> {
    if u64::try_from(children).is_ok_and(|children| children > left) {
        return Some(format!(
            "a column announces {children} fields, and {left} follow"
        ));
    }
    if children > 0 {
        open.push(children);
        return (open.len() > DEEPEST)
            .then(|| format!("its columns are nested more than {DEEPEST} levels deep"));
    }
    // A leaf is complete, and with it whatever it is the last child of.
    while let Some(lacking) = open.last_mut() {
        *lacking -= 1;
        if *lacking > 0 {
            break;
        }
        open.pop();
    }
    None
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::sync::Arc;

    use arrow::array::{ArrayRef, Int64Array, RecordBatch, StructArray};
    use arrow::datatypes::{DataType, Field};
    use parquet::arrow::ArrowWriter;

    use super::*;
    use crate::dataset::load_dataset;

    /// Writes a file whose description has a tree of these numbers of children, as few bytes as it takes.
    fn write(path: &Path, tree: &[u32]) {
        let varint = |mut value: u64| {
            let mut bytes = Vec::new();
            while value >= 0x80 {
                bytes.push(value as u8 | 0x80);
                value >>= 7;
            }
            bytes.push(value as u8);
            bytes
        };
        // The version; then a list of structs.
        let mut footer = vec![0x15, 2, 0x19, 0xfc];
        footer.extend(varint(tree.len() as u64));
        for &children in tree {
            match children {
                // A whole number, which must be there, is called "a".
                0 => footer.extend([0x15, 4, 0x25, 0, 0x18, 1, b'a', 0]),
                _ => {
                    footer.extend([0x35, 0, 0x18, 1, b'a', 0x15]);
                    footer.extend(varint(u64::from(children) * 2));
                    footer.push(0);
                }
            }
        }
        // No rows, in no groups.
        footer.extend([0x16, 0, 0x19, 0x0c, 0]);
        let mut file = b"PAR1".to_vec();
        file.extend(&footer);
        file.extend((footer.len() as u32).to_le_bytes());
        file.extend(b"PAR1");
        std::fs::write(path, file).unwrap();
    }

    fn refusal(path: &Path, tree: &[u32]) -> String {
        write(path, tree);
        load_dataset(path.to_str().unwrap())
            .unwrap_err()
            .to_string()
    }

    #[test]
    fn a_deep_tree_is_refused_before_it_takes_the_stack() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.parquet");
        for levels in [600, 100_000] {
            let mut tree = vec![1; levels];
            tree.push(0);
            let error = refusal(&path, &tree);
            assert!(error.contains("more than 512 levels deep"), "{error}");
        }
        // As deep as it may be, in a thread with little of a stack.
        let mut tree = vec![1; DEEPEST];
        tree.push(0);
        let deepest = move || refusal(&path, &tree);
        let thread = std::thread::Builder::new().stack_size(2 << 20);
        let error = thread.spawn(deepest).unwrap().join().unwrap();
        assert!(error.contains("no rows"), "{error}");
    }

    #[test]
    fn children_that_are_not_there_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.parquet");
        for tree in [&[2_000_000_000, 0][..], &[1, 2_000_000_000, 0], &[3, 0, 0]] {
            let error = refusal(&path, tree);
            assert!(error.contains("fields, and"), "{tree:?}: {error}");
        }
        // These are there, if of one name.
        let error = refusal(&path, &[2, 0, 0]);
        assert!(error.contains("two columns named \"a\""), "{error}");
    }

    #[test]
    fn records_in_records_are_read_back() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.parquet");
        let mut values: ArrayRef = Arc::new(Int64Array::from(vec![1, 2]));
        for _ in 0..50 {
            let field = Field::new("f", values.data_type().clone(), true);
            values = Arc::new(StructArray::from(vec![(Arc::new(field), values)]));
        }
        assert!(matches!(values.data_type(), DataType::Struct(_)));
        let batch = RecordBatch::try_from_iter([("f", values)]).unwrap();
        let file = File::create(&path).unwrap();
        let mut writer = ArrowWriter::try_new(file, batch.schema(), None).unwrap();
        writer.write(&batch).unwrap();
        writer.close().unwrap();
        assert_eq!(
            load_dataset(path.to_str().unwrap()).unwrap()["train"].len(),
            2
        );
    }
}
