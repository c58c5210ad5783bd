// One head of one sequence: where its rows lie, and which query sees which key.
//
// Windows and ends are bounds of the loops: what lies outside of them is not visited. Masks hide keys within them.
#pragma once

#include "../dropout/kernel.cuh"
#include "call.cuh"
#include "tiles.cuh"

// From the first up to before the end.
struct Range {
    u32 first, end;

    __device__ __forceinline__ u32 tiles(u32 size) const { return (end - first + size - 1) / size; }
};

template <class T>
struct Head {
    const Call<T>& call;
    u32 sequence, head, kv_head;
    u32 queries, keys;  // Of this sequence.
    u32 offset;         // The first query's position.
    u32 seen;           // Keys that are looked at.
    bool even;          // All keys are masked, which makes them equal.

    __device__ __forceinline__ Head(const Call<T>& call, u32 head)
        : call(call), sequence(blockIdx.z), head(head), kv_head(head / (call.heads / call.kv_heads)) {
        const bool packed = call.starts != nullptr;
        first_query_ = packed ? call.starts[sequence] : size_t(sequence) * call.queries;
        first_key_ = packed ? call.starts[sequence] : size_t(sequence) * call.keys;
        queries = packed ? call.starts[sequence + 1] - call.starts[sequence] : call.queries;
        keys = packed ? queries : call.keys;
        offset = keys > queries ? keys - queries : 0;
        const u32 end = call.ends == nullptr ? keys : call.ends[sequence];
        even = end == 0 && call.bounded == 0;
        seen = even ? keys : end;
        mask_ = call.mask == nullptr || even ? nullptr : call.mask + first_key_;
    }

    __device__ __forceinline__ Rows<const T> of_q(const T* x) const {
        return {x + first_query_ * call.q_strides.row + size_t(head) * call.q_strides.head, call.q_strides.row, call.key};
    }
    __device__ __forceinline__ Rows<const T> of_k(const T* x) const {
        return {x + first_key_ * call.k_strides.row + size_t(kv_head) * call.k_strides.head, call.k_strides.row, call.key};
    }
    __device__ __forceinline__ Rows<const T> of_v(const T* x) const {
        return {x + first_key_ * call.v_strides.row + size_t(kv_head) * call.v_strides.head, call.v_strides.row, call.value};
    }
    __device__ __forceinline__ Rows<const T> of_out(const T* x) const {
        const u32 row = call.heads * call.value;
        return {x + first_query_ * row + size_t(head) * call.value, row, call.value};
    }

    // Where the statistics of this head's queries begin.
    __device__ __forceinline__ size_t statistics() const {
        return call.starts == nullptr ? (size_t(sequence) * call.heads + head) * queries
                                      : size_t(head) * call.queries + first_query_;
    }

    // Which probabilities are dropped, counted from the first query's with the first key. Every sequence that shares its row with
    // others has a key of its own, as in src/ops/attention/packed.rs.
    __device__ __forceinline__ DropoutPart dropout() const {
        if (call.starts == nullptr) {
            const u64 index = u64(sequence) * call.heads + head;
            return DropoutPart(call.p, call.dropout_key, index * queries * keys);
        }
        return DropoutPart(call.p, call.dropout_key ^ u64(sequence) * 0x9E3779B97F4A7C15ull, u64(head) * queries * keys);
    }

    // Whether a key may be seen, but for the window.
    __device__ __forceinline__ bool sees(u32 key) const { return key < seen && (mask_ == nullptr || mask_[key] != 0); }

    // Which of the N keys from `start` on may be seen, as bits: by a whole warp.
    template <int N>
    __device__ __forceinline__ u64 seen_keys(u32 start) const {
        const u32 lane = threadIdx.x % WARP;
        u64 bits = __ballot_sync(ALL_LANES, sees(start + lane));
        if (N > int(WARP)) bits |= u64(__ballot_sync(ALL_LANES, sees(start + WARP + lane))) << 32;
        return bits;
    }

    __device__ __forceinline__ bool in_window(u32 query, u32 key) const {
        return key + call.left - (query + offset) <= call.left + call.right;
    }

    __device__ __forceinline__ bool counts(u32 query) const {
        return call.query_mask == nullptr || call.query_mask[first_query_ + query] != 0;
    }

    // Queries that are worked on together, at most 64.
    __device__ __forceinline__ Range block(u32 index) const {
        if (call.block_starts != nullptr) return {call.block_starts[index], call.block_starts[index + 1]};
        const u32 first = index * ROWS, past = first + ROWS;
        return {first, past < queries ? past : queries};
    }
    __device__ __forceinline__ u32 blocks() const {
        return call.block_starts != nullptr ? call.blocks : (queries + ROWS - 1) / ROWS;
    }

    // The list of a block of queries, or of a tile of keys, in a plan with `count` of them.
    __device__ __forceinline__ u32 list(u32 count, u32 index) const {
        const u32 copy = call.plan_copies == 1 ? 0 : head;
        return ((call.plan_per_sequence ? sequence : 0) * call.plan_copies + copy) * count + index;
    }

    // The keys that any of these queries sees, and those between them.
    __device__ __forceinline__ Range keys_of(u32 first, u32 last) const {
        const u32 from = first + offset, to = last + offset + call.right + 1;
        const u32 end = to < seen ? to : seen;
        const u32 start = from > call.left ? from - call.left : 0;
        return {start < end ? start : end, end};
    }

    // The queries that see any of these keys, and those between them.
    __device__ __forceinline__ Range queries_of(u32 first, u32 last) const {
        const u32 past = last + call.left + 1, before = call.right + offset;
        const u32 end = past <= offset ? 0 : past - offset < queries ? past - offset : queries;
        const u32 start = first > before ? first - before : 0;
        return {start < end ? start : end, end};
    }

    __device__ __forceinline__ bool has_terms() const {
        return call.bias != nullptr || call.by_query != nullptr || call.by_key != nullptr;
    }
    __device__ __forceinline__ bool has_terms(u32 query, u32 key) const {
        return query < queries && key < keys && (call.skip_first == 0 || (query > 0 && key > 0));
    }

    // What the distance between the two adds to the score; 0 for those that are not there.
    __device__ __forceinline__ float terms(u32 query, u32 key) const {
        if (!has_terms(query, key)) return 0.0f;
        const u32 row = call.distance_rows[distance(query, key)];
        float sum = 0.0f;
        if (call.bias != nullptr) sum = call.bias[size_t(row) * call.bias_copies + (call.bias_copies == 1 ? 0 : head)];
        if (call.by_query != nullptr) sum += to_float(call.by_query[of_query(query) + row]);
        if (call.by_key != nullptr) sum += to_float(call.by_key[of_key(key) + row]);
        return sum;
    }

    // Which number in `distance_rows` the two have.
    __device__ __forceinline__ u32 distance(u32 query, u32 key) const {
        return key + call.last_distance - call.ratio * query;
    }

    // Where the products of a query, or of a key, with the rows of its table begin.
    __device__ __forceinline__ size_t of_query(u32 query) const {
        const size_t all = call.starts == nullptr ? size_t(call.batch) * call.queries : call.queries;
        return (head * all + first_query_ + query) * call.rows;
    }
    __device__ __forceinline__ size_t of_key(u32 key) const {
        const size_t all = call.starts == nullptr ? size_t(call.batch) * call.keys : call.keys;
        return (head * all + first_key_ + key) * call.rows;
    }

   private:
    size_t first_query_, first_key_;  // Among the rows of all sequences.
    const u32* mask_;
};

// The steps in which a block's rows meet the other side, TILE of it at a time.
template <int TILE>
class Steps {
   public:
    u32 count;

    // Of a block of queries over keys.
    template <class T>
    __device__ __forceinline__ static Steps over_keys(const Head<T>& head, u32 index) {
        const Call<T>& call = head.call;
        if (call.block_starts == nullptr) {
            const Range block = head.block(index);
            return Steps(head.keys_of(block.first, block.end - 1));
        }
        const u32 list = head.list(call.blocks, index);
        const Range visits = {call.query_visit_starts[list], call.query_visit_starts[list + 1]};
        return Steps(call.query_visits, visits, nullptr, head.seen);
    }

    // Of the 64 keys from `first` on, those before `past`, over queries.
    template <class T>
    __device__ __forceinline__ static Steps over_queries(const Head<T>& head, u32 first, u32 past) {
        const Call<T>& call = head.call;
        if (first >= past) return Steps({0, 0});
        if (call.block_starts == nullptr) return Steps(head.queries_of(first, past - 1));
        const u32 list = head.list(call.tiles, first / ROWS);
        const Range visits = {call.key_visit_starts[list], call.key_visit_starts[list + 1]};
        return Steps(call.key_visits, visits, call.block_starts, 0);
    }

    // From where to where a step goes, `end` perhaps farther than a tile.
    __device__ __forceinline__ Range range(u32 step) const {
        if (visits_ == nullptr) return {range_.first + step * TILE, range_.end};
        const u32 other = visits_[step / PARTS].other, part = step % PARTS * TILE;
        if (block_starts_ == nullptr) return {other * ROWS + part, end_};
        const u32 start = block_starts_[other] + part, end = block_starts_[other + 1];
        return {start < end ? start : end, end};
    }

    // Which of the 64 keys of the step's visit are seen.
    __device__ __forceinline__ u64 keys(u32 step) const { return visits_ == nullptr ? ~0ull : visits_[step / PARTS].keys; }
    // The same of the keys of the step alone.
    __device__ __forceinline__ u64 keys_of_part(u32 step) const { return keys(step) >> (visits_ == nullptr ? 0 : step % PARTS * TILE); }

    // Whether each query sees only what is in its window.
    __device__ __forceinline__ bool banded(u32 step) const { return visits_ == nullptr || visits_[step / PARTS].banded != 0; }

   private:
    static constexpr int PARTS = ROWS / TILE;

    __device__ __forceinline__ explicit Steps(Range range)
        : count(range.tiles(TILE)), range_(range), visits_(nullptr), block_starts_(nullptr), end_(0) {}
    __device__ __forceinline__ Steps(const Visit* visits, Range list, const u32* block_starts, u32 end)
        : count((list.end - list.first) * PARTS), range_(list), visits_(visits + list.first), block_starts_(block_starts), end_(end) {}

    Range range_;
    const Visit* visits_;
    const u32* block_starts_;
    u32 end_;
};
