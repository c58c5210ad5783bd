// Sums and multiples of whole tensors: out = a + b, and out = factor * x.
//
// Sum: 2 T read, 1 written an element (out may be a or b). Multiple: 1 read, 1 written (out may be x).
#include "common.cuh"

// out[i] = f(a[i], b[i]).
template <class T, int N, class F>
__device__ __forceinline__ void combine(T* out, const T* a, const T* b, u64 n, F f) {
    const u64 step = u64(gridDim.x) * blockDim.x * N;
    u64 at = (u64(blockIdx.x) * blockDim.x + threadIdx.x) * N;
    for (; at + N <= n; at += step) {
        Raw<T, N> left, right;
        left.load(a + at);
        right.load(b + at);
        float x[N], y[N];
        left.widen(x);
        right.widen(y);
#pragma unroll
        for (int j = 0; j < N; j++) x[j] = f(x[j], y[j]);
        store<N>(out + at, x);
    }
    for (; at < n; at++) out[at] = from_float<T>(f(to_float(a[at]), to_float(b[at])));
}

#define DEFINE(suffix, T)                                                                                              \
    extern "C" __global__ void __launch_bounds__(256) add_##suffix(T* out, const T* a, const T* b, u64 n) {            \
        const auto sum = [](float x, float y) { return x + y; };                                                       \
        if (aligned(out, a, b)) {                                                                                      \
            combine<T, WIDTH<T>>(out, a, b, n, sum);                                                                   \
        } else {                                                                                                       \
            combine<T, 1>(out, a, b, n, sum);                                                                          \
        }                                                                                                              \
    }                                                                                                                  \
    extern "C" __global__ void __launch_bounds__(256) scale_##suffix(T* out, const T* x, u64 n, float factor) {        \
        const auto product = [=](float value, float) { return value * factor; };                                       \
        if (aligned(out, x)) {                                                                                         \
            combine<T, WIDTH<T>>(out, x, x, n, product);                                                               \
        } else {                                                                                                       \
            combine<T, 1>(out, x, x, n, product);                                                                      \
        }                                                                                                              \
    }
FOR_EACH_TYPE(DEFINE)
