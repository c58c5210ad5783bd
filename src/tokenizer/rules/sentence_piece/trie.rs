//! A trie over bytes that finds the pieces at the beginning of a text.

use std::collections::VecDeque;

#[derive(Clone, Copy, Debug)]
struct Node {
    /// The position of its children in `labels` and `nodes`.
    children: (u32, u32),
    value: u32,
}

/// The value of a node where no key ends.
const NONE: u32 = u32::MAX;

/// A map from keys to numbers, laid out breadth first: the children of a node are adjacent.
#[derive(Debug, Default)]
pub(super) struct Trie {
    nodes: Vec<Node>,
    /// The byte that leads to each node.
    labels: Vec<u8>,
}

impl Trie {
    /// Of keys that are there twice the first counts.
    pub(super) fn new<'a>(keys: impl IntoIterator<Item = (&'a str, u32)>) -> Self {
        let mut keys: Vec<(&[u8], u32)> = keys
            .into_iter()
            .filter(|(key, _)| !key.is_empty())
            .map(|(key, value)| (key.as_bytes(), value))
            .collect();
        keys.sort();
        keys.dedup_by_key(|(key, _)| *key);
        let node = Node {
            children: (0, 0),
            value: NONE,
        };
        let mut trie = Self {
            nodes: vec![node],
            labels: vec![0],
        };
        let mut open = VecDeque::from([(0, keys.as_slice(), 0)]);
        while let Some((at, mut keys, depth)) = open.pop_front() {
            if let Some((first, rest)) = keys.split_first()
                && first.0.len() == depth
            {
                trie.nodes[at].value = first.1;
                keys = rest;
            }
            let start = trie.nodes.len();
            for group in keys.chunk_by(|left, right| left.0[depth] == right.0[depth]) {
                open.push_back((trie.nodes.len(), group, depth + 1));
                trie.nodes.push(node);
                trie.labels.push(group[0].0[depth]);
            }
            trie.nodes[at].children = (start as u32, trie.nodes.len() as u32);
        }
        trie
    }

    /// Returns the keys at the beginning of `text`: length and number of each, the shortest first.
    pub(super) fn prefixes(&self, text: &[u8]) -> impl Iterator<Item = (usize, u32)> {
        let mut at = 0;
        text.iter()
            .map_while(move |byte| {
                let (start, end) = self.nodes.get(at)?.children;
                let (start, end) = (start as usize, end as usize);
                at = start + self.labels[start..end].binary_search(byte).ok()?;
                Some(self.nodes[at].value)
            })
            .enumerate()
            .filter(|(_, value)| *value != NONE)
            .map(|(at, value)| (at + 1, value))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn prefixes_are_found_from_shortest_to_longest() {
        let trie = Trie::new([
            ("ab", 1),
            ("a", 0),
            ("abcé", 2),
            ("b", 3),
            ("", 9),
            ("b", 4),
        ]);
        let found = |text: &str| trie.prefixes(text.as_bytes()).collect::<Vec<_>>();
        assert_eq!(found("abcéd"), [(1, 0), (2, 1), (5, 2)]);
        assert_eq!(found("bb"), [(1, 3)]);
        assert_eq!(found("c"), []);
        assert_eq!(Trie::default().prefixes(b"a").count(), 0);
    }
}
