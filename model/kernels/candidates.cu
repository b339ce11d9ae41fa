// What drawing a token needs of a row of logits: the largest few, and the sum over all of exp((logit - largest) / temperature) in f64, so that
// [rows, vocab] logits need not leave the device. The host finishes the draw (src/sampling.rs).
//
// Three kernels, each with grid (PARTS, sampled rows) and 256 threads: counts of the logits by their leading 11 bits, counts of the next 11
// bits among those that decide, and the collection of all that lie above a threshold with at most MOST of them. Buffers start as zeros.
#include <cstdint>
#include <cuda_runtime.h>

constexpr uint32_t THREADS = 256, PARTS = 16, BINS = 2048, MOST = 1024;

// One row's scratch and result.
struct Candidates {
    uint32_t coarse[BINS], fine[BINS];
    double totals[PARTS];
    uint32_t count, unused;
    uint32_t ids[MOST];
    float logits[MOST];
};

struct Draw {
    uint32_t row; // of the logits
    float temperature;
};

// Bits that order as the floats do.
__device__ __forceinline__ uint32_t ordered(float x) {
    uint32_t bits = __float_as_uint(x + 0.0f); // -0 becomes 0: they weigh the same
    return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

// The highest bin whose elements, with all of those above and `above`, are more than MOST; -1 when there is none. `above` becomes the number of
// elements in the bins above it. Called by the first warp; the result is in its every lane.
__device__ int deciding_bin(const uint32_t* counts, uint32_t& above) {
    uint32_t lane = threadIdx.x;
    for (int first = BINS - 32; first >= 0; first -= 32) {
        // Lane 0 has the highest bin.
        uint32_t mine = counts[first + 31 - lane], sum = mine;
        for (uint32_t step = 1; step < 32; step *= 2) {
            uint32_t other = __shfl_up_sync(~0u, sum, step);
            if (lane >= step) sum += other;
        }
        uint32_t over = __ballot_sync(~0u, above + sum > MOST);
        if (over) {
            uint32_t which = __ffs(over) - 1;
            above += __shfl_sync(~0u, sum - mine, which);
            return first + 31 - which;
        }
        above += __shfl_sync(~0u, sum, 31);
    }
    return -1;
}

__device__ void part_of(uint32_t vocab, uint32_t& start, uint32_t& end) {
    uint32_t part = (vocab + PARTS - 1) / PARTS;
    start = min(blockIdx.x * part, vocab), end = min(start + part, vocab);
}

// logits[rows, vocab], tokens[rows] the first of each row's largest, draws and out [sampled rows].
extern "C" __global__ void __launch_bounds__(THREADS)
    candidates_count(const float* logits, uint32_t vocab, const uint32_t* tokens, const Draw* draws, Candidates* out) {
    __shared__ uint32_t counts[BINS];
    __shared__ double sums[THREADS];
    Draw draw = draws[blockIdx.y];
    const float* row = logits + (size_t)draw.row * vocab;
    double largest = row[tokens[draw.row]], temperature = draw.temperature, sum = 0;
    for (uint32_t i = threadIdx.x; i < BINS; i += THREADS) counts[i] = 0;
    __syncthreads();
    uint32_t start, end;
    part_of(vocab, start, end);
    for (uint32_t i = start + threadIdx.x; i < end; i += THREADS) {
        float logit = row[i];
        atomicAdd(&counts[ordered(logit) >> 21], 1);
        sum += exp(((double)logit - largest) / temperature);
    }
    sums[threadIdx.x] = sum;
    __syncthreads();
    for (uint32_t step = THREADS / 2; step > 0; step /= 2) {
        if (threadIdx.x < step) sums[threadIdx.x] += sums[threadIdx.x + step];
        __syncthreads();
    }
    Candidates& c = out[blockIdx.y];
    if (threadIdx.x == 0) c.totals[blockIdx.x] = sums[0];
    for (uint32_t i = threadIdx.x; i < BINS; i += THREADS)
        if (counts[i]) atomicAdd(&c.coarse[i], counts[i]);
}

extern "C" __global__ void __launch_bounds__(THREADS) candidates_refine(const float* logits, uint32_t vocab, const Draw* draws, Candidates* out) {
    __shared__ uint32_t counts[BINS];
    __shared__ int coarse;
    Candidates& c = out[blockIdx.y];
    const float* row = logits + (size_t)draws[blockIdx.y].row * vocab;
    for (uint32_t i = threadIdx.x; i < BINS; i += THREADS) counts[i] = 0;
    if (threadIdx.x < 32) {
        uint32_t above = 0;
        int bin = deciding_bin(c.coarse, above);
        if (threadIdx.x == 0) coarse = bin;
    }
    __syncthreads();
    if (coarse < 0) return;
    uint32_t start, end;
    part_of(vocab, start, end);
    for (uint32_t i = start + threadIdx.x; i < end; i += THREADS) {
        uint32_t bits = ordered(row[i]);
        if (bits >> 21 == (uint32_t)coarse) atomicAdd(&counts[bits >> 10 & (BINS - 1)], 1);
    }
    __syncthreads();
    for (uint32_t i = threadIdx.x; i < BINS; i += THREADS)
        if (counts[i]) atomicAdd(&c.fine[i], counts[i]);
}

extern "C" __global__ void __launch_bounds__(THREADS) candidates_collect(const float* logits, uint32_t vocab, const Draw* draws, Candidates* out) {
    __shared__ uint32_t above_of_all; // candidates lie above it
    __shared__ bool all;
    Candidates& c = out[blockIdx.y];
    const float* row = logits + (size_t)draws[blockIdx.y].row * vocab;
    if (threadIdx.x < 32) {
        uint32_t above = 0;
        int coarse = deciding_bin(c.coarse, above);
        int fine = coarse < 0 ? 0 : deciding_bin(c.fine, above);
        // Both bins hold what is too much, so the candidates start above the finer one.
        if (threadIdx.x == 0) all = coarse < 0, above_of_all = ((uint32_t)coarse << 11 | (uint32_t)fine) << 10 | 1023;
    }
    __syncthreads();
    uint32_t start, end;
    part_of(vocab, start, end);
    for (uint32_t i = start + threadIdx.x; i < end; i += THREADS) {
        float logit = row[i];
        if (!all && ordered(logit) <= above_of_all) continue;
        uint32_t at = atomicAdd(&c.count, 1);
        if (at < MOST) c.ids[at] = i, c.logits[at] = logit;
    }
}
