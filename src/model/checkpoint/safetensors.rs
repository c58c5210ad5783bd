//! Weights in `.safetensors` files, mapped into memory.

use std::path::{Path, PathBuf};

use candle_core::{DType, Device, Tensor};
use safetensors::SafeTensors;
use safetensors::tensor::Metadata;

use crate::ops::{self, MappedFile};
use crate::{Error, Result};

pub(super) struct File {
    path: PathBuf,
    bytes: MappedFile,
    metadata: Metadata,
    data_start: usize,
}

impl File {
    pub(super) fn open(path: &Path) -> Result<Self> {
        let bytes = MappedFile::open(path)?;
        let (header, metadata) = SafeTensors::read_metadata(&bytes).map_err(|e| {
            Error::format(
                path,
                format!(
                    "not a complete safetensors file ({e}; {} bytes): it is truncated or damaged, copy or download it again",
                    bytes.len()
                ),
            )
        })?;
        // The header's own length stands in eight bytes before it.
        let data_start = header + 8;
        Ok(Self {
            path: path.to_path_buf(),
            bytes,
            metadata,
            data_start,
        })
    }

    pub(super) fn names(&self) -> Vec<String> {
        self.metadata.tensors().into_keys().collect()
    }

    pub(super) fn tensor(&self, name: &str, device: &Device) -> Result<Tensor> {
        let damaged = |what: String| Error::format(&self.path, format!("{name}: {what}"));
        let info = self
            .metadata
            .info(name)
            .ok_or_else(|| damaged("no such array".to_owned()))?;
        let dtype = DType::try_from(info.dtype)
            .map_err(|_| damaged(format!("unsupported dtype {:?}", info.dtype)))?;
        let (start, end) = info.data_offsets;
        let data = self
            .bytes
            .get(self.data_start + start..self.data_start + end)
            .ok_or_else(|| damaged("its data is outside the file".to_owned()))?;
        if device.is_cpu() && dtype == DType::F32 {
            return ops::copied(data, &info.shape);
        }
        Ok(Tensor::from_raw_buffer(data, dtype, &info.shape, device)?)
    }
}
