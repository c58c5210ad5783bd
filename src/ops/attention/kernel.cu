// Attention over all heads for training: softmax(scale * q k^T + mask) v with dropout on the probabilities, and its backward,
// a tile at a time in the manner of Dao et al. (2022, 2023), on the matrix unit in bf16 or f16 with f32 sums.
//
// Shapes: q (batch, queries, heads, D), k and v (batch, keys, heads, D), rows at any stride, so that they may be parts of one
// product; D is 32, 64, 96 or 128. Fused: both products, scale, mask, softmax, dropout. Saved for backward: the logarithm of
// each query's sum (f32), beside q, k, v and out. Never written: scores, probabilities, the dropout's mask.
//
// FLOPs for each pair of query and key: 4 D forward, 14 D backward (the scores and the probabilities' gradients are formed
// twice there, once for dq and once for dk and dv: that way no two blocks add to the same place, and runs repeat to the bit).
// Bytes: q and out once; k and v once for every 64 queries, mostly from the second-level cache.
//
// Masks: `ends` says up to which key a sequence is looked at (0: none of its keys count, then all are seen evenly, as in
// src/ops/attention.rs); `mask` hides keys before that. Padding behind is not computed.
//
// A block of 4 warps has 64 rows (queries, or keys for dk and dv), 16 a warp, and walks over the other side in tiles that are
// fetched one ahead. Rows in shared memory lie D + 8 elements apart, so that 8 of them start in different banks.
#include "../dropout/kernel.cuh"
#include "../cuda/mma.cuh"

constexpr u32 THREADS = 128;
constexpr int ROWS = 64;           // Of the block's own side.
constexpr int FORWARD_TILE = 64;   // Keys at once.
constexpr int BACKWARD_TILE = 32;  // Keys or queries at once: the backward passes hold more sums.
constexpr float LOG2_E = 1.44269504f;
constexpr float LN_2 = 0.69314718f;

template <int D>
constexpr int PITCH = D + 8;

struct Sizes {
    u32 batch, heads, queries, keys;
};

// One head of one sequence.
struct Head {
    size_t index;  // Among batch * heads.
    u32 seen;      // Keys that are looked at.
    bool even;     // All keys are masked, which makes them equal.
    const u32* mask;

    __device__ __forceinline__ Head(const Sizes& sizes, const u32* mask_in, const u32* ends) {
        const u32 sequence = blockIdx.z;
        index = size_t(sequence) * sizes.heads + blockIdx.y;
        const u32 end = ends == nullptr ? sizes.keys : ends[sequence];
        even = end == 0;
        seen = even ? sizes.keys : end;
        mask = mask_in == nullptr || even ? nullptr : mask_in + size_t(sequence) * sizes.keys;
    }

    __device__ __forceinline__ bool sees(u32 key) const { return key < seen && (mask == nullptr || mask[key] != 0); }
};

// The first element of this head in a (batch, seq, heads, D) tensor whose rows lie `stride` apart.
template <int D>
__device__ __forceinline__ size_t head_offset(u32 seq, u32 stride) {
    return size_t(blockIdx.z) * seq * stride + size_t(blockIdx.y) * D;
}

// Begins to fetch N rows of D elements, zeros for those that are not there.
template <int N, int D, class T>
__device__ __forceinline__ void fetch(T* shared, const T* from, u32 first, u32 count, u32 stride) {
    constexpr int PIECES = D / 8;
    static_assert(N * PIECES % int(THREADS) == 0, "every thread fetches the same number of pieces");
#pragma unroll
    for (int i = 0; i < N * PIECES / int(THREADS); i++) {
        const u32 at = u32(i) * THREADS + threadIdx.x;
        const u32 row = at / PIECES, piece = at % PIECES;
        const bool valid = first + row < count;
        const size_t offset = size_t(valid ? first + row : 0) * stride + piece * 8;
        copy_async(shared + row * PITCH<D> + piece * 8, from + offset, valid);
    }
}

// A warp's left operand: 16 rows of shared memory.
template <int D, class T>
__device__ __forceinline__ void load_left(u32 (&a)[D / 16][4], const T* rows) {
    const u32 lane = threadIdx.x % WARP;
#pragma unroll
    for (int k = 0; k < D / 16; k++) ldmatrix(a[k], rows + (lane % 16) * PITCH<D> + k * 16 + lane / 16 * 8);
}

// sums (16, N) += a (16, D) times the transpose of N rows of shared memory.
template <int N, int D, class T>
__device__ __forceinline__ void multiply_rows(float (&sums)[N / 8][4], const u32 (&a)[D / 16][4], const T* rows) {
    const u32 lane = threadIdx.x % WARP;
    const T* const mine = rows + (lane % 8 + lane / 16 * 8) * PITCH<D> + lane / 8 % 2 * 8;
#pragma unroll
    for (int k = 0; k < D / 16; k++) {
#pragma unroll
        for (int n = 0; n < N / 16; n++) {
            u32 b[4];
            ldmatrix(b, mine + n * 16 * PITCH<D> + k * 16);
            mma_16816<T>(sums[2 * n], a[k], {b[0], b[1]});
            mma_16816<T>(sums[2 * n + 1], a[k], {b[2], b[3]});
        }
    }
}

// sums (16, D) += p (16, N), packed from a result, times N rows of shared memory.
template <int N, int D, class T>
__device__ __forceinline__ void multiply_columns(float (&sums)[D / 8][4], const float (&p)[N / 8][4], const T* rows) {
    const u32 lane = threadIdx.x % WARP;
    const T* const mine = rows + (lane % 16) * PITCH<D> + lane / 16 * 8;
#pragma unroll
    for (int k = 0; k < N / 16; k++) {
        const float(&left)[4] = p[2 * k];
        const float(&right)[4] = p[2 * k + 1];
        const u32 a[4] = {pack<T>(left[0], left[1]), pack<T>(left[2], left[3]), pack<T>(right[0], right[1]),
                          pack<T>(right[2], right[3])};
#pragma unroll
        for (int n = 0; n < D / 16; n++) {
            u32 b[4];
            ldmatrix_transposed(b, mine + k * 16 * PITCH<D> + n * 16);
            mma_16816<T>(sums[2 * n], a, {b[0], b[1]});
            mma_16816<T>(sums[2 * n + 1], a, {b[2], b[3]});
        }
    }
}

// Writes a warp's sums to its rows of the result, through its own 16 rows of shared memory: whole lines at a time.
template <int D, class T>
__device__ __forceinline__ void write_rows(T* out, T* staging, const float (&sums)[D / 8][4], u32 first, u32 count,
                                           u32 stride) {
    const u32 lane = threadIdx.x % WARP;
    __syncwarp();
#pragma unroll
    for (int n = 0; n < D / 8; n++) {
        T* const to = staging + lane / 4 * PITCH<D> + n * 8 + lane % 4 * 2;
        *reinterpret_cast<u32*>(to) = pack<T>(sums[n][0], sums[n][1]);
        *reinterpret_cast<u32*>(to + 8 * PITCH<D>) = pack<T>(sums[n][2], sums[n][3]);
    }
    __syncwarp();
    constexpr int PIECES = D / 8;
#pragma unroll
    for (int i = 0; i < 16 * PIECES / int(WARP); i++) {
        const u32 at = u32(i) * WARP + lane;
        const u32 row = at / PIECES, piece = at % PIECES;
        if (first + row >= count) continue;
        const uint4 raw = *reinterpret_cast<const uint4*>(staging + row * PITCH<D> + piece * 8);
        *reinterpret_cast<uint4*>(out + size_t(first + row) * stride + piece * 8) = raw;
    }
}

// Over the four lanes that share a row of a result.
template <class Op>
__device__ __forceinline__ float quad_reduce(float x) {
    x = Op::join(x, __shfl_xor_sync(ALL_LANES, x, 1));
    return Op::join(x, __shfl_xor_sync(ALL_LANES, x, 2));
}

template <class T, int D>
__device__ void forward(T* out, float* lse_out, const T* q, const T* k, const T* v, const u32* mask, const u32* ends,
                        Sizes sizes, u32 q_stride, u32 k_stride, u32 v_stride, float scale, float p, u64 key) {
    constexpr int TILE = FORWARD_TILE;
    DYNAMIC_SHARED(T, q_rows);
    T* const k_tiles = q_rows + ROWS * PITCH<D>;
    T* const v_tiles = k_tiles + 2 * TILE * PITCH<D>;
    const Head head(sizes, mask, ends);
    const u32 lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    const u32 first = blockIdx.x * ROWS;
    q += head_offset<D>(sizes.queries, q_stride);
    k += head_offset<D>(sizes.keys, k_stride);
    v += head_offset<D>(sizes.keys, v_stride);
    const DropoutPart drop(p, key, u64(head.index) * sizes.queries * sizes.keys);
    const float by = head.even ? 0.0f : scale * LOG2_E;

    fetch<ROWS, D>(q_rows, q, first, sizes.queries, q_stride);
    fetch<TILE, D>(k_tiles, k, 0, head.seen, k_stride);
    fetch<TILE, D>(v_tiles, v, 0, head.seen, v_stride);
    copy_commit();

    // Of rows g and g + 8 of this warp: their queries, where dropout counts from, and the softmax so far.
    const u32 row = first + warp * 16 + lane / 4;
    const u32 counter[2] = {row * sizes.keys, (row + 8) * sizes.keys};
    float top[2] = {-INFINITY, -INFINITY}, total[2] = {};
    float sums[D / 8][4] = {};
    u32 left[D / 16][4];

    const u32 tiles = (head.seen + TILE - 1) / TILE;
    for (u32 tile = 0; tile < tiles; tile++) {
        const u32 start = tile * TILE;
        const T* const k_tile = k_tiles + tile % 2 * TILE * PITCH<D>;
        const T* const v_tile = v_tiles + tile % 2 * TILE * PITCH<D>;
        if (tile + 1 < tiles) {
            fetch<TILE, D>(k_tiles + (tile + 1) % 2 * TILE * PITCH<D>, k, start + TILE, head.seen, k_stride);
            fetch<TILE, D>(v_tiles + (tile + 1) % 2 * TILE * PITCH<D>, v, start + TILE, head.seen, v_stride);
        }
        copy_commit();
        copy_wait<1>();
        __syncthreads();
        if (tile == 0) load_left<D>(left, q_rows + warp * 16 * PITCH<D>);

        float scores[TILE / 8][4] = {};
        multiply_rows<TILE, D>(scores, left, k_tile);
        // Which of the tile's keys are seen.
        const u64 seen = u64(__ballot_sync(ALL_LANES, head.sees(start + lane))) |
                         u64(__ballot_sync(ALL_LANES, head.sees(start + WARP + lane))) << 32;
        float new_top[2] = {top[0], top[1]};
#pragma unroll
        for (int n = 0; n < TILE / 8; n++) {
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const u32 column = n * 8 + lane % 4 * 2 + i % 2;
                scores[n][i] = (seen >> column & 1) != 0 ? scores[n][i] * by : -INFINITY;
                new_top[i / 2] = fmaxf(new_top[i / 2], scores[n][i]);
            }
        }
        float correction[2], base[2];
#pragma unroll
        for (int r = 0; r < 2; r++) {
            new_top[r] = quad_reduce<Max>(new_top[r]);
            // Nothing seen yet: all exponentials are of -infinity.
            base[r] = new_top[r] == -INFINITY ? 0.0f : new_top[r];
            correction[r] = exp2_fast(top[r] - base[r]);
            top[r] = new_top[r];
            total[r] *= correction[r];
        }
#pragma unroll
        for (int n = 0; n < TILE / 8; n++) {
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const float prob = exp2_fast(scores[n][i] - base[i / 2]);
                total[i / 2] += prob;
                const u32 column = start + n * 8 + lane % 4 * 2 + i % 2;
                scores[n][i] = drop.active() ? prob * drop.factor(counter[i / 2] + column) : prob;
            }
        }
#pragma unroll
        for (int n = 0; n < D / 8; n++) {
#pragma unroll
            for (int i = 0; i < 4; i++) sums[n][i] *= correction[i / 2];
        }
        multiply_columns<TILE, D>(sums, scores, v_tile);
        __syncthreads();  // The tile may be overwritten.
    }
    copy_wait<0>();

    float share[2];
#pragma unroll
    for (int r = 0; r < 2; r++) {
        total[r] = quad_reduce<Sum>(total[r]);
        share[r] = 1.0f / total[r];
        const u32 query = row + 8 * r;
        if (lane % 4 == 0 && query < sizes.queries) {
            lse_out[head.index * sizes.queries + query] = top[r] * LN_2 + logf(total[r]);
        }
    }
#pragma unroll
    for (int n = 0; n < D / 8; n++) {
#pragma unroll
        for (int i = 0; i < 4; i++) sums[n][i] *= share[i / 2];
    }
    const u32 stride = sizes.heads * D;
    write_rows<D>(out + head_offset<D>(sizes.queries, stride), q_rows + warp * 16 * PITCH<D>, sums, first + warp * 16,
                  sizes.queries, stride);
}

// One probability, and the gradient of its score from that of the dropped probability.
__device__ __forceinline__ void score_gradient(float& score, float& grad, float factor, float delta) {
    const float prob = score;
    score = prob * factor;
    grad = prob * (grad * factor - delta);
}

// dk and dv of 64 keys. Scores stand transposed (keys, queries), which makes them left operands of both results.
template <class T, int D>
__device__ void backward_kv(T* dk, T* dv, const T* dout, const T* q, const T* k, const T* v, const float* lse,
                            const float* delta, const u32* mask, const u32* ends, Sizes sizes, u32 q_stride, u32 k_stride,
                            u32 v_stride, u32 dk_stride, u32 dv_stride, float scale, float p, u64 key) {
    constexpr int TILE = BACKWARD_TILE;
    DYNAMIC_SHARED(T, k_rows);
    T* const v_rows = k_rows + ROWS * PITCH<D>;
    T* const q_tiles = v_rows + ROWS * PITCH<D>;
    T* const g_tiles = q_tiles + 2 * TILE * PITCH<D>;
    __shared__ float lse_tile[TILE], delta_tile[TILE];
    const Head head(sizes, mask, ends);
    const u32 lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    const u32 first = blockIdx.x * ROWS;
    const u32 out_stride = sizes.heads * D;
    q += head_offset<D>(sizes.queries, q_stride);
    k += head_offset<D>(sizes.keys, k_stride);
    v += head_offset<D>(sizes.keys, v_stride);
    dout += head_offset<D>(sizes.queries, out_stride);
    lse += head.index * sizes.queries;
    delta += head.index * sizes.queries;
    const DropoutPart drop(p, key, u64(head.index) * sizes.queries * sizes.keys);
    const float by = head.even ? 0.0f : scale * LOG2_E;
    // Keys behind the last that is looked at have no gradient.
    const u32 tiles = first < head.seen ? (sizes.queries + TILE - 1) / TILE : 0;

    float k_sums[D / 8][4] = {}, v_sums[D / 8][4] = {};
    if (tiles > 0) {
        fetch<ROWS, D>(k_rows, k, first, head.seen, k_stride);
        fetch<ROWS, D>(v_rows, v, first, head.seen, v_stride);
        fetch<TILE, D>(q_tiles, q, 0, sizes.queries, q_stride);
        fetch<TILE, D>(g_tiles, dout, 0, sizes.queries, out_stride);
    }
    copy_commit();
    const u32 row = first + warp * 16 + lane / 4;
    const bool seen[2] = {head.sees(row), head.sees(row + 8)};
    for (u32 tile = 0; tile < tiles; tile++) {
        const u32 start = tile * TILE;
        const T* const q_tile = q_tiles + tile % 2 * TILE * PITCH<D>;
        const T* const g_tile = g_tiles + tile % 2 * TILE * PITCH<D>;
        if (tile + 1 < tiles) {
            fetch<TILE, D>(q_tiles + (tile + 1) % 2 * TILE * PITCH<D>, q, start + TILE, sizes.queries, q_stride);
            fetch<TILE, D>(g_tiles + (tile + 1) % 2 * TILE * PITCH<D>, dout, start + TILE, sizes.queries, out_stride);
        }
        copy_commit();
        if (threadIdx.x < TILE) {
            // A query that is not there has no probabilities.
            const bool valid = start + threadIdx.x < sizes.queries;
            lse_tile[threadIdx.x] = valid ? lse[start + threadIdx.x] * LOG2_E : INFINITY;
            delta_tile[threadIdx.x] = valid ? delta[start + threadIdx.x] : 0.0f;
        }
        copy_wait<1>();
        __syncthreads();

        float probs[TILE / 8][4] = {}, grads[TILE / 8][4] = {};
        u32 left[D / 16][4];
        load_left<D>(left, k_rows + warp * 16 * PITCH<D>);
        multiply_rows<TILE, D>(probs, left, q_tile);
        load_left<D>(left, v_rows + warp * 16 * PITCH<D>);
        multiply_rows<TILE, D>(grads, left, g_tile);
#pragma unroll
        for (int n = 0; n < TILE / 8; n++) {
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const u32 column = n * 8 + lane % 4 * 2 + i % 2;
                const u32 counter = (start + column) * sizes.keys + row + i / 2 * 8;
                probs[n][i] = seen[i / 2] ? exp2_fast(probs[n][i] * by - lse_tile[column]) : 0.0f;
                score_gradient(probs[n][i], grads[n][i], drop.active() ? drop.factor(counter) : 1.0f,
                               delta_tile[column]);
            }
        }
        multiply_columns<TILE, D>(v_sums, probs, g_tile);
        multiply_columns<TILE, D>(k_sums, grads, q_tile);
        __syncthreads();  // The tile may be overwritten.
    }
    copy_wait<0>();
#pragma unroll
    for (int n = 0; n < D / 8; n++) {
#pragma unroll
        for (int i = 0; i < 4; i++) k_sums[n][i] *= scale;
    }
    write_rows<D>(dk + head_offset<D>(sizes.keys, dk_stride), k_rows + warp * 16 * PITCH<D>, k_sums, first + warp * 16,
                  sizes.keys, dk_stride);
    write_rows<D>(dv + head_offset<D>(sizes.keys, dv_stride), v_rows + warp * 16 * PITCH<D>, v_sums, first + warp * 16,
                  sizes.keys, dv_stride);
}

// dq of 64 queries.
template <class T, int D>
__device__ void backward_q(T* dq, const T* dout, const T* q, const T* k, const T* v, const float* lse, const float* delta,
                           const u32* mask, const u32* ends, Sizes sizes, u32 q_stride, u32 k_stride, u32 v_stride,
                           u32 dq_stride, float scale, float p, u64 key) {
    constexpr int TILE = BACKWARD_TILE;
    DYNAMIC_SHARED(T, q_rows);
    T* const g_rows = q_rows + ROWS * PITCH<D>;
    T* const k_tiles = g_rows + ROWS * PITCH<D>;
    T* const v_tiles = k_tiles + 2 * TILE * PITCH<D>;
    const Head head(sizes, mask, ends);
    const u32 lane = threadIdx.x % WARP, warp = threadIdx.x / WARP;
    const u32 first = blockIdx.x * ROWS;
    const u32 out_stride = sizes.heads * D;
    q += head_offset<D>(sizes.queries, q_stride);
    k += head_offset<D>(sizes.keys, k_stride);
    v += head_offset<D>(sizes.keys, v_stride);
    dout += head_offset<D>(sizes.queries, out_stride);
    const DropoutPart drop(p, key, u64(head.index) * sizes.queries * sizes.keys);
    const float by = head.even ? 0.0f : scale * LOG2_E;

    fetch<ROWS, D>(q_rows, q, first, sizes.queries, q_stride);
    fetch<ROWS, D>(g_rows, dout, first, sizes.queries, out_stride);
    fetch<TILE, D>(k_tiles, k, 0, head.seen, k_stride);
    fetch<TILE, D>(v_tiles, v, 0, head.seen, v_stride);
    copy_commit();

    const u32 row = first + warp * 16 + lane / 4;
    u32 counter[2];
    float base[2], inner[2];
#pragma unroll
    for (int r = 0; r < 2; r++) {
        const size_t query = head.index * sizes.queries + row + 8 * r;
        const bool valid = row + 8 * r < sizes.queries;
        counter[r] = (row + 8 * r) * sizes.keys;
        base[r] = valid ? lse[query] * LOG2_E : INFINITY;
        inner[r] = valid ? delta[query] : 0.0f;
    }
    float sums[D / 8][4] = {};
    const u32 tiles = (head.seen + TILE - 1) / TILE;
    for (u32 tile = 0; tile < tiles; tile++) {
        const u32 start = tile * TILE;
        const T* const k_tile = k_tiles + tile % 2 * TILE * PITCH<D>;
        const T* const v_tile = v_tiles + tile % 2 * TILE * PITCH<D>;
        if (tile + 1 < tiles) {
            fetch<TILE, D>(k_tiles + (tile + 1) % 2 * TILE * PITCH<D>, k, start + TILE, head.seen, k_stride);
            fetch<TILE, D>(v_tiles + (tile + 1) % 2 * TILE * PITCH<D>, v, start + TILE, head.seen, v_stride);
        }
        copy_commit();
        copy_wait<1>();
        __syncthreads();

        float probs[TILE / 8][4] = {}, grads[TILE / 8][4] = {};
        u32 left[D / 16][4];
        load_left<D>(left, q_rows + warp * 16 * PITCH<D>);
        multiply_rows<TILE, D>(probs, left, k_tile);
        load_left<D>(left, g_rows + warp * 16 * PITCH<D>);
        multiply_rows<TILE, D>(grads, left, v_tile);
        const u32 seen = __ballot_sync(ALL_LANES, head.sees(start + lane));
#pragma unroll
        for (int n = 0; n < TILE / 8; n++) {
#pragma unroll
            for (int i = 0; i < 4; i++) {
                const u32 column = n * 8 + lane % 4 * 2 + i % 2;
                const bool visible = (seen >> column & 1) != 0;
                probs[n][i] = visible ? exp2_fast(probs[n][i] * by - base[i / 2]) : 0.0f;
                const float factor = drop.active() ? drop.factor(counter[i / 2] + start + column) : 1.0f;
                score_gradient(probs[n][i], grads[n][i], factor, inner[i / 2]);
            }
        }
        multiply_columns<TILE, D>(sums, grads, k_tile);
        __syncthreads();  // The tile may be overwritten.
    }
    copy_wait<0>();
#pragma unroll
    for (int n = 0; n < D / 8; n++) {
#pragma unroll
        for (int i = 0; i < 4; i++) sums[n][i] *= scale;
    }
    write_rows<D>(dq + head_offset<D>(sizes.queries, dq_stride), q_rows + warp * 16 * PITCH<D>, sums, first + warp * 16,
                  sizes.queries, dq_stride);
}

// delta (batch, heads, queries): the sum over a head of dout * out, a warp each, in the order of memory.
template <class T, int D>
__device__ void sum_products(float* delta, const T* dout, const T* out, const Sizes& sizes) {
    const size_t index = size_t(blockIdx.x) * (THREADS / WARP) + threadIdx.x / WARP;
    if (index >= size_t(sizes.batch) * sizes.queries * sizes.heads) return;
    float sum = 0.0f;
#pragma unroll
    for (int i = 0; i < D / int(WARP); i++) {
        const size_t at = index * D + i * WARP + threadIdx.x % WARP;
        sum += to_float(dout[at]) * to_float(out[at]);
    }
    sum = warp_reduce<Sum>(sum);
    const u32 head = u32(index % sizes.heads);
    const size_t query = index / sizes.heads % sizes.queries, sequence = index / sizes.heads / sizes.queries;
    if (threadIdx.x % WARP == 0) delta[(sequence * sizes.heads + head) * sizes.queries + query] = sum;
}

// ends[sequence]: one past the last key that counts, 0 if none does.
extern "C" __global__ void __launch_bounds__(THREADS)
    attention_key_ends(u32* ends, const u32* mask, u32 batch, u32 keys) {
    __shared__ u32 found[THREADS];
    if (blockIdx.x >= batch) return;
    u32 end = 0;
    for (u32 i = threadIdx.x; i < keys; i += THREADS) {
        if (mask[size_t(blockIdx.x) * keys + i] != 0) end = i + 1;
    }
    found[threadIdx.x] = end;
    __syncthreads();
    if (threadIdx.x != 0) return;
    for (u32 i = 1; i < THREADS; i++) end = found[i] > end ? found[i] : end;
    ends[blockIdx.x] = end;
}

#define DEFINE(suffix, T, D)                                                                                           \
    extern "C" __global__ void __launch_bounds__(THREADS) attention_forward_##suffix##_d##D(                           \
        T* out, float* lse, const T* q, const T* k, const T* v, const u32* mask, const u32* ends, u32 batch,           \
        u32 heads, u32 queries, u32 keys, u32 q_stride, u32 k_stride, u32 v_stride, float scale, float p, u64 key) {   \
        forward<T, D>(out, lse, q, k, v, mask, ends, {batch, heads, queries, keys}, q_stride, k_stride, v_stride,      \
                      scale, p, key);                                                                                  \
    }                                                                                                                  \
    extern "C" __global__ void __launch_bounds__(THREADS) attention_delta_##suffix##_d##D(                             \
        float* delta, const T* dout, const T* out, u32 batch, u32 heads, u32 queries) {                                \
        sum_products<T, D>(delta, dout, out, {batch, heads, queries, 0});                                              \
    }                                                                                                                  \
    extern "C" __global__ void __launch_bounds__(THREADS) attention_backward_kv_##suffix##_d##D(                       \
        T* dk, T* dv, const T* dout, const T* q, const T* k, const T* v, const float* lse, const float* delta,         \
        const u32* mask, const u32* ends, u32 batch, u32 heads, u32 queries, u32 keys, u32 q_stride, u32 k_stride,     \
        u32 v_stride, u32 dk_stride, u32 dv_stride, float scale, float p, u64 key) {                                   \
        backward_kv<T, D>(dk, dv, dout, q, k, v, lse, delta, mask, ends, {batch, heads, queries, keys}, q_stride,      \
                          k_stride, v_stride, dk_stride, dv_stride, scale, p, key);                                    \
    }                                                                                                                  \
    extern "C" __global__ void __launch_bounds__(THREADS) attention_backward_q_##suffix##_d##D(                        \
        T* dq, const T* dout, const T* q, const T* k, const T* v, const float* lse, const float* delta,                \
        const u32* mask, const u32* ends, u32 batch, u32 heads, u32 queries, u32 keys, u32 q_stride, u32 k_stride,     \
        u32 v_stride, u32 dq_stride, float scale, float p, u64 key) {                                                  \
        backward_q<T, D>(dq, dout, q, k, v, lse, delta, mask, ends, {batch, heads, queries, keys}, q_stride, k_stride, \
                         v_stride, dq_stride, scale, p, key);                                                          \
    }
#define DEFINE_BOTH(D) DEFINE(bf16, __nv_bfloat16, D) DEFINE(f16, __half, D)
DEFINE_BOTH(32)
DEFINE_BOTH(64)
DEFINE_BOTH(96)
DEFINE_BOTH(128)
