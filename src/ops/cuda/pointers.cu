// Where the heads of (batch, seq, heads, d) tensors begin, for cuBLAS's batched products: three tables of batch * heads
// addresses, one after the other. Distances are in bytes.
#include "common.cuh"

extern "C" __global__ void __launch_bounds__(256)
    head_pointers(u64* out, u64 base0, u64 sequence0, u64 head0, u64 base1, u64 sequence1, u64 head1, u64 base2,
                  u64 sequence2, u64 head2, u32 batch, u32 heads) {
    const u32 n = batch * heads;
    const u32 i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    const u64 sequence = i / heads, head = i % heads;
    out[i] = base0 + sequence * sequence0 + head * head0;
    out[n + i] = base1 + sequence * sequence1 + head * head1;
    out[2 * n + i] = base2 + sequence * sequence2 + head * head2;
}
