// What one call of attention is about: every kernel gets all of it. src/ops/attention/cuda/call.rs has the same struct.
//
// Shapes: q (batch, queries, heads, key), k (batch, keys, kv_heads, key), v (batch, keys, kv_heads, value), rows and heads at
// any stride, so that they may be parts of one product; out and dout (batch, queries, heads, value) without gaps. Gradients lie
// as what they are of.
#pragma once

#include "../cuda/common.cuh"

// How far apart the rows of a head lie, and its features from those of the next head.
struct Strides {
    u32 row, head;
};

// Which keys of a tile of 64 all queries of a block see.
struct Visit {
    u64 keys;
    u32 other;   // The tile of keys; or the block of queries, where tiles list what visits them.
    u32 banded;  // Whether of these keys each query sees only those in its window.
};

template <class T>
struct Call {
    const T *q, *k, *v;
    T* out;
    float* lse;  // (batch, heads, queries): the logarithm of each query's sum; infinity where it sees nothing.
    const T* dout;
    float* delta;  // (batch, heads, queries): the sums over a head of dout * out.
    T *dq, *dk, *dv;
    const u32* mask;        // (batch, keys): 0 for keys that are hidden. Null: none are.
    const u32* ends;        // (batch): one past the last key that is not hidden.
    const u32* query_mask;  // (batch, queries): 0 for queries that do not count. Null: all do.
    // (batch + 1): where sequences begin that lie one behind the other in one row. Statistics are (heads, queries) then, and
    // `queries` and `keys` those of all sequences together. Null: every sequence has a row.
    const u32* starts;
    const float *cos, *sin;  // (positions, half): angles that q and k are turned by. Null: by none.
    // Terms by distance, each added to the scores if it is not null.
    const u32* distance_rows;   // Which row of the tables each distance has.
    const float* bias;          // (rows, bias_copies).
    const T *by_query, *by_key; // (heads, batch, queries or keys, rows): their products with tables.
    float* bias_parts;          // (batch, heads, blocks of dq's kernel, distances): sums of the bias's gradient, if wanted.
    float *dby_query, *dby_key; // The gradients of the products, zeros at first, if they are wanted.
    // A sparse plan: blocks of up to 64 queries and what each visits. Null: blocks are of 64, and visit what the window says.
    const u32* block_starts;  // (blocks + 1)
    // Where visits begin: (sequences or 1, heads or 1, blocks), and for tiles of keys (sequences or 1, heads or 1, tiles); one more
    // each.
    const u32 *query_visit_starts, *key_visit_starts;
    const Visit *query_visits, *key_visits;
    u64 dropout_key;
    Strides q_strides, k_strides, v_strides;
    u32 batch, heads, kv_heads, queries, keys;
    u32 key, value;     // Features of a head of q and k, and of v.
    u32 left, right;    // How many keys before and after its own position a query sees, at most 2^30.
    u32 bounded;        // Whether that leaves any out: who sees nothing gets 0 then, else the mean.
    u32 half;           // Pairs of features that are turned.
    u32 interleaved;    // Whether pairs are neighbours, or half apart.
    u32 turn_values;    // Whether v is turned too.
    u32 first_distance, distances;  // Which numbers in `distance_rows` the queries' windows reach.
    u32 last_distance;  // Which of them the first query and the first key have.
    u32 ratio;          // How much less that is for the next query.
    u32 rows;           // Of the tables.
    u32 bias_copies;    // As many as heads, or 1.
    u32 skip_first;     // Whether first query and first key have no terms.
    u32 blocks, tiles;  // Of the plan.
    u32 plan_copies;    // As many as heads, or 1.
    u32 plan_per_sequence;
    float scale, p;
};
static_assert(sizeof(Call<float>) == 360, "src/ops/attention/cuda/call.rs says so too");
