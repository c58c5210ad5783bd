use super::*;

#[test]
fn every_head_starts_where_the_layout_puts_it() {
    let (batch, heads) = (3u64, 5u64);
    let n = (batch * heads) as usize;
    // Base, and the distances of sequences and heads, beyond 32 bits.
    let tables = [(1 << 40, 1 << 33, 128), (16, 4096, 1 << 34), (0, 7, 0)];
    let out = Buffer::new(&vec![u64::MAX; 3 * n]);
    let [a, b, c] = tables;
    launch(
        "head_pointers",
        [1, 1, 1],
        [256, 1],
        0,
        (
            out.at(),
            a.0,
            a.1,
            a.2,
            b.0,
            b.1,
            b.2,
            c.0,
            c.1,
            c.2,
            batch as u32,
            heads as u32,
        ),
    );
    let expected: Vec<u64> = (tables.iter())
        .flat_map(|&(base, sequence, head): &(u64, u64, u64)| {
            let at = move |i: u64| base + i / heads * sequence + i % heads * head;
            (0..batch * heads).map(at)
        })
        .collect();
    assert_eq!(out.values(), expected);
}
