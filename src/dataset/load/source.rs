//! A data file as its readers see it: unpacked, in UTF-8, without a byte order mark.

use std::fs::File;
use std::io::{BufRead, BufReader, Cursor, Error as IoError, ErrorKind, Read, Seek, SeekFrom};
use std::ops::Range;
use std::path::Path;

use encoding_rs::{CoderResult, Decoder, Encoding, UTF_8};

use crate::{Error, Result};

/// The bytes of a data file.
pub(super) type Source = Box<dyn Read + Send>;

/// The endings of compressed files that are unpacked while they are read.
pub(super) const COMPRESSED: [&str; 7] = ["gz", "gzip", "bz2", "xz", "zst", "zstd", "lz4"];

/// The limit on the expansion of a compressed file: this factor, or this size in any case. Typical data expand a few
/// times, repetitive logs a hundred times; reading more would take unexpectedly long for a file of that size.
const MOST_TIMES: u64 = 256;
const AT_LEAST: u64 = 16 << 20;

/// The compression of a file's content, recognised by its first bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Packing {
    Gzip,
    Bzip2,
    Xz,
    Zstd,
    Lz4,
}

impl Packing {
    fn of(start: &[u8]) -> Option<Self> {
        match start {
            [0x1f, 0x8b, 8, ..] => Some(Self::Gzip),
            [
                b'B',
                b'Z',
                b'h',
                b'1'..=b'9',
                0x31,
                0x41,
                0x59,
                0x26,
                0x53,
                0x59,
                ..,
            ]
            | [
                b'B',
                b'Z',
                b'h',
                b'1'..=b'9',
                0x17,
                0x72,
                0x45,
                0x38,
                0x50,
                0x90,
                ..,
            ] => Some(Self::Bzip2),
            [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Some(Self::Xz),
            [0x28, 0xb5, 0x2f, 0xfd, ..] => Some(Self::Zstd),
            [0x04, 0x22, 0x4d, 0x18, ..] => Some(Self::Lz4),
            _ => None,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Gzip => "gzip",
            Self::Bzip2 => "bzip2",
            Self::Xz => "xz",
            Self::Zstd => "zstd",
            Self::Lz4 => "lz4",
        }
    }
}

/// Returns the name of an unsupported compression format, recognised by its first bytes.
fn archive(start: &[u8]) -> Option<&'static str> {
    match start {
        [b'P', b'K', 3, 4, ..] | [b'P', b'K', 5, 6, ..] => Some("a ZIP archive"),
        [b'7', b'z', 0xbc, 0xaf, 0x27, 0x1c, ..] => Some("a 7z archive"),
        [b'R', b'a', b'r', b'!', 0x1a, 7, ..] => Some("a RAR archive"),
        [0x1f, 0x9d, ..] => Some("a file compressed with compress"),
        [0xff, 6, 0, 0, b's', b'N', b'a', b'P', b'p', b'Y', ..] => {
            Some("a file compressed with snappy")
        }
        [b'L', b'Z', b'I', b'P', 1, ..] => Some("a file compressed with lzip"),
        [0x5d, 0, 0, _, _, 0xff, 0xff, 0xff, 0xff, ..] => Some("a file compressed with lzma"),
        _ if start.get(257..262) == Some(b"ustar") => Some("a tar archive"),
        _ => None,
    }
}

/// Opens a data file: decompresses gzip, bzip2, xz, zstd and lz4, converts `encoding` (or UTF-16 with a byte order
/// mark) to UTF-8, and drops a byte order mark.
///
/// # Errors
/// If the file can't be read, is a Git LFS pointer, is compressed in an unsupported format, or is compressed twice.
pub(super) fn open(path: &Path, encoding: Option<&'static Encoding>) -> Result<Source> {
    let (source, _) = unpacked(path)?;
    let mut source = source;
    let start = start_of(&mut source, 3).map_err(|error| Error::io("read", path, error))?;
    let (encoding, skip) = match (Encoding::for_bom(&start), encoding) {
        (Some((found, length)), None) => (found, length),
        (Some((found, length)), Some(asked)) if found == asked => (found, length),
        (_, asked) => (asked.unwrap_or(UTF_8), 0),
    };
    let source: Source = Box::new(Cursor::new(start[skip..].to_vec()).chain(source));
    if encoding == UTF_8 {
        return Ok(source);
    }
    Ok(Box::new(Decoded {
        source,
        decoder: encoding.new_decoder_without_bom_handling(),
        name: encoding.name(),
        input: Vec::new(),
        output: Vec::new(),
        at: 0,
        at_end: false,
    }))
}

/// Returns whether a file's bytes are plain text: neither compressed nor in another encoding.
pub(super) fn is_plain(path: &Path, encoding: Option<&'static Encoding>) -> Result<bool> {
    let (mut source, is_packed) = unpacked(path)?;
    let start = start_of(&mut source, 3).map_err(|error| Error::io("read", path, error))?;
    Ok(!is_packed
        && Encoding::for_bom(&start).is_none()
        && encoding.is_none_or(|encoding| encoding == UTF_8))
}

/// Returns where the first line at or after `at` begins.
pub(super) fn line_start(file: &mut File, at: u64) -> std::io::Result<u64> {
    if at == 0 {
        return Ok(0);
    }
    file.seek(SeekFrom::Start(at - 1))?;
    let mut reader = BufReader::new(file);
    let mut passed = 0;
    loop {
        let buffer = reader.fill_buf()?;
        if let Some(end) = memchr::memchr(b'\n', buffer) {
            return Ok(at + passed + end as u64);
        }
        let length = buffer.len();
        if length == 0 {
            return Ok((at - 1 + passed).max(at));
        }
        passed += length as u64;
        reader.consume(length);
    }
}

/// Opens the lines of a plain file that begin within `bytes`.
pub(super) fn open_within(path: &Path, bytes: Range<u64>) -> Result<Source> {
    let open = || -> std::io::Result<Source> {
        let mut file = File::open(path)?;
        let start = line_start(&mut file, bytes.start)?;
        let end = line_start(&mut file, bytes.end)?;
        file.seek(SeekFrom::Start(start))?;
        let lines = file.take(end.saturating_sub(start));
        Ok(Box::new(BufReader::with_capacity(1 << 18, lines)))
    };
    open().map_err(|error| Error::io("read", path, error))
}

/// Returns the file's decompressed bytes, and whether they were compressed.
pub(super) fn unpacked(path: &Path) -> Result<(Source, bool)> {
    let io = |error| Error::io("read", path, error);
    crate::base::files::refuse_lfs_pointer(path)?;
    let mut file = File::open(path).map_err(io)?;
    let size = file.metadata().map_err(io)?.len();
    let start = start_of(&mut file, 512).map_err(io)?;
    let packing = Packing::of(&start);
    if packing.is_none() {
        refuse_archive(path, &start)?;
    }
    if packing == Some(Packing::Lz4) && !ends_as_lz4(&mut file, start.len() as u64).map_err(io)? {
        return Err(Error::format(
            path,
            "its lz4 data is truncated or damaged (it has no end)",
        ));
    }
    let file = BufReader::with_capacity(1 << 18, Cursor::new(start).chain(file));
    let Some(packing) = packing else {
        return Ok((Box::new(file), false));
    };
    let inner: Source = match packing {
        Packing::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(file)),
        Packing::Bzip2 => Box::new(bzip2::bufread::MultiBzDecoder::new(file)),
        // Its dictionary's size is a number from the file.
        Packing::Xz => Box::new(lzma_rust2::XzReader::new_mem_limit(file, true, 256 << 10)),
        Packing::Zstd => {
            let mut decoder = zstd::stream::read::Decoder::with_buffer(file).map_err(io)?;
            decoder.window_log_max(27).map_err(io)?;
            Box::new(decoder)
        }
        Packing::Lz4 => Box::new(Frames(lz4_flex::frame::FrameDecoder::new(file))),
    };
    let mut source = Unpacked {
        inner,
        packing,
        left: size.saturating_mul(MOST_TIMES).max(AT_LEAST),
    };
    let start = start_of(&mut source, 512).map_err(io)?;
    refuse_archive(path, &start)?;
    if let Some(inner) = Packing::of(&start) {
        let (outer, inner) = (packing.name(), inner.name());
        return Err(Error::format(
            path,
            format!(
                "this is compressed twice: inside {outer} is {inner} data. Unpack it once and load the result"
            ),
        ));
    }
    Ok((Box::new(Cursor::new(start).chain(source)), true))
}

/// The frames of lz4 data, one after the other: their unpacker reports an end after each of them.
struct Frames<R: BufRead>(lz4_flex::frame::FrameDecoder<R>);

impl<R: BufRead> Read for Frames<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        loop {
            let read = self.0.read(buffer)?;
            if read > 0 || buffer.is_empty() || self.0.get_mut().fill_buf()?.is_empty() {
                return Ok(read);
            }
        }
    }
}

/// Returns whether a file ends with the mark that ends lz4 data, and perhaps a checksum: its unpacker does not ask for
/// that. The file is at `at` before and after.
fn ends_as_lz4(file: &mut File, at: u64) -> std::io::Result<bool> {
    let mut end = [0; 8];
    let length = file.metadata()?.len();
    if length < 11 {
        return Ok(false);
    }
    file.seek(SeekFrom::Start(length - 8))?;
    file.read_exact(&mut end)?;
    file.seek(SeekFrom::Start(at))?;
    Ok(end[4..] == [0; 4] || end[..4] == [0; 4])
}

/// Returns the first bytes of a file, unpacked.
pub(super) fn beginning(path: &Path, length: usize) -> Result<Vec<u8>> {
    let mut source = open(path, None)?;
    start_of(&mut source, length).map_err(|error| Error::io("read", path, error))
}

fn refuse_archive(path: &Path, start: &[u8]) -> Result<()> {
    match archive(start) {
        None => Ok(()),
        Some(kind) => Err(Error::format(
            path,
            format!(
                "this is {kind}, which can't be read directly: unpack it and load the result. Files compressed with gzip, bzip2, xz, zstd or lz4 are unpacked while they are read"
            ),
        )),
    }
}

fn start_of(source: &mut (impl Read + ?Sized), length: usize) -> std::io::Result<Vec<u8>> {
    let mut start = Vec::with_capacity(length);
    source.take(length as u64).read_to_end(&mut start)?;
    Ok(start)
}

/// A decompressor that reports errors, and stops at the expansion limit.
struct Unpacked {
    inner: Source,
    packing: Packing,
    left: u64,
}

impl Read for Unpacked {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let inner = &mut self.inner;
        let name = self.packing.name();
        let read = crate::base::panics::caught(|| inner.read(buffer))
            .unwrap_or_else(|panic| Err(IoError::other(panic)))
            .map_err(|error| {
                let words = format!("its {name} data is truncated or damaged ({error})");
                IoError::new(ErrorKind::InvalidData, words)
            })?;
        self.left = self.left.checked_sub(read as u64).ok_or_else(|| {
            let words = format!(
                "its {name} data unpacks to more than {MOST_TIMES} times its size: if that is intended, unpack it and load the result"
            );
            IoError::new(ErrorKind::InvalidData, words)
        })?;
        Ok(read)
    }
}

/// Text of another encoding as UTF-8.
struct Decoded {
    source: Source,
    decoder: Decoder,
    name: &'static str,
    input: Vec<u8>,
    output: Vec<u8>,
    at: usize,
    at_end: bool,
}

impl Read for Decoded {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        while self.at == self.output.len() {
            if self.at_end {
                return Ok(0);
            }
            self.input = start_of(&mut self.source, 64 << 10)?;
            self.at_end = self.input.is_empty();
            let most = self.decoder.max_utf8_buffer_length(self.input.len());
            self.output.resize(most.unwrap_or(4 << 16), 0);
            let (result, _, written, malformed) =
                self.decoder
                    .decode_to_utf8(&self.input, &mut self.output, self.at_end);
            if malformed || result == CoderResult::OutputFull {
                let words = format!("the text is not valid {}", self.name);
                return Err(IoError::new(ErrorKind::InvalidData, words));
            }
            self.output.truncate(written);
            self.at = 0;
        }
        let length = buffer.len().min(self.output.len() - self.at);
        buffer[..length].copy_from_slice(&self.output[self.at..self.at + length]);
        self.at += length;
        Ok(length)
    }
}

/// Returns the encoding that people call `label`: "latin-1", "utf-16", "cp1252", ...
pub(super) fn encoding(label: &str) -> Result<&'static Encoding> {
    // Python's names for what the web calls otherwise.
    let plain = label.trim().to_ascii_lowercase().replace('_', "-");
    let web = match plain.as_str() {
        "latin-1" | "latin1" | "iso8859-1" | "l1" => "iso-8859-1",
        "utf8" | "utf-8-sig" => "utf-8",
        "utf16" | "utf-16" => "utf-16le",
        other => match other.strip_prefix("cp125") {
            Some(digit) => return encoding(&format!("windows-125{digit}")),
            None => other,
        },
    };
    Encoding::for_label(web.as_bytes()).ok_or_else(|| {
        Error::argument(
            "encoding",
            format!("{label:?} is not a known encoding; convert the file to UTF-8"),
        )
    })
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn file(bytes: &[u8]) -> (tempfile::TempDir, std::path::PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("data");
        std::fs::write(&path, bytes).unwrap();
        (folder, path)
    }

    fn read(bytes: &[u8], encoding: Option<&'static Encoding>) -> Result<Vec<u8>> {
        let (_folder, path) = file(bytes);
        let mut out = Vec::new();
        open(&path, encoding)?
            .read_to_end(&mut out)
            .map_err(|error| Error::io("read", &path, error))?;
        Ok(out)
    }

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut writer = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
        writer.write_all(bytes).unwrap();
        writer.finish().unwrap()
    }

    fn bzip2(bytes: &[u8]) -> Vec<u8> {
        let mut writer = bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::best());
        writer.write_all(bytes).unwrap();
        writer.finish().unwrap()
    }

    fn lz4(bytes: &[u8]) -> Vec<u8> {
        let mut writer = lz4_flex::frame::FrameEncoder::new(Vec::new());
        writer.write_all(bytes).unwrap();
        writer.finish().unwrap()
    }

    fn xz(bytes: &[u8]) -> Vec<u8> {
        let options = lzma_rust2::XzOptions::default();
        let mut writer = lzma_rust2::XzWriter::new(Vec::new(), options).unwrap();
        writer.write_all(bytes).unwrap();
        writer.finish().unwrap()
    }

    fn zstd(bytes: &[u8]) -> Vec<u8> {
        zstd::encode_all(bytes, 3).unwrap()
    }

    #[test]
    fn every_compression_round_trips_in_one_part_or_two() {
        let text: Vec<u8> = (0..50_000u32)
            .flat_map(|n| n.to_string().into_bytes())
            .collect();
        type Pack = fn(&[u8]) -> Vec<u8>;
        for (name, pack) in [
            ("gzip", gzip as Pack),
            ("bzip2", bzip2),
            ("xz", xz),
            ("lz4", lz4),
            ("zstd", zstd),
        ] {
            let packed = pack(&text);
            assert!(packed.len() < text.len());
            assert!(read(&packed, None).is_ok_and(|back| back == text), "{name}");
            let twice = [packed.clone(), packed.clone()].concat();
            assert!(
                read(&twice, None).unwrap() == [&*text, &text].concat(),
                "{name}"
            );
            let cut = &twice[..twice.len() - packed.len() / 2];
            let error = read(cut, None).map(drop).unwrap_err();
            assert!(
                error.to_string().contains("truncated or damaged"),
                "{name}: {error}"
            );
            for length in [12, packed.len() / 2, packed.len() - 1] {
                let error = read(&packed[..length], None).map(drop).unwrap_err();
                assert!(
                    error.to_string().contains("truncated or damaged"),
                    "{name}: {error}"
                );
            }
        }
    }

    #[test]
    fn unsupported_archives_are_named() {
        let mut tar = vec![0; 600];
        tar[257..262].copy_from_slice(b"ustar");
        for (bytes, expected) in [
            (b"PK\x03\x04rest".to_vec(), "a ZIP archive"),
            (b"7z\xbc\xaf\x27\x1crest".to_vec(), "a 7z archive"),
            (tar.clone(), "a tar archive"),
            (gzip(&tar), "a tar archive"),
            (zstd(b"PK\x03\x04rest"), "a ZIP archive"),
            (bzip2(b"7z\xbc\xaf\x27\x1crest"), "a 7z archive"),
        ] {
            let error = read(&bytes, None).unwrap_err().to_string();
            assert!(
                error.contains(expected) && error.contains("unpack it"),
                "{error}"
            );
        }
    }

    #[test]
    fn doubly_compressed_files_are_reported() {
        let text = b"a,b\n1,2\n".repeat(9);
        type Pack = fn(&[u8]) -> Vec<u8>;
        let packings = [
            ("gzip", gzip as Pack),
            ("bzip2", bzip2),
            ("xz", xz),
            ("zstd", zstd),
            ("lz4", lz4),
        ];
        for (outer, pack_outer) in packings {
            for (inner, pack_inner) in packings {
                let error = read(&pack_outer(&pack_inner(&text)), None).unwrap_err();
                let told = error.to_string();
                let expected = format!("compressed twice: inside {outer} is {inner} data");
                assert!(
                    told.contains(&expected) && told.contains("Unpack"),
                    "{told}"
                );
            }
        }
    }

    #[test]
    fn a_decompression_bomb_is_stopped() {
        let bomb = bzip2(&vec![0; 40 << 20]);
        assert!(bomb.len() < 10_000);
        let error = read(&bomb, None).unwrap_err().to_string();
        assert!(error.contains("more than 256 times its size"), "{error}");
    }

    #[test]
    fn encodings_become_utf8_and_byte_order_marks_are_removed() {
        let latin = encoding("latin-1").unwrap();
        assert_eq!(
            read(b"na\xefve", Some(latin)).unwrap(),
            "na\u{ef}ve".as_bytes()
        );
        let utf16: Vec<u8> = "\u{feff}h\u{e9}"
            .encode_utf16()
            .flat_map(u16::to_le_bytes)
            .collect();
        assert_eq!(read(&utf16, None).unwrap(), "h\u{e9}".as_bytes());
        assert_eq!(
            read(&utf16, Some(encoding("UTF-16").unwrap())).unwrap(),
            "h\u{e9}".as_bytes()
        );
        assert_eq!(read(b"\xef\xbb\xbfabc", None).unwrap(), b"abc");
        assert_eq!(
            read("\u{20ac}".as_bytes(), None).unwrap(),
            "\u{20ac}".as_bytes()
        );
        assert_eq!(
            read(b"\x80", Some(encoding("cp1252").unwrap())).unwrap(),
            "\u{20ac}".as_bytes()
        );
        assert!(read(b"\xff\xff", Some(encoding("shift_jis").unwrap())).is_err());
        assert!(encoding("klingon").is_err());
    }
}
