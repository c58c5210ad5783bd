// The mask of src/ops/dropout.rs, bit for bit: a function of a key and the element's index, so that it is never stored,
// and CPU and GPU drop the same elements.
#pragma once

#include "common.cuh"

class DropoutMask {
   public:
    __device__ __forceinline__ DropoutMask(float p, u64 key)
        : key_(key),
          // A power of two scales without rounding; the conversion saturates for p near 1.
          threshold_(__float2uint_rz(p * 4294967296.0f)),
          scale_(p >= 1.0f ? 0.0f : 1.0f / (1.0f - p)),
          active_(p > 0.0f) {
        if (active_) prepare(0);
    }

    // Whether anything is dropped at all.
    __device__ __forceinline__ bool active() const { return active_; }

    // The factor of element `index`: 0, or 1 / (1 - p). To be asked only of an active mask.
    __device__ __forceinline__ float factor(u64 index) {
        const u32 upper = u32(index >> 32);
        if (upper != upper_) prepare(upper);
        // Two rounds of a 32-bit finalizer with a key before each.
        u32 z = u32(index) + first_;
        z = (z ^ (z >> 16)) * 0x21F0AAADu;
        z = (z ^ (z >> 15)) * 0xD35A2D97u;
        z = (z ^ (z >> 15)) + second_;
        z = (z ^ (z >> 16)) * 0x85EBCA6Bu;
        z = (z ^ (z >> 13)) * 0xC2B2AE35u;
        z ^= z >> 16;
        return z < threshold_ ? 0.0f : scale_;
    }

   private:
    // The 32-bit keys for one upper half of the index.
    __device__ __forceinline__ void prepare(u32 upper) {
        u64 z = key_ + (u64(upper) + 1) * 0x9E3779B97F4A7C15ull;
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
        z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
        z ^= z >> 31;
        first_ = u32(z);
        second_ = u32(z >> 32);
        upper_ = upper;
    }

    u64 key_;
    u32 threshold_;
    float scale_;
    bool active_;
    u32 upper_ = 0;
    u32 first_ = 0;
    u32 second_ = 0;
};
