//! Maps an address in a cell's library to lines of the cell.

use addr2line::Context;
use addr2line::gimli::{Dwarf, EndianSlice, Error, NativeEndian};
use object::{Object, ObjectSection};

/// Returns the lines and columns of cells at an address of the library with these bytes, the innermost first; there are
/// several where a call was inlined.
pub fn of_address(library: &[u8], address: u64) -> Option<Vec<(usize, usize)>> {
    let file = object::File::parse(library).ok()?;
    let dwarf = Dwarf::load(|section| {
        let section = file.section_by_name(section.name());
        let bytes = section.and_then(|section| section.data().ok());
        Ok::<_, Error>(EndianSlice::new(bytes.unwrap_or_default(), NativeEndian))
    });
    let lines = Context::from_dwarf(dwarf.ok()?).ok()?;
    let mut frames = lines.find_frames(address).skip_all_loads().ok()?;
    let mut places = Vec::new();
    while let Ok(Some(frame)) = frames.next() {
        if let Some(place) = frame.location
            && place.file.is_some_and(|file| file.ends_with("cell/lib.rs"))
            && let Some(line) = place.line
        {
            places.push((line as usize, place.column.unwrap_or(1) as usize));
        }
    }
    Some(places)
}
