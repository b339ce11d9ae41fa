// From logits to a token.
#include <cstdint>

// The better of two candidates: the larger logit, of equal ones the smaller id.
__device__ __forceinline__ void keep_better(float& best, uint32_t& id, float other, uint32_t other_id) {
    if (other > best || (other == best && other_id < id)) {
        best = other;
        id = other_id;
    }
}

// out [1] = index of the largest of logits [vocab], the first of equals. One block of 1024 threads. Twin: `Sampling::GREEDY`.
extern "C" __global__ void argmax(const float* logits, uint32_t vocab, uint32_t* out) {
    __shared__ float bests[32];
    __shared__ uint32_t ids[32];
    const uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    float best = -INFINITY;
    uint32_t id = 0;
    for (uint32_t i = threadIdx.x; i < vocab; i += blockDim.x) {
        const float logit = logits[i];
        if (logit > best) {
            best = logit;
            id = i;
        }
    }
    for (int round = 0; round < 2; ++round) {
#pragma unroll
        for (int step = 16; step > 0; step /= 2) {
            const float other = __shfl_xor_sync(~0u, best, step);
            const uint32_t other_id = __shfl_xor_sync(~0u, id, step);
            keep_better(best, id, other, other_id);
        }
        if (round == 1) break;
        if (lane == 0) {
            bests[warp] = best;
            ids[warp] = id;
        }
        __syncthreads();
        best = lane < blockDim.x / 32 ? bests[lane] : -INFINITY;
        id = lane < blockDim.x / 32 ? ids[lane] : 0;
    }
    if (threadIdx.x == 0) *out = id;
}
