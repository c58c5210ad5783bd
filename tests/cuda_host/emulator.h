// Runs CUDA kernels on the CPU, for tests: what a kernel's source needs of CUDA, in plain C++.
//
// A thread of a block is a fiber; __syncthreads and whatever a warp does together are the points where fibers change.
// Kernels are compiled unchanged against this header instead of CUDA's. It checks their arithmetic and their manners
// (see emulator.cpp), and says nothing about their speed.
#pragma once

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <type_traits>

#define CLOZE_EMULATED 1
#define __global__ __attribute__((visibility("default")))
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __grid_constant__
#define __shared__ static thread_local

struct uint2 {
    unsigned int x, y;
} __attribute__((aligned(8)));
struct uint4 {
    unsigned int x, y, z, w;
} __attribute__((aligned(16)));
struct uint3 {
    unsigned int x, y, z;
};
struct float2 {
    float x, y;
} __attribute__((aligned(8)));
struct float4 {
    float x, y, z, w;
} __attribute__((aligned(16)));

namespace emulator {

struct Place {
    uint3 thread, block, block_dim, grid_dim;
};

// Where the running fiber is.
const Place& place();
// The dynamic shared memory of the running block; what lies behind it can't be touched.
void* dynamic_shared();
// Waits until all threads of the block have come to the same line.
void sync_block(const char* file, int line);
// Waits until all 32 lanes have come to the same line, each with `bytes` of `in` in hand; what each brought, `slot` apart.
const unsigned char* exchange(const char* file, int line, const void* in, size_t bytes);
constexpr size_t slot = 64;
// Ends the launch with an error that says where the thread is.
[[noreturn]] void fail(const char* what);
// Copies 16 bytes (zeros if not `valid`) at once or, in every other order of threads, when they are waited for.
void copy_async(void* to, const void* from, bool valid);
void copy_commit();
void copy_wait(int groups_left);

template <class T>
T lane_value(const unsigned char* slots, int lane) {
    T value;
    memcpy(&value, slots + lane * slot, sizeof(T));
    return value;
}

inline int lane() {
    const Place& p = place();
    return int((p.thread.z * p.block_dim.y + p.thread.y) * p.block_dim.x + p.thread.x) & 31;
}

template <class T>
T shuffle(const char* file, int line, unsigned mask, T value, int from) {
    if (mask != 0xFFFFFFFFu) fail("a warp function was called for a part of the warp");
    return lane_value<T>(exchange(file, line, &value, sizeof(T)), from & 31);
}

inline unsigned ballot(const char* file, int line, unsigned mask, int predicate) {
    if (mask != 0xFFFFFFFFu) fail("a warp function was called for a part of the warp");
    const unsigned char* all = exchange(file, line, &predicate, sizeof(int));
    unsigned bits = 0;
    for (int i = 0; i < 32; i++) bits |= unsigned(lane_value<int>(all, i) != 0) << i;
    return bits;
}

}  // namespace emulator

#define threadIdx (emulator::place().thread)
#define blockIdx (emulator::place().block)
#define blockDim (emulator::place().block_dim)
#define gridDim (emulator::place().grid_dim)
#define __syncthreads() emulator::sync_block(__FILE__, __LINE__)
#define __syncwarp() ((void)emulator::ballot(__FILE__, __LINE__, 0xFFFFFFFFu, 0))
#define __shfl_sync(mask, value, from) emulator::shuffle(__FILE__, __LINE__, mask, value, from)
#define __shfl_xor_sync(mask, value, bits, ...) \
    emulator::shuffle(__FILE__, __LINE__, mask, value, emulator::lane() ^ (bits))
#define __ballot_sync(mask, predicate) emulator::ballot(__FILE__, __LINE__, mask, predicate)
#define __any_sync(mask, predicate) (__ballot_sync(mask, predicate) != 0)

inline unsigned int __float_as_uint(float x) {
    unsigned int bits;
    memcpy(&bits, &x, 4);
    return bits;
}
inline float __uint_as_float(unsigned int bits) {
    float x;
    memcpy(&x, &bits, 4);
    return x;
}
// Saturates, as the device's conversion does.
inline unsigned int __float2uint_rz(float x) {
    if (!(x > 0.0f)) return 0;
    return x >= 4294967296.0f ? 0xFFFFFFFFu : (unsigned int)x;
}

// --- The two narrow types, rounded to nearest even. -----------------------------------------------------------------

// Not in the emulator's namespace, whose functions would then answer to calls of the kernels' own.
namespace narrow {

struct Bfloat16 {
    static uint16_t round(float x) {
        uint32_t bits = __float_as_uint(x);
        if ((bits & 0x7FFFFFFFu) > 0x7F800000u) return 0x7FFF;
        bits += 0x7FFFu + ((bits >> 16) & 1u);
        return uint16_t(bits >> 16);
    }
    static float widen(uint16_t bits) { return __uint_as_float(uint32_t(bits) << 16); }
};

struct Half {
    static uint16_t round(float x) {
        uint32_t bits = __float_as_uint(x);
        uint16_t sign = uint16_t((bits >> 16) & 0x8000u);
        uint32_t rest = bits & 0x7FFFFFFFu;
        if (rest > 0x7F800000u) return 0x7FFF;
        // 65520 and more round to infinity.
        if (rest >= 0x477FF000u) return uint16_t(sign | 0x7C00u);
        if (rest < 0x38800000u) {
            // Subnormal: a whole number of 2^-24. Adding 1.5 * 2^23 of that unit rounds to nearest even.
            float magnitude = __uint_as_float(rest) * 16777216.0f;
            float rounded = (magnitude + 12582912.0f) - 12582912.0f;
            return uint16_t(sign | uint16_t(rounded));
        }
        rest += 0x0FFFu + ((rest >> 13) & 1u);
        return uint16_t(sign | uint16_t((rest - 0x38000000u) >> 13));
    }
    static float widen(uint16_t bits) {
        uint32_t sign = uint32_t(bits & 0x8000u) << 16;
        uint32_t rest = bits & 0x7FFFu;
        if (rest < 0x0400u) {
            float magnitude = float(rest) * (1.0f / 16777216.0f);
            return __uint_as_float(__float_as_uint(magnitude) | sign);
        }
        if (rest >= 0x7C00u) return __uint_as_float(sign | 0x7F800000u | ((rest & 0x3FFu) << 13));
        return __uint_as_float(sign | ((rest << 13) + 0x38000000u));
    }
};

// As CUDA's two types, it converts from and to other numbers unasked, and every operation rounds.
template <class Format>
struct Narrow {
    uint16_t bits;

    Narrow() = default;
    template <class T, class = typename std::enable_if<std::is_arithmetic<T>::value>::type>
    Narrow(T x) : bits(Format::round(float(x))) {}
    operator float() const { return Format::widen(bits); }

    friend Narrow operator+(Narrow a, Narrow b) { return float(a) + float(b); }
    friend Narrow operator-(Narrow a, Narrow b) { return float(a) - float(b); }
    friend Narrow operator*(Narrow a, Narrow b) { return float(a) * float(b); }
    friend Narrow operator/(Narrow a, Narrow b) { return float(a) / float(b); }
    friend Narrow operator-(Narrow a) { return -float(a); }
    friend Narrow& operator+=(Narrow& a, Narrow b) { return a = a + b; }
    friend Narrow& operator*=(Narrow& a, Narrow b) { return a = a * b; }
};

}  // namespace narrow

typedef narrow::Narrow<narrow::Bfloat16> __nv_bfloat16;
typedef narrow::Narrow<narrow::Half> __half;

inline __nv_bfloat16 __float2bfloat16_rn(float x) { return x; }
inline float __bfloat162float(__nv_bfloat16 x) { return x; }
inline __half __float2half_rn(float x) { return x; }
inline float __half2float(__half x) { return x; }

// --- The matrix unit's instructions, from the layouts of fragments that the PTX manual gives. -----------------------

namespace emulator {

inline float widen(__nv_bfloat16 x) { return __bfloat162float(x); }
inline float widen(__half x) { return __half2float(x); }

// d (16, 8) += a (16, 16) b (16, 8). A lane holds of a: rows g and g + 8 in columns 2t, 2t + 1, 2t + 8, 2t + 9; of b: the same
// rows 2t.. in column g; of d: rows g and g + 8 in columns 2t, 2t + 1, where g = lane / 4 and t = lane % 4.
template <class T>
void mma_16816(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
    // Each lane brings its 8 elements of a and 4 of b.
    float mine[12];
    for (int i = 0; i < 12; i++) {
        const uint32_t pair = i < 8 ? a[i / 2] : b[i / 2 - 4];
        T x;
        x.bits = uint16_t(i % 2 ? pair >> 16 : pair);
        mine[i] = widen(x);
    }
    const unsigned char* all = exchange("mma", sizeof(T), mine, sizeof(mine));
    const int group = lane() / 4, pair = lane() % 4;
    for (int from = 0; from < 4; from++) {
        // Columns of a and rows of b: 2 from, 2 from + 1, and the same + 8.
        float left[8], right[2][4];
        memcpy(left, all + (group * 4 + from) * slot, sizeof(left));
        for (int n = 0; n < 2; n++) {
            memcpy(right[n], all + ((2 * pair + n) * 4 + from) * slot + sizeof(left), sizeof(right[n]));
        }
        for (int k = 0; k < 4; k++) {
            for (int m = 0; m < 2; m++) {
                // Registers of a: row g, row g + 8, then both with columns + 8.
                const float x = left[(m + k / 2 * 2) * 2 + k % 2];
                for (int n = 0; n < 2; n++) d[2 * m + n] += x * right[n][k];
            }
        }
    }
}

// Four 8 x 8 matrices of 16-bit elements; lane 8 i + r brings the address of row r of matrix i.
inline void ldmatrix_x4(uint32_t (&out)[4], const void* row, bool transposed) {
    if (reinterpret_cast<uintptr_t>(row) % 16 != 0) fail("ldmatrix from an address that is no multiple of 16");
    uint16_t values[8];
    memcpy(values, row, 16);
    const unsigned char* all = exchange("ldmatrix", transposed, values, sizeof(values));
    int group = lane() / 4, pair = lane() % 4;
    for (int i = 0; i < 4; i++) {
        uint16_t low, high;
        for (int half = 0; half < 2; half++) {
            int r = transposed ? 2 * pair + half : group;
            int c = transposed ? group : 2 * pair + half;
            memcpy(half ? &high : &low, all + (8 * i + r) * slot + 2 * c, 2);
        }
        out[i] = uint32_t(low) | uint32_t(high) << 16;
    }
}

}  // namespace emulator
