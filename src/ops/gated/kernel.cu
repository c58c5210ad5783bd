// y = act(gate) * other over rows of 2 * half, whose halves are gate and other in the order that `second` says: the gated
// feed-forward layers.
//
// Fused: activation and product; backward: both gradients. Saved for backward: x. Never written: the activation.
//
// Forward: 2 T read, 1 written an element of the result. Backward: 3 read, 2 written. 10 to 40 FLOPs an element.
#include "../activation/kernel.cuh"

template <u32 ACTIVATION, class T, int N>
__device__ void gated_forward(T* y, const T* x, u64 n, u32 half, u32 second) {
    const u64 step = u64(gridDim.x) * blockDim.x * N;
    for (u64 at = (u64(blockIdx.x) * blockDim.x + threadIdx.x) * N; at < n; at += step) {
        const u64 line = at / half * 2 * half + at % half;
        float gate[N], other[N];
        load<N>(x + line + (second ? half : 0), gate);
        load<N>(x + line + (second ? 0 : half), other);
#pragma unroll
        for (int j = 0; j < N; j++) other[j] *= value<ACTIVATION>(gate[j]);
        store<N>(y + at, other);
    }
}

template <u32 ACTIVATION, class T, int N>
__device__ void gated_backward(T* dx, const T* dy, const T* x, u64 n, u32 half, u32 second) {
    const u64 step = u64(gridDim.x) * blockDim.x * N;
    for (u64 at = (u64(blockIdx.x) * blockDim.x + threadIdx.x) * N; at < n; at += step) {
        const u64 line = at / half * 2 * half + at % half;
        const u64 of_gate = line + (second ? half : 0), of_other = line + (second ? 0 : half);
        float gate[N], other[N], grad[N];
        load<N>(x + of_gate, gate);
        load<N>(x + of_other, other);
        load<N>(dy + at, grad);
#pragma unroll
        for (int j = 0; j < N; j++) {
            other[j] *= grad[j] * derivative<ACTIVATION>(gate[j]);
            grad[j] *= value<ACTIVATION>(gate[j]);
        }
        store<N>(dx + of_gate, other);
        store<N>(dx + of_other, grad);
    }
}

#define FORWARD_WIDE(A) gated_forward<A, Type, WIDTH<Type>>(y, x, n, half, second)
#define FORWARD_PLAIN(A) gated_forward<A, Type, 1>(y, x, n, half, second)
#define BACKWARD_WIDE(A) gated_backward<A, Type, WIDTH<Type>>(dx, dy, x, n, half, second)
#define BACKWARD_PLAIN(A) gated_backward<A, Type, 1>(dx, dy, x, n, half, second)

#define DEFINE(suffix, T)                                                                                              \
    extern "C" __global__ void __launch_bounds__(256)                                                                  \
        gated_forward_##suffix(T* y, const T* x, u64 n, u32 half, u32 activation, u32 second) {                        \
        using Type = T;                                                                                                \
        if (half % WIDTH<T> == 0 && aligned(y, x)) {                                                                   \
            FOR_EACH_ACTIVATION(FORWARD_WIDE, activation)                                                              \
        } else {                                                                                                       \
            FOR_EACH_ACTIVATION(FORWARD_PLAIN, activation)                                                             \
        }                                                                                                              \
    }                                                                                                                  \
    extern "C" __global__ void __launch_bounds__(256) gated_backward_##suffix(                                         \
        T* dx, const T* dy, const T* x, u64 n, u32 half, u32 activation, u32 second) {                                 \
        using Type = T;                                                                                                \
        if (half % WIDTH<T> == 0 && aligned(dx, dy, x)) {                                                              \
            FOR_EACH_ACTIVATION(BACKWARD_WIDE, activation)                                                             \
        } else {                                                                                                       \
            FOR_EACH_ACTIVATION(BACKWARD_PLAIN, activation)                                                            \
        }                                                                                                              \
    }
FOR_EACH_TYPE(DEFINE)
