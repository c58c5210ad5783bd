//! Weights in `pytorch_model.bin`: the zip archive of today, and the plain sequence of pickles from before PyTorch 1.6.
//!
//! A pickle is read as data: nothing it names is ever called.

use std::collections::BTreeMap;
use std::io::{BufReader, Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use candle_core::pickle::{Object, PthTensors, Stack, TensorInfo};
use candle_core::{DType, Device, Tensor};

use crate::{Error, Result};

pub(super) enum File {
    Zip {
        path: PathBuf,
        tensors: PthTensors,
    },
    Legacy {
        path: PathBuf,
        tensors: BTreeMap<String, TensorInfo>,
        /// Storage key → where its data starts in the file, and its number of elements.
        storages: BTreeMap<String, (u64, usize)>,
    },
}

/// The first pickle of a legacy file: protocol 2, one long integer, stop.
const LEGACY_MAGIC: &[u8] = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19.";

impl File {
    pub(super) fn open(path: &Path) -> Result<Self> {
        let mut file = std::fs::File::open(path).map_err(|e| Error::io("read", path, e))?;
        let mut magic = [0u8; LEGACY_MAGIC.len()];
        let legacy = file.read_exact(&mut magic).is_ok() && magic == LEGACY_MAGIC;
        if legacy {
            return Self::open_legacy(path, BufReader::new(file));
        }
        let tensors = PthTensors::new(path, None).map_err(|e| damaged(path, e))?;
        Ok(Self::Zip {
            path: path.to_path_buf(),
            tensors,
        })
    }

    fn open_legacy(path: &Path, mut reader: BufReader<std::fs::File>) -> Result<Self> {
        let mut next = || -> Result<Object> {
            let mut stack = Stack::empty();
            stack.read_loop(&mut reader).map_err(|e| damaged(path, e))?;
            stack.finalize().map_err(|e| damaged(path, e))
        };
        let _protocol = next()?;
        let _system = next()?;
        let state_dict = next()?;
        let keys = next()?;

        let mut tensors = BTreeMap::new();
        for (name, value) in entries(state_dict) {
            // The folder only matters inside zip archives; here the storage key is what counts.
            if let Some(info) = value
                .into_tensor_info(name, Path::new(""))
                .map_err(|e| damaged(path, e))?
            {
                tensors.insert(info.name.clone(), info);
            }
        }
        let Object::List(keys) = keys else {
            return Err(damaged(path, "the list of storages is missing"));
        };
        let dtypes: BTreeMap<&str, DType> = tensors
            .values()
            .map(|info| (storage_key(info), info.dtype))
            .collect();
        let mut storages = BTreeMap::new();
        for key in keys {
            let key = key
                .unicode()
                .map_err(|_| damaged(path, "a storage's key is not a string"))?;
            let mut count = [0u8; 8];
            reader
                .read_exact(&mut count)
                .map_err(|e| damaged(path, e))?;
            let count = u64::from_le_bytes(count);
            let start = reader.stream_position().map_err(|e| damaged(path, e))?;
            let dtype = dtypes
                .get(key.as_str())
                .ok_or_else(|| damaged(path, format!("storage {key} belongs to no tensor")))?;
            let bytes = count
                .checked_mul(dtype.size_in_bytes() as u64)
                .and_then(|bytes| i64::try_from(bytes).ok())
                .ok_or_else(|| damaged(path, "a storage's length is absurd"))?;
            reader.seek_relative(bytes).map_err(|e| damaged(path, e))?;
            storages.insert(key, (start, count as usize));
        }
        let end = reader.stream_position().map_err(|e| damaged(path, e))?;
        let length = std::fs::metadata(path)
            .map_err(|e| Error::io("read", path, e))?
            .len();
        if end > length {
            return Err(damaged(path, "it ends in the middle of the data"));
        }
        Ok(Self::Legacy {
            path: path.to_path_buf(),
            tensors,
            storages,
        })
    }

    pub(super) fn names(&self) -> Vec<String> {
        match self {
            Self::Zip { tensors, .. } => tensors.tensor_infos().keys().cloned().collect(),
            Self::Legacy { tensors, .. } => tensors.keys().cloned().collect(),
        }
    }

    pub(super) fn tensor(&self, name: &str, device: &Device) -> Result<Tensor> {
        match self {
            Self::Zip { path, tensors } => tensors
                .get(name)
                .map_err(|e| damaged(path, e))?
                .ok_or_else(|| damaged(path, format!("no array {name}")))?
                .contiguous()
                .and_then(|tensor| tensor.to_device(device))
                .map_err(Error::from),
            Self::Legacy {
                path,
                tensors,
                storages,
            } => {
                let info = tensors
                    .get(name)
                    .ok_or_else(|| damaged(path, format!("no array {name}")))?;
                let &(start, count) = storages
                    .get(storage_key(info))
                    .ok_or_else(|| damaged(path, format!("{name}: its storage is missing")))?;
                read_legacy(path, info, start, count, device)
            }
        }
    }
}

/// One tensor of a legacy file, whose storage of `count` elements starts at byte `start`.
fn read_legacy(
    path: &Path,
    info: &TensorInfo,
    start: u64,
    count: usize,
    device: &Device,
) -> Result<Tensor> {
    let name = &info.name;
    let layout = &info.layout;
    if !layout.is_contiguous() {
        return Err(damaged(
            path,
            format!(
                "{name} is stored with strides {:?}; save it contiguously",
                layout.stride()
            ),
        ));
    }
    let bytes = layout.shape().elem_count() * info.dtype.size_in_bytes();
    let offset = layout.start_offset();
    if offset + bytes > count * info.dtype.size_in_bytes() {
        return Err(damaged(path, format!("{name} reaches beyond its storage")));
    }
    let mut file = std::fs::File::open(path).map_err(|e| Error::io("read", path, e))?;
    let mut data = vec![0u8; bytes];
    file.seek(SeekFrom::Start(start + offset as u64))
        .and_then(|_| file.read_exact(&mut data))
        .map_err(|e| damaged(path, e))?;
    Ok(Tensor::from_raw_buffer(
        &data,
        info.dtype,
        layout.dims(),
        device,
    )?)
}

/// The entries of a state dict, whether a plain dict or one with attributes attached.
fn entries(object: Object) -> Vec<(Object, Object)> {
    match object {
        Object::Dict(entries) => entries,
        Object::Build { callable, .. } => entries(*callable),
        Object::Reduce { args, .. } => match *args {
            Object::Tuple(items) => items.into_iter().flat_map(entries).collect(),
            other => entries(other),
        },
        _ => Vec::new(),
    }
}

fn storage_key(info: &TensorInfo) -> &str {
    info.path.trim_start_matches('/')
}

fn damaged(path: &Path, what: impl std::fmt::Display) -> Error {
    Error::format(
        path,
        format!(
            "not a readable PyTorch weight file ({what}): it is truncated, damaged or of an unknown kind"
        ),
    )
}
