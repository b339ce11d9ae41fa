// One segment in the making, and what the threads of its block share.
#pragma once
#include "huffman.cuh"

constexpr uint32_t THREADS = 256;
constexpr uint32_t WARPS = THREADS / 32;
constexpr uint32_t MAX_SEGMENT = 32768;
constexpr uint32_t MIN_PIECE = 256; // shorter pieces never get a table of their own
constexpr uint32_t MAX_BLOCKS = MAX_SEGMENT / MIN_PIECE + 1;
constexpr uint32_t END = 256, FIRST_LENGTH = 257, SYMBOLS = 286;

struct Shared {
    union {
        Tree tree;
        uint32_t pieces[256];        // while blocks are looked for: counts of the next piece's bytes
        uint32_t words[MAX_SYMBOLS]; // once the tree is done with
    };
    uint32_t counts[MAX_SYMBOLS]; // of the block's symbols
    uint8_t lengths[MAX_SYMBOLS + 32]; // of literals and lengths, then the one of distances
    uint8_t min_runs[256];
    uint32_t block_ends[MAX_BLOCKS];
    uint32_t changes[10];         // bits: a length other than the one before
    uint32_t length_counts[32];
    uint8_t length_lengths[32];
    uint32_t length_words[32];
    uint32_t next[16];
    uint32_t sums[2 * WARPS];
    float float_sums[2 * WARPS];
};

// What a segment is made of; all in shared memory.
struct Segment {
    const uint8_t* content; // [bytes]
    uint8_t* tokens;        // [bytes]: 1 a literal, above that the length of a run, 0 within a run
    uint32_t* out;          // bits, lowest first, 0 where none was put
    uint32_t bytes;
};

// Sum over all threads.
template <typename T>
__device__ T sum_of(T value, T* sums) {
    for (uint32_t step = 16; step > 0; step /= 2) value += __shfl_xor_sync(~0u, value, step);
    __syncthreads();
    if ((threadIdx.x & 31) == 0) sums[threadIdx.x / 32] = value;
    __syncthreads();
    T total = 0;
    for (uint32_t i = 0; i < WARPS; i++) total += sums[i];
    return total;
}

// Sum over the threads before this one.
__device__ uint32_t sum_before(uint32_t value, uint32_t* sums) {
    uint32_t lane = threadIdx.x & 31, warp = threadIdx.x / 32, sum = value;
    for (uint32_t step = 1; step < 32; step *= 2) {
        uint32_t other = __shfl_up_sync(~0u, sum, step);
        if (lane >= step) sum += other;
    }
    __syncthreads();
    if (lane == 31) sums[warp] = sum;
    __syncthreads();
    for (uint32_t i = 0; i < warp; i++) sum += sums[i];
    return sum - value;
}
