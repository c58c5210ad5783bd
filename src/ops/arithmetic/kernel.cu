// Sums, products and multiples of whole tensors: out = a + b, a * b, factor * x; and with what is smaller: out = x + y, where
// y repeats, and rows times numbers.
//
// Sum, product: 2 T read, 1 written an element (out may be a or b). The others: 1 read, 1 written (out may be x).
#include "../cuda/common.cuh"

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

// out[i] = x[i] + y[i % period]; n is a multiple of period, and period of N.
template <class T, int N>
__device__ void add_repeated(T* out, const T* x, const T* y, u64 n, u64 period) {
    const u64 step = u64(gridDim.x) * blockDim.x * N;
    for (u64 at = (u64(blockIdx.x) * blockDim.x + threadIdx.x) * N; at < n; at += step) {
        float a[N], b[N];
        load<N>(x + at, a);
        load<N>(y + at % period, b);
#pragma unroll
        for (int j = 0; j < N; j++) a[j] += b[j];
        store<N>(out + at, a);
    }
}

// out[i] = x[i] * factors[i / width]; n is a multiple of width, and width of N.
template <class T, int N>
__device__ void mul_rows(T* out, const T* x, const float* factors, u64 n, u64 width) {
    const u64 step = u64(gridDim.x) * blockDim.x * N;
    for (u64 at = (u64(blockIdx.x) * blockDim.x + threadIdx.x) * N; at < n; at += step) {
        const float factor = factors[at / width];
        float a[N];
        load<N>(x + at, a);
#pragma unroll
        for (int j = 0; j < N; j++) a[j] *= factor;
        store<N>(out + at, a);
    }
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
    extern "C" __global__ void __launch_bounds__(256) mul_##suffix(T* out, const T* a, const T* b, u64 n) {            \
        const auto product = [](float x, float y) { return x * y; };                                                   \
        if (aligned(out, a, b)) {                                                                                      \
            combine<T, WIDTH<T>>(out, a, b, n, product);                                                               \
        } else {                                                                                                       \
            combine<T, 1>(out, a, b, n, product);                                                                      \
        }                                                                                                              \
    }                                                                                                                  \
    extern "C" __global__ void __launch_bounds__(256)                                                                  \
        add_repeated_##suffix(T* out, const T* x, const T* y, u64 n, u64 period) {                                     \
        if (period % WIDTH<T> == 0 && aligned(out, x, y)) {                                                            \
            add_repeated<T, WIDTH<T>>(out, x, y, n, period);                                                           \
        } else {                                                                                                       \
            add_repeated<T, 1>(out, x, y, n, period);                                                                  \
        }                                                                                                              \
    }                                                                                                                  \
    extern "C" __global__ void __launch_bounds__(256)                                                                  \
        mul_rows_##suffix(T* out, const T* x, const float* factors, u64 n, u64 width) {                                \
        if (width % WIDTH<T> == 0 && aligned(out, x)) {                                                                \
            mul_rows<T, WIDTH<T>>(out, x, factors, n, width);                                                          \
        } else {                                                                                                       \
            mul_rows<T, 1>(out, x, factors, n, width);                                                                 \
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
