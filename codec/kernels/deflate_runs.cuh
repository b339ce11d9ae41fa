// Bytes to the symbols of a block: literals, and runs of a byte where these pay.
#pragma once
#include "deflate_segment.cuh"

constexpr uint32_t RUN_PART = 256; // runs are cut at its multiples
constexpr float RUN_BITS = 12;     // what a reference takes, more or less
constexpr uint32_t MIN_RUN = 4;

// Number of a run's length code, and how many extra bits it has.
__device__ uint2 length_code(uint32_t length) {
    uint32_t over = length - 3, extra = over < 8 ? 0 : 29 - __clz(over);
    return {FIRST_LENGTH + (extra << 2) + (over >> extra), extra};
}

__device__ void clear_counts(Shared& s) {
    __syncthreads();
    for (uint32_t i = threadIdx.x; i < MAX_SYMBOLS; i += THREADS) s.counts[i] = i == END;
    __syncthreads();
}

// Length of the run that place `lane` of word `word` lies in, and the place in it. `masks` say where a byte equals the one before.
__device__ uint2 run_at(const uint32_t* masks, uint32_t word, uint32_t lane) {
    uint32_t start = 0, end = RUN_PART, at = word * 32 + lane;
#pragma unroll
    for (uint32_t i = 0; i < RUN_PART / 32; i++) {
        uint32_t unequal = ~masks[i];
        uint32_t below = i < word ? unequal : i == word ? unequal & ((1u << lane) - 1) : 0;
        if (below) start = i * 32 + 32 - __clz(below);
        uint32_t above = i > word ? unequal : i == word ? unequal & ~((2u << lane) - 1) : 0;
        if (above && end == RUN_PART) end = i * 32 + __ffs(above) - 1;
    }
    return {end - start, at - start};
}

// Sets the tokens of bytes [start, end); whether there are runs. A warp takes RUN_PART bytes at a time.
__device__ bool find_runs(const Segment& segment, uint32_t start, uint32_t end, const Shared& s) {
    uint32_t lane = threadIdx.x & 31, has_runs = 0;
    for (uint32_t part = start / RUN_PART + threadIdx.x / 32; part * RUN_PART < end; part += WARPS) {
        uint32_t masks[RUN_PART / 32], long_runs = 0, at = part * RUN_PART + lane;
#pragma unroll
        for (uint32_t i = 0; i < RUN_PART / 32; i++) {
            uint32_t k = at + i * 32;
            bool is_equal = k % RUN_PART != 0 && k >= start && k < end && segment.content[k] == segment.content[k - 1];
            masks[i] = __ballot_sync(~0u, is_equal);
        }
#pragma unroll
        for (uint32_t i = 0; i < RUN_PART / 32; i++) {
            uint32_t next = i + 1 < RUN_PART / 32 ? masks[i + 1] : 0;
            long_runs |= masks[i] & __funnelshift_r(masks[i], next, 1) & __funnelshift_r(masks[i], next, 2) & __funnelshift_r(masks[i], next, 3);
        }
#pragma unroll
        for (uint32_t i = 0; i < RUN_PART / 32; i++) {
            uint32_t k = at + i * 32, token = 1;
            if (long_runs && (masks[i] >> lane & 1)) {
                uint2 run = run_at(masks, i, lane);
                if (run.x >= s.min_runs[segment.content[k]]) token = run.y == 0 ? run.x : 0;
            }
            has_runs |= token != 1;
            if (k >= start && k < end) segment.tokens[k] = token;
        }
    }
    return __syncthreads_or(has_runs);
}

// Counts the symbols of bytes [start, end), with runs where they pay; whether there are any.
__device__ bool count_symbols(const Segment& segment, uint32_t start, uint32_t end, Shared& s) {
    clear_counts(s);
    for (uint32_t k = start + threadIdx.x; k < end; k += THREADS) atomicAdd(&s.counts[segment.content[k]], 1);
    __syncthreads();
    float share = (float)s.counts[threadIdx.x] / (end - start);
    s.min_runs[threadIdx.x] = share == 0 ? 255 : min(max((uint32_t)ceilf(RUN_BITS / max(-__log2f(share), 1.0f)), MIN_RUN), 255u);
    __syncthreads();
    if (!find_runs(segment, start, end, s)) return false;
    clear_counts(s);
    for (uint32_t k = start + threadIdx.x; k < end; k += THREADS) {
        uint32_t token = segment.tokens[k];
        if (token == 1) atomicAdd(&s.counts[segment.content[k]], 1);
        else if (token > 1) atomicAdd(&s.counts[length_code(token).x], 1);
    }
    __syncthreads();
    return true;
}
