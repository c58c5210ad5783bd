//! Which texts run through the model together.

use crate::{Error, Result};

/// The most places, padding included, that one group may fill; it bounds the memory that a group takes.
const MOST_TOKENS: usize = 8192;

/// Groups of indices into `lengths`, shortest texts first, of at most `size`; of equal length unless `paddable`.
pub(super) fn by_length(lengths: &[usize], size: usize, paddable: bool) -> Result<Vec<Vec<usize>>> {
    if size == 0 {
        return Err(Error::argument("batch_size", "must be at least 1"));
    }
    let mut order: Vec<usize> = (0..lengths.len()).collect();
    order.sort_by_key(|&index| lengths[index]);
    let mut groups: Vec<Vec<usize>> = Vec::new();
    for index in order {
        // Texts come by length, so this one sets the length of the group.
        let length = lengths[index];
        match groups.last_mut() {
            Some(group)
                if group.len() < size
                    && (group.len() + 1) * length <= MOST_TOKENS
                    && (paddable || lengths[group[0]] == length) =>
            {
                group.push(index);
            }
            _ => groups.push(vec![index]),
        }
    }
    Ok(groups)
}

/// Groups of neighbours in the order that they came in, as the reference's pipeline makes them: every `size` of `count`.
pub(super) fn in_order(count: usize, size: usize) -> Result<Vec<Vec<usize>>> {
    if size == 0 {
        return Err(Error::argument("batch_size", "must be at least 1"));
    }
    let indices: Vec<usize> = (0..count).collect();
    Ok(indices.chunks(size).map(<[usize]>::to_vec).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_of_similar_length_share_a_group() {
        let lengths = [9, 3, 5, 3, 7];
        assert_eq!(
            by_length(&lengths, 2, true).unwrap(),
            [vec![1, 3], vec![2, 4], vec![0]]
        );
        assert_eq!(
            by_length(&lengths, 4, false).unwrap(),
            [vec![1, 3], vec![2], vec![4], vec![0]]
        );
        assert!(by_length(&lengths, 0, true).is_err());
    }

    #[test]
    fn ordered_groups_leave_the_remainder_to_the_last() {
        assert_eq!(in_order(5, 2).unwrap(), [vec![0, 1], vec![2, 3], vec![4]]);
        assert!(in_order(5, 0).is_err());
    }

    #[test]
    fn long_texts_form_small_groups() {
        let groups = by_length(&[4096; 5], 32, true).unwrap();
        assert_eq!(groups.iter().map(Vec::len).collect::<Vec<_>>(), [2, 2, 1]);
        assert_eq!(by_length(&[100_000], 32, true).unwrap(), [[0]]);
    }
}
