// The mask of src/ops/dropout.rs, bit for bit: a function of a key and the element's index, so that it is never stored,
// and CPU and GPU drop the same elements.
#pragma once

#include "../cuda/common.cuh"

// The 32-bit keys for one upper half of the index.
struct DropoutKeys {
    u32 first, second;

    __device__ __forceinline__ static DropoutKeys of(u64 key, u32 upper) {
        u64 z = key + (u64(upper) + 1) * 0x9E3779B97F4A7C15ull;
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
        z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
        z ^= z >> 31;
        return {u32(z), u32(z >> 32)};
    }

    // What is compared with the threshold: two rounds of a 32-bit finalizer with a key before each.
    __device__ __forceinline__ u32 bits(u32 lower) const {
        u32 z = lower + first;
        z = (z ^ (z >> 16)) * 0x21F0AAADu;
        z = (z ^ (z >> 15)) * 0xD35A2D97u;
        z = (z ^ (z >> 15)) + second;
        z = (z ^ (z >> 16)) * 0x85EBCA6Bu;
        z = (z ^ (z >> 13)) * 0xC2B2AE35u;
        return z ^ (z >> 16);
    }
};

// What is dropped, and what the rest is multiplied by.
struct DropoutRate {
    u32 threshold;
    float scale;
    bool active;

    __device__ __forceinline__ explicit DropoutRate(float p)
        // A power of two scales without rounding; the conversion saturates for p near 1.
        : threshold(__float2uint_rz(p * 4294967296.0f)), scale(p >= 1.0f ? 0.0f : 1.0f / (1.0f - p)), active(p > 0.0f) {}

    __device__ __forceinline__ float factor(u32 bits) const { return bits < threshold ? 0.0f : scale; }
};

// Over a whole tensor.
class DropoutMask {
   public:
    __device__ __forceinline__ DropoutMask(float p, u64 key) : key_(key), rate_(p) {
        if (rate_.active) keys_ = DropoutKeys::of(key_, 0);
    }

    // Whether anything is dropped at all.
    __device__ __forceinline__ bool active() const { return rate_.active; }

    // The factor of element `index`: 0, or 1 / (1 - p). To be asked only of an active mask.
    __device__ __forceinline__ float factor(u64 index) {
        const u32 upper = u32(index >> 32);
        if (upper != upper_) {
            keys_ = DropoutKeys::of(key_, upper);
            upper_ = upper;
        }
        return rate_.factor(keys_.bits(u32(index)));
    }

   private:
    u64 key_;
    DropoutRate rate_;
    u32 upper_ = 0;
    DropoutKeys keys_ = {0, 0};
};

// Over fewer than 2^32 elements from element `base` of a tensor on. These have two upper halves at most, so that both keys
// are at hand and an inner loop need not branch.
class DropoutPart {
   public:
    __device__ __forceinline__ DropoutPart(float p, u64 key, u64 base) : lower_(u32(base)), rate_(p) {
        if (!rate_.active) return;
        const u32 upper = u32(base >> 32);
        before_ = DropoutKeys::of(key, upper);
        after_ = DropoutKeys::of(key, upper + 1);
    }

    __device__ __forceinline__ bool active() const { return rate_.active; }

    // The factor of element base + `offset`. To be asked only of an active mask.
    __device__ __forceinline__ float factor(u32 offset) const {
        const u32 lower = lower_ + offset;
        const bool carry = lower < lower_;
        const DropoutKeys keys = {carry ? after_.first : before_.first, carry ? after_.second : before_.second};
        return rate_.factor(keys.bits(lower));
    }

   private:
    u32 lower_;
    DropoutRate rate_;
    DropoutKeys before_ = {0, 0}, after_ = {0, 0};
};
