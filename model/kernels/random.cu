// Weights for measurements where no checkpoint is at hand.
#include <cuda_bf16.h>
#include <cstdint>

// The finaliser of SplitMix64.
__device__ __forceinline__ uint64_t mix(uint64_t x) {
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
    return x ^ (x >> 31);
}

// out [count] = nearly normal numbers of standard deviation `deviation`: sums of four uniform ones, which depend on seed and index alone.
extern "C" __global__ void fill_random(__nv_bfloat16* out, uint64_t count, uint64_t seed, float deviation) {
    const uint64_t step = (uint64_t)gridDim.x * blockDim.x;
    for (uint64_t i = (uint64_t)blockIdx.x * blockDim.x + threadIdx.x; i < count; i += step) {
        const uint64_t bits = mix(seed + (i + 1) * 0x9e3779b97f4a7c15ull);
        float sum = 0.0f;
#pragma unroll
        for (int part = 0; part < 4; ++part) sum += (float)(uint32_t)(bits >> (16 * part) & 0xffff);
        // Four uniform numbers of [0, 65536) have mean 131070 and standard deviation 65536 / sqrt(3).
        out[i] = __float2bfloat16((sum - 131070.0f) * (1.7320508f / 65536.0f) * deviation);
    }
}
