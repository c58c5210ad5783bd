//! Weights in `pytorch_model.bin`: the zip archive of today, and the plain sequence of pickles from before PyTorch 1.6.
//!
//! A pickle is read as data: nothing it names is ever called.

use std::collections::BTreeMap;
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};

use candle_core::pickle::{Object, PthTensors, Stack, TensorInfo};
use candle_core::{DType, Device, Tensor};

use super::pickle_size;
use crate::base::panics::caught;
use crate::ops::MappedFile;
use crate::{Error, Result};

pub(super) enum File {
    Zip {
        path: PathBuf,
        tensors: PthTensors,
        /// The archive's part with an array's data → its bytes.
        sizes: BTreeMap<String, u64>,
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
        let bytes = MappedFile::open(path)?;
        // What a damaged file says has been seen to panic in the libraries that read it.
        caught(|| match bytes.starts_with(LEGACY_MAGIC) {
            true => Self::open_legacy(path, &bytes),
            false => Self::open_zip(path, &bytes),
        })
        .unwrap_or_else(|panic| Err(damaged(path, panic)))
    }

    fn open_zip(path: &Path, bytes: &[u8]) -> Result<Self> {
        let mut zip =
            zip::ZipArchive::new(std::io::Cursor::new(bytes)).map_err(|e| damaged(path, e))?;
        // No part of an archive of PyTorch is compressed, so none is larger than the archive.
        let fits = |size: u64| match size <= bytes.len() as u64 {
            true => Ok(size),
            false => Err(damaged(
                path,
                "a part of it claims to be larger than the whole",
            )),
        };
        for index in 0..zip.len() {
            let mut entry = zip.by_index(index).map_err(|e| damaged(path, e))?;
            if entry.name().is_ok_and(|name| name.ends_with("data.pkl")) {
                let mut pickle = Vec::with_capacity(fits(entry.size())? as usize);
                let most = bytes.len() as u64;
                (&mut entry)
                    .take(most)
                    .read_to_end(&mut pickle)
                    .map_err(|e| damaged(path, e))?;
                pickle_size::check(&pickle).map_err(|e| damaged(path, e))?;
            }
        }
        let tensors = PthTensors::new(path, None).map_err(|e| damaged(path, e))?;
        let mut sizes = BTreeMap::new();
        for info in tensors.tensor_infos().values() {
            let entry = zip.by_name(&info.path).map_err(|e| damaged(path, e))?;
            sizes.insert(info.path.clone(), fits(entry.size())?);
        }
        Ok(Self::Zip {
            path: path.to_path_buf(),
            tensors,
            sizes,
        })
    }

    fn open_legacy(path: &Path, bytes: &[u8]) -> Result<Self> {
        let mut at = LEGACY_MAGIC.len();
        let mut next = || -> Result<Object> {
            let length = pickle_size::check(&bytes[at..]).map_err(|e| damaged(path, e))?;
            let mut pickle = &bytes[at..at + length];
            at += length;
            let mut stack = Stack::empty();
            stack.read_loop(&mut pickle).map_err(|e| damaged(path, e))?;
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
            let dtype = dtypes
                .get(key.as_str())
                .ok_or_else(|| damaged(path, format!("storage {key} belongs to no tensor")))?;
            let cut_short = || damaged(path, "it ends in the middle of the data");
            let count = bytes.get(at..at + 8).ok_or_else(cut_short)?;
            let count = u64::from_le_bytes(count.try_into().unwrap_or_default());
            let start = at + 8;
            at = count
                .checked_mul(dtype.size_in_bytes() as u64)
                .and_then(|length| usize::try_from(length).ok())
                .and_then(|length| start.checked_add(length))
                .filter(|&end| end <= bytes.len())
                .ok_or_else(cut_short)?;
            storages.insert(key, (start as u64, count as usize));
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
        let (Self::Zip { path, .. } | Self::Legacy { path, .. }) = self;
        caught(|| self.read(name, device)).unwrap_or_else(|panic| Err(damaged(path, panic)))
    }

    fn read(&self, name: &str, device: &Device) -> Result<Tensor> {
        match self {
            Self::Zip {
                path,
                tensors,
                sizes,
            } => {
                let missing = || damaged(path, format!("no array {name}"));
                let info = tensors.tensor_infos().get(name).ok_or_else(missing)?;
                let size = sizes.get(&info.path).ok_or_else(missing)?;
                check_extent(path, info, *size)?;
                tensors
                    .get(name)
                    .map_err(|e| damaged(path, e))?
                    .ok_or_else(missing)?
                    .contiguous()
                    .and_then(|tensor| tensor.to_device(device))
                    .map_err(Error::from)
            }
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

/// Returns one tensor of a legacy file, whose storage of `count` elements starts at byte `start`.
fn read_legacy(
    path: &Path,
    info: &TensorInfo,
    start: u64,
    count: usize,
    device: &Device,
) -> Result<Tensor> {
    let name = &info.name;
    let layout = &info.layout;
    check_extent(path, info, (count * info.dtype.size_in_bytes()) as u64)?;
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

/// Checks that an array's shape and offset, which are numbers from the file, lie within its storage of `bytes` bytes.
fn check_extent(path: &Path, info: &TensorInfo, bytes: u64) -> Result<()> {
    let dims = info.layout.dims().iter();
    let size = dims
        .map(|&dim| dim as u64)
        .try_fold(info.dtype.size_in_bytes() as u64, u64::checked_mul);
    let end = size.and_then(|size| size.checked_add(info.layout.start_offset() as u64));
    match end.is_some_and(|end| end <= bytes) {
        true => Ok(()),
        false => Err(damaged(
            path,
            format!(
                "{} of shape {:?} reaches beyond its storage of {bytes} bytes",
                info.name,
                info.layout.dims()
            ),
        )),
    }
}

/// Returns the entries of a state dict, whether a plain dict or one with attributes attached.
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

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    /// Returns an archive as PyTorch writes it: `pickle`, and `data` as the storage "0".
    fn archive(pickle: &[u8], data: &[u8]) -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("pytorch_model.bin");
        let mut zip = zip::ZipWriter::new(std::fs::File::create(&path).unwrap());
        let stored = zip::write::SimpleFileOptions::default()
            .compression_method(zip::CompressionMethod::Stored);
        for (name, bytes) in [("archive/data.pkl", pickle), ("archive/data/0", data)] {
            zip.start_file(name, stored).unwrap();
            zip.write_all(bytes).unwrap();
        }
        zip.finish().unwrap();
        (folder, path)
    }

    /// Returns a state dict with one array "w" of `rows` (an instruction that pushes a number) by 1.
    fn state_dict(rows: &[u8], arguments: usize) -> Vec<u8> {
        let text = |text: &str| {
            let mut bytes = vec![b'X'];
            bytes.extend((text.len() as u32).to_le_bytes());
            bytes.extend(text.as_bytes());
            bytes
        };
        let mut pickle = b"\x80\x02}".to_vec();
        pickle.extend(text("w"));
        pickle.extend(b"ctorch._utils\n_rebuild_tensor_v2\n((");
        pickle.extend(text("storage"));
        pickle.extend(b"ctorch\nFloatStorage\n");
        pickle.extend(text("0"));
        pickle.extend(text("cpu"));
        pickle.extend(b"K\x02tQ");
        let rest: [&[u8]; 4] = [
            b"K\x00",
            &[b"(", rows, b"K\x01t"].concat(),
            b"K\x01K\x01\x86",
            b"\x89",
        ];
        pickle.extend(rest[..arguments].concat());
        pickle.extend(b"tRs.");
        pickle
    }

    #[test]
    fn an_array_is_read_and_an_out_of_bounds_one_refused() {
        let data: Vec<u8> = [1f32, 2.0].iter().flat_map(|x| x.to_le_bytes()).collect();
        let (_folder, path) = archive(&state_dict(b"K\x02", 4), &data);
        let file = File::open(&path).unwrap();
        let tensor = file.tensor("w", &Device::Cpu).unwrap();
        assert_eq!(tensor.to_vec2::<f32>().unwrap(), [[1.0], [2.0]]);
        for rows in [&b"K\x03"[..], b"J\xff\xff\xff\x7f"] {
            let (_folder, path) = archive(&state_dict(rows, 4), &data);
            let file = File::open(&path).unwrap();
            let error = file.tensor("w", &Device::Cpu).unwrap_err().to_string();
            assert!(error.contains("reaches beyond its storage"), "{error}");
        }
    }

    #[test]
    fn too_few_arguments_are_an_error() {
        for arguments in 0..3 {
            let (_folder, path) = archive(&state_dict(b"K\x02", arguments), &[0; 8]);
            let error = File::open(&path).map(drop).unwrap_err().to_string();
            assert!(
                error.contains("not a readable PyTorch weight file"),
                "{error}"
            );
        }
    }

    #[test]
    fn a_bomb_is_refused_at_once_in_either_layout() {
        let mut bomb = b"\x80\x02)q\x00".to_vec();
        bomb.extend(b"h\x00h\x00h\x00\x87q\x00".repeat(60));
        bomb.push(b'.');
        let started = std::time::Instant::now();
        let (_folder, path) = archive(&bomb, &[]);
        let error = File::open(&path).map(drop).unwrap_err().to_string();
        assert!(error.contains("expand"), "{error}");
        std::fs::write(&path, [LEGACY_MAGIC, &bomb].concat()).unwrap();
        let error = File::open(&path).map(drop).unwrap_err().to_string();
        assert!(error.contains("expand"), "{error}");
        assert!(started.elapsed().as_secs_f64() < 1.0);
    }

    #[test]
    fn any_damaged_file_is_an_error_or_gives_arrays() {
        let whole = state_dict(b"K\x02", 4);
        for at in 0..whole.len() {
            for byte in [0, b'.', b'h', b'R', 0xff] {
                let mut damaged = whole.clone();
                damaged[at] = byte;
                let (_folder, path) = archive(&damaged, &[0; 8]);
                if let Ok(file) = File::open(&path) {
                    for name in file.names() {
                        let _ = file.tensor(&name, &Device::Cpu);
                    }
                }
            }
        }
    }
}
