// The activations by the numbers that the host calls them, their values and derivatives.
#pragma once

#include "../cuda/common.cuh"

enum Activation : u32 { GELU, GELU_TANH, RELU, SILU, TANH, LINEAR, SIGMOID, RELU_SQUARED, QUICK_GELU, LAPLACE };

constexpr float SQRT_HALF = 0.70710678f;
constexpr float DENSITY_AT_0 = 0.39894228f;  // 1 / sqrt(2 pi)
constexpr float GELU_INNER = 0.79788456f;    // sqrt(2 / pi)
constexpr float GELU_CUBIC = 0.044715f;
constexpr float QUICK = 1.702f;
constexpr float LAPLACE_MEAN = 0.707107f;
constexpr float LAPLACE_SCALE = float(1.0 / 0.282095);

__device__ __forceinline__ float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }

// The tanh approximation's gate (1 + tanh u) / 2 = sigmoid(2 u).
__device__ __forceinline__ float tanh_gate(float x) {
    return sigmoid(2.0f * GELU_INNER * x * (GELU_CUBIC * x * x + 1.0f));
}

template <u32 ACTIVATION>
__device__ __forceinline__ float value(float x) {
    // The complement keeps its digits in the lower tail, where 1 + erf would lose them.
    if constexpr (ACTIVATION == GELU) return x * (0.5f * erfcf(-x * SQRT_HALF));
    if constexpr (ACTIVATION == GELU_TANH) return x * tanh_gate(x);
    // Not fmaxf, which would turn NaN into 0.
    if constexpr (ACTIVATION == RELU) return x < 0.0f ? 0.0f : x;
    if constexpr (ACTIVATION == SILU) return x * sigmoid(x);
    if constexpr (ACTIVATION == TANH) return tanhf(x);
    if constexpr (ACTIVATION == SIGMOID) return sigmoid(x);
    if constexpr (ACTIVATION == RELU_SQUARED) return x < 0.0f ? 0.0f : x * x;
    if constexpr (ACTIVATION == QUICK_GELU) return x * sigmoid(QUICK * x);
    if constexpr (ACTIVATION == LAPLACE) return 0.5f * erfcf((LAPLACE_MEAN - x) * LAPLACE_SCALE * SQRT_HALF);
    return x;
}

template <u32 ACTIVATION>
__device__ __forceinline__ float derivative(float x) {
    if constexpr (ACTIVATION == GELU) {
        return x * (DENSITY_AT_0 * expf(-0.5f * x * x)) + 0.5f * erfcf(-x * SQRT_HALF);
    }
    if constexpr (ACTIVATION == GELU_TANH) {
        const float gate = tanh_gate(x);
        const float slope = GELU_INNER * (3.0f * GELU_CUBIC * x * x + 1.0f);
        return 2.0f * x * slope * (gate * (1.0f - gate)) + gate;
    }
    if constexpr (ACTIVATION == RELU) return x > 0.0f ? 1.0f : 0.0f;
    if constexpr (ACTIVATION == SILU) {
        const float gate = sigmoid(x);
        return gate * (x * (1.0f - gate) + 1.0f);
    }
    if constexpr (ACTIVATION == TANH) {
        const float y = tanhf(x);
        return 1.0f - y * y;
    }
    if constexpr (ACTIVATION == SIGMOID) {
        const float y = sigmoid(x);
        return y * (1.0f - y);
    }
    if constexpr (ACTIVATION == RELU_SQUARED) return x > 0.0f ? 2.0f * x : 0.0f;
    if constexpr (ACTIVATION == QUICK_GELU) {
        const float gate = sigmoid(QUICK * x);
        return gate * (QUICK * x * (1.0f - gate) + 1.0f);
    }
    if constexpr (ACTIVATION == LAPLACE) {
        const float z = (x - LAPLACE_MEAN) * LAPLACE_SCALE;
        return DENSITY_AT_0 * LAPLACE_SCALE * expf(-0.5f * z * z);
    }
    return 1.0f;
}

#define FOR_EACH_ACTIVATION(call, activation) \
    switch (activation) {                     \
        case GELU: call(GELU); break;         \
        case GELU_TANH: call(GELU_TANH); break; \
        case RELU: call(RELU); break;         \
        case SILU: call(SILU); break;         \
        case TANH: call(TANH); break;         \
        case SIGMOID: call(SIGMOID); break;   \
        case RELU_SQUARED: call(RELU_SQUARED); break; \
        case QUICK_GELU: call(QUICK_GELU); break; \
        case LAPLACE: call(LAPLACE); break;   \
        default: call(LINEAR); break;         \
    }
