// What candle's kernels need of CUDA beside what ours do.
#pragma once

#define __CUDA_ARCH__ 900
#define __CUDACC_VER_MAJOR__ 13
#define __CUDACC_VER_MINOR__ 0

#include "emulator.h"

#include <assert.h>

#include <algorithm>
#include <cmath>

#undef assert
#define assert(condition) ((condition) ? (void)0 : emulator::fail("a failed assertion: " #condition))

struct __nv_bfloat162 {
    __nv_bfloat16 x, y;
};
inline __nv_bfloat162 __hadd2(__nv_bfloat162 a, __nv_bfloat162 b) { return {a.x + b.x, a.y + b.y}; }
inline __nv_bfloat162 __hmul2(__nv_bfloat162 a, __nv_bfloat162 b) { return {a.x * b.x, a.y * b.y}; }

inline float2 make_float2(float x, float y) { return {x, y}; }
inline __nv_bfloat16 __float2bfloat16(float x) { return x; }
inline __half __float2half(float x) { return x; }
inline unsigned short __half_as_ushort(__half x) { return x.bits; }
inline __half __ushort_as_half(unsigned short bits) {
    __half x;
    x.bits = bits;
    return x;
}
inline int __float_as_int(float x) { return int(__float_as_uint(x)); }
inline float __int_as_float(int x) { return __uint_as_float(unsigned(x)); }
inline long long __double_as_longlong(double x) {
    long long bits;
    memcpy(&bits, &x, 8);
    return bits;
}
inline double __longlong_as_double(long long bits) {
    double x;
    memcpy(&x, &bits, 8);
    return x;
}

inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
inline double normcdf(double x) { return 0.5 * erfc(-x * M_SQRT1_2); }
inline float normcdff(float x) { return float(normcdf(x)); }

template <class A, class B>
typename std::common_type<A, B>::type min(A a, B b) {
    return a < b ? a : b;
}
template <class A, class B>
typename std::common_type<A, B>::type max(A a, B b) {
    return a < b ? b : a;
}

template <class T>
bool __hisnan(T x) {
    return std::isnan(float(x));
}
template <class T>
T __hmax_nan(T a, T b) {
    return __hisnan(a) || float(a) > float(b) ? a : b;
}
template <class T>
T __hmin_nan(T a, T b) {
    return __hisnan(a) || float(a) < float(b) ? a : b;
}
#define CLOZE_OF_FLOAT(name, function)   \
    template <class T>                   \
    T name(T x) {                        \
        return function(float(x));       \
    }
CLOZE_OF_FLOAT(hexp, expf)
CLOZE_OF_FLOAT(hlog, logf)
CLOZE_OF_FLOAT(hsqrt, sqrtf)
CLOZE_OF_FLOAT(hsin, sinf)
CLOZE_OF_FLOAT(hcos, cosf)
CLOZE_OF_FLOAT(__habs, fabsf)

// Fibers change at barriers only, so nobody comes between reading and writing.
template <class T, class U>
T atomicAdd(T* address, U value) {
    const T old = *address;
    *address = old + T(value);
    return old;
}
template <class T, class U>
T atomicMax(T* address, U value) {
    const T old = *address;
    if (old < T(value)) *address = T(value);
    return old;
}
template <class T, class U>
T atomicMin(T* address, U value) {
    const T old = *address;
    if (T(value) < old) *address = T(value);
    return old;
}
template <class T>
T atomicCAS(T* address, T expected, T value) {
    const T old = *address;
    if (old == expected) *address = value;
    return old;
}

// Numbers of 8 bits compile; nothing here computes with them.
struct __nv_fp8_e4m3 {
    unsigned char __x;
    __nv_fp8_e4m3() = default;
    explicit __nv_fp8_e4m3(double) { emulator::fail("8 bit floats are not emulated"); }
};
constexpr int __NV_E4M3 = 0;
inline __half __nv_cvt_fp8_to_halfraw(unsigned char, int) { emulator::fail("8 bit floats are not emulated"); }
