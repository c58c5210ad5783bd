//! The arguments of the fused kernels; their tests read this file too.

/// How far apart rows and heads lie.
#[derive(Clone, Copy, Default)]
#[repr(C)]
pub(super) struct Strides {
    pub row: u32,
    pub head: u32,
}

/// What `call.cuh` declares, which says what each is: field by field in the same order. Pointers are 0 for none.
#[derive(Clone, Copy, Default)]
#[repr(C)]
pub(super) struct Call {
    pub q: u64,
    pub k: u64,
    pub v: u64,
    pub out: u64,
    pub lse: u64,
    pub dout: u64,
    pub delta: u64,
    pub dq: u64,
    pub dk: u64,
    pub dv: u64,
    pub mask: u64,
    pub ends: u64,
    pub query_mask: u64,
    pub starts: u64,
    pub cos: u64,
    pub sin: u64,
    pub distance_rows: u64,
    pub bias: u64,
    pub by_query: u64,
    pub by_key: u64,
    pub bias_parts: u64,
    pub dby_query: u64,
    pub dby_key: u64,
    pub block_starts: u64,
    pub query_visit_starts: u64,
    pub key_visit_starts: u64,
    pub query_visits: u64,
    pub key_visits: u64,
    pub dropout_key: u64,
    pub q_strides: Strides,
    pub k_strides: Strides,
    pub v_strides: Strides,
    pub batch: u32,
    pub heads: u32,
    pub kv_heads: u32,
    pub queries: u32,
    pub keys: u32,
    pub key: u32,
    pub value: u32,
    pub left: u32,
    pub right: u32,
    pub bounded: u32,
    pub half: u32,
    pub interleaved: u32,
    pub turn_values: u32,
    pub first_distance: u32,
    pub distances: u32,
    pub last_distance: u32,
    pub ratio: u32,
    pub rows: u32,
    pub bias_copies: u32,
    pub skip_first: u32,
    pub blocks: u32,
    pub tiles: u32,
    pub plan_copies: u32,
    pub plan_per_sequence: u32,
    pub scale: f32,
    pub p: f32,
}

/// As `call.cuh` asserts too.
const _: () = assert!(size_of::<Call>() == 360);
