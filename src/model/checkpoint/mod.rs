//! Reads the weight files of a model folder, in any of the Hub's formats.

mod pickle_size;
mod pytorch;
mod safetensors;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};
use serde_json::Value;

use crate::{Error, Result};

/// The named arrays of a model folder. Names and shapes are known at once; data is read when asked for.
pub(crate) struct Checkpoint {
    path: PathBuf,
    files: Vec<WeightFile>,
    /// Name → index into `files`.
    names: BTreeMap<String, usize>,
    bytes: u64,
}

enum WeightFile {
    Safetensors(safetensors::File),
    Pytorch(pytorch::File),
    /// Tensors that are in memory already.
    Tensors(BTreeMap<String, Tensor>),
}

/// In transformers' order of preference.
const SINGLE: [&str; 2] = ["model.safetensors", "pytorch_model.bin"];
const SHARDED: [&str; 2] = [
    "model.safetensors.index.json",
    "pytorch_model.bin.index.json",
];

impl Checkpoint {
    /// Opens the weights in `folder`: `model.safetensors`, its sharded form, `pytorch_model.bin`, its sharded form.
    pub(crate) fn open(folder: &Path) -> Result<Self> {
        for (single, sharded) in SINGLE.into_iter().zip(SHARDED) {
            let file = folder.join(single);
            if file.exists() {
                return Self::from_files(file.clone(), &[file]);
            }
            let index = folder.join(sharded);
            if index.exists() {
                let shards = shards(&index)?;
                return Self::from_files(index, &shards);
            }
        }
        Err(Error::NotFound {
            kind: "model weights",
            name: folder.display().to_string(),
            message: format!(
                "the folder contains none of {}, {}, {}, {}",
                SINGLE[0], SHARDED[0], SINGLE[1], SHARDED[1]
            ),
        })
    }

    /// Opens one weight file, whatever its name.
    pub(crate) fn open_file(path: &Path) -> Result<Self> {
        Self::from_files(path.to_path_buf(), &[path.to_path_buf()])
    }

    /// Returns the arrays of a model that is open, under the names that it is saved with.
    pub(crate) fn of_tensors(name: &str, tensors: BTreeMap<String, Tensor>) -> Self {
        let size = |tensor: &Tensor| (tensor.elem_count() * tensor.dtype().size_in_bytes()) as u64;
        Self {
            path: PathBuf::from(name),
            names: tensors.keys().map(|name| (name.clone(), 0)).collect(),
            bytes: tensors.values().map(size).sum(),
            files: vec![WeightFile::Tensors(tensors)],
        }
    }

    fn from_files(path: PathBuf, paths: &[PathBuf]) -> Result<Self> {
        let mut files = Vec::with_capacity(paths.len());
        let mut names = BTreeMap::new();
        let mut bytes = 0u64;
        for path in paths {
            let size = std::fs::metadata(path).map_or(0, |metadata| metadata.len());
            bytes = bytes.saturating_add(size);
            crate::base::files::refuse_lfs_pointer(path)?;
            let file = if path.extension().is_some_and(|e| e == "safetensors") {
                WeightFile::Safetensors(safetensors::File::open(path)?)
            } else {
                WeightFile::Pytorch(pytorch::File::open(path)?)
            };
            let found: Vec<String> = match &file {
                WeightFile::Safetensors(file) => file.names(),
                WeightFile::Pytorch(file) => file.names(),
                WeightFile::Tensors(tensors) => tensors.keys().cloned().collect(),
            };
            names.extend(found.into_iter().map(|name| (name, files.len())));
            files.push(file);
        }
        Ok(Self {
            path,
            files,
            names,
            bytes,
        })
    }

    /// Returns the file that was opened (the index file of a sharded checkpoint).
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the size of all files together.
    pub(crate) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Returns all names in the checkpoint.
    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.names.keys().map(String::as_str)
    }

    /// Returns the array called `name`, which must be one of [`Checkpoint::names`], on `device` in its stored dtype.
    pub(crate) fn tensor(&self, name: &str, device: &Device) -> Result<Tensor> {
        match self.names.get(name).map(|&index| &self.files[index]) {
            Some(WeightFile::Safetensors(file)) => file.tensor(name, device),
            Some(WeightFile::Pytorch(file)) => file.tensor(name, device),
            Some(WeightFile::Tensors(tensors)) => Ok(tensors[name].to_device(device)?),
            None => Err(Error::Weights(format!(
                "{} contains no {name:?}",
                self.path.display()
            ))),
        }
    }
}

/// Returns the shard files that an index names, each once.
fn shards(index: &Path) -> Result<Vec<PathBuf>> {
    let text = crate::base::files::read(index)?;
    let json: Value = crate::base::json::from_slice(&text)
        .map_err(|e| Error::format(index, format!("not valid JSON: {e}")))?;
    let map = json
        .get("weight_map")
        .and_then(Value::as_object)
        .ok_or_else(|| Error::format(index, "the index has no \"weight_map\""))?;
    let folder = index.parent().unwrap_or(Path::new("."));
    let mut names: Vec<&str> = map.values().filter_map(Value::as_str).collect();
    names.sort_unstable();
    names.dedup();
    names
        .into_iter()
        .map(|name| {
            // Shards lie beside their index; a name with a path in it is damage or malice.
            if name.contains(['/', '\\']) {
                return Err(Error::format(
                    index,
                    format!("the shard name {name:?} is not a plain file name"),
                ));
            }
            let path = folder.join(name);
            if path.exists() {
                Ok(path)
            } else {
                Err(Error::format(
                    index,
                    format!(
                        "the shard {name} is missing; copy it to the folder of the index or download it again"
                    ),
                ))
            }
        })
        .collect()
}
