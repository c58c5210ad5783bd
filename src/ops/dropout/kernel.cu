// Dropout on its own: out = x * factor(index), for any shape; backward is the same on the gradient.
//
// n elements of T are read and written once (out may be x); the mask is never written. About 20 integer operations an
// element.
#include "kernel.cuh"

template <class T, int N>
__device__ void apply(T* out, const T* x, u64 n, float p, u64 key) {
    DropoutMask mask(p, key);
    const u64 step = u64(gridDim.x) * blockDim.x * N;
    u64 at = (u64(blockIdx.x) * blockDim.x + threadIdx.x) * N;
    for (; at + N <= n; at += step) {
        float values[N];
        load<N>(x + at, values);
#pragma unroll
        for (int j = 0; j < N; j++) {
            if (mask.active()) values[j] *= mask.factor(at + j);
        }
        store<N>(out + at, values);
    }
    for (; at < n; at++) {
        const float value = to_float(x[at]);
        out[at] = from_float<T>(mask.active() ? value * mask.factor(at) : value);
    }
}

#define DEFINE(suffix, T)                                                                                        \
    extern "C" __global__ void __launch_bounds__(256)                                                            \
        dropout_##suffix(T* out, const T* x, u64 n, float p, u64 key) {                                           \
        if (aligned(out, x)) apply<T, WIDTH<T>>(out, x, n, p, key);                                               \
        else apply<T, 1>(out, x, n, p, key);                                                                      \
    }
FOR_EACH_TYPE(DEFINE)
