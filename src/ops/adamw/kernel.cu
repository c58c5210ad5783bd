// The global gradient norm and the AdamW update over all parameters, in three launches whatever their number.
//
// Tensors are named by a table; the work is a list of chunks of CHUNK elements, one a block. grad_norm_chunks: 4 bytes read
// an element, one f64 a chunk written. adamw_prepare (one block): norm, clipping, step counts, bias corrections, loss
// scaling, all on the device, so that nothing waits for the host. adamw_update: 16 bytes read, 12 written an element (14 with
// the narrow copy), about 12 FLOPs. Fused: unscaling, clipping, decay, both moments, the update, the narrow copy of the
// weight for the products. Never written: scaled gradients.
//
// The arithmetic is that of src/ops/adamw.rs. With `scaling` a step whose norm is not finite changes nothing but the loss
// scale.
#include "../cuda/common.cuh"

constexpr u64 CHUNK = 1 << 15;
constexpr u32 THREADS = 256;

struct AdamWTensor {
    u64 value, m, v, grad;  // Addresses of f32.
    u64 copy;               // Of the narrow copy, if copy_kind says that there is one.
    u64 length;
    u32 group;
    u32 copy_kind;  // 0: none, 1: bf16, 2: f16.
};
struct AdamWChunk {
    u32 tensor, index;
};
struct AdamWGroup {
    double lr, beta1, beta2, eps, weight_decay;
    u64 step;  // Updates done.
};
struct AdamWFactors {
    float decay, rise1, beta2, rise2, root_correction2, eps, step_size, unused;
};
struct AdamWControl {
    float grad_scale;     // What the caller wants gradients multiplied by.
    float max_norm;       // What their norm is clipped to; 0: not at all.
    float loss_scale;     // What the loss was multiplied by.
    u32 scaling;          // Whether steps that are not finite are skipped and loss_scale is adapted.
    u32 growth_interval;  // Good steps after which loss_scale doubles.
    u32 good_steps;
    float norm;    // Out: of the gradient the caller means, before clipping.
    float factor;  // Out: what the update multiplies gradients by.
    u32 skipped;   // Out: whether this step was.
    u32 skipped_total;
    u32 unused[2];
};
static_assert(sizeof(AdamWTensor) == 56 && sizeof(AdamWGroup) == 48 && sizeof(AdamWFactors) == 32 &&
                  sizeof(AdamWControl) == 48,
              "the layout that the host writes");

__device__ __forceinline__ double block_sum(double sum) {
    __shared__ double sums[THREADS];
    sums[threadIdx.x] = sum;
    for (u32 half = THREADS / 2; half > 0; half /= 2) {
        __syncthreads();
        if (threadIdx.x < half) sums[threadIdx.x] += sums[threadIdx.x + half];
    }
    __syncthreads();
    return sums[0];
}

// The length of a chunk and its first element.
__device__ __forceinline__ u64 first_of(const AdamWChunk& chunk) { return chunk.index * CHUNK; }
__device__ __forceinline__ u32 length_of(const AdamWTensor& tensor, const AdamWChunk& chunk) {
    const u64 left = tensor.length - first_of(chunk);
    return u32(left < CHUNK ? left : CHUNK);
}

extern "C" __global__ void __launch_bounds__(THREADS)
    grad_norm_chunks(double* partials, const AdamWTensor* tensors, const AdamWChunk* chunks, u32 count) {
    if (blockIdx.x >= count) return;
    const AdamWChunk chunk = chunks[blockIdx.x];
    const AdamWTensor& tensor = tensors[chunk.tensor];
    const float* const grad = reinterpret_cast<const float*>(tensor.grad) + first_of(chunk);
    const u32 length = length_of(tensor, chunk);
    const u32 whole = aligned(grad) ? length / 4 * 4 : 0;
    double sum = 0.0;
    for (u32 i = threadIdx.x * 4; i < whole; i += THREADS * 4) {
        float g[4];
        load<4>(grad + i, g);
#pragma unroll
        for (int j = 0; j < 4; j++) sum += double(g[j]) * double(g[j]);
    }
    for (u32 i = whole + threadIdx.x; i < length; i += THREADS) sum += double(grad[i]) * double(grad[i]);
    sum = block_sum(sum);
    if (threadIdx.x == 0) partials[blockIdx.x] = sum;
}

extern "C" __global__ void __launch_bounds__(THREADS)
    adamw_prepare(AdamWControl* control, AdamWGroup* groups, AdamWFactors* factors, u32 group_count,
                  const double* partials, u32 count) {
    double sum = 0.0;
    for (u32 i = threadIdx.x; i < count; i += THREADS) sum += partials[i];
    sum = block_sum(sum);
    const AdamWControl before = *control;
    // One over a power of two, when it is not 1: exact.
    const double scale = double(before.grad_scale) / double(before.loss_scale);
    const double norm = sqrt(sum) * fabs(scale);
    const bool skipped = before.scaling != 0 && !isfinite(norm);
    for (u32 i = threadIdx.x; i < group_count && !skipped; i += THREADS) {
        const AdamWGroup group = groups[i];
        const u64 step = group.step + 1;
        groups[i].step = step;
        AdamWFactors out;
        out.decay = float(1.0 - group.lr * group.weight_decay);
        out.rise1 = float(1.0 - group.beta1);
        out.beta2 = float(group.beta2);
        out.rise2 = float(1.0 - group.beta2);
        out.root_correction2 = float(sqrt(1.0 - pow(group.beta2, double(step))));
        out.eps = float(group.eps);
        out.step_size = float(group.lr / (1.0 - pow(group.beta1, double(step))));
        out.unused = 0.0f;
        factors[i] = out;
    }
    __syncthreads();  // All have read the control.
    if (threadIdx.x != 0) return;
    double clip = 1.0;
    if (before.max_norm > 0.0f && count > 0) {
        clip = double(before.max_norm) / (norm + 1e-6);
        if (clip > 1.0) clip = 1.0;  // NaN stays.
    }
    control->norm = float(norm);
    control->factor = float(scale * clip);
    control->skipped = skipped ? 1 : 0;
    if (before.scaling == 0) return;
    if (skipped) {
        control->skipped_total = before.skipped_total + 1;
        control->good_steps = 0;
        control->loss_scale = before.loss_scale * 0.5f;
    } else if (before.good_steps + 1 >= before.growth_interval) {
        control->good_steps = 0;
        control->loss_scale = before.loss_scale * 2.0f;
    } else {
        control->good_steps = before.good_steps + 1;
    }
}

template <int N>
__device__ __forceinline__ void update(const AdamWTensor& tensor, const AdamWFactors& f, float factor, u64 at) {
    float* const value_at = reinterpret_cast<float*>(tensor.value) + at;
    float* const m_at = reinterpret_cast<float*>(tensor.m) + at;
    float* const v_at = reinterpret_cast<float*>(tensor.v) + at;
    float value[N], m[N], v[N], g[N];
    load<N>(value_at, value);
    load<N>(m_at, m);
    load<N>(v_at, v);
    load<N>(reinterpret_cast<const float*>(tensor.grad) + at, g);
#pragma unroll
    for (int j = 0; j < N; j++) {
        const float grad = g[j] * factor;
        m[j] = fmaf(grad - m[j], f.rise1, m[j]);
        v[j] = fmaf(grad * f.rise2, grad, v[j] * f.beta2);
        const float root = sqrtf(v[j]) / f.root_correction2 + f.eps;
        value[j] = fmaf(m[j] / root, -f.step_size, value[j] * f.decay);
    }
    store<N>(value_at, value);
    store<N>(m_at, m);
    store<N>(v_at, v);
    if (tensor.copy_kind == 1) store<N>(reinterpret_cast<__nv_bfloat16*>(tensor.copy) + at, value);
    if (tensor.copy_kind == 2) store<N>(reinterpret_cast<__half*>(tensor.copy) + at, value);
}

extern "C" __global__ void __launch_bounds__(THREADS)
    adamw_update(const AdamWControl* control, const AdamWTensor* tensors, const AdamWChunk* chunks,
                 const AdamWFactors* factors) {
    if (control->skipped) return;
    const AdamWChunk chunk = chunks[blockIdx.x];
    const AdamWTensor tensor = tensors[chunk.tensor];
    const AdamWFactors f = factors[tensor.group];
    const float factor = control->factor;
    const u64 first = first_of(chunk);
    const u32 length = length_of(tensor, chunk);
    // Chunks are a multiple of 16 bytes apart, so a tensor's beginning decides for all of them.
    const bool wide = ((tensor.value | tensor.m | tensor.v | tensor.grad | tensor.copy) & 15) == 0;
    const u32 whole = wide ? length / 4 * 4 : 0;
    for (u32 i = threadIdx.x * 4; i < whole; i += THREADS * 4) update<4>(tensor, f, factor, first + i);
    for (u32 i = whole + threadIdx.x; i < length; i += THREADS) update<1>(tensor, f, factor, first + i);
}
