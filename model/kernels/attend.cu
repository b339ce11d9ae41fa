// Causal grouped-query attention of a prompt's tokens over the paged cache, for any card from Ampere on. Twin: `attention::attend`.
//
// A block takes 128 queries of one head, 16 to a warp, and meets the keys page by page with an online softmax; the next page is on its
// way to shared memory meanwhile.
#include "kv_pages.cuh"
#include "mma.cuh"
#include "prompt.cuh"

constexpr uint32_t QUERIES = 128, THREADS = 256;

// One page of keys or values of one head, rows from `keys` on (in the page) as zeros.
template <uint32_t DIM>
__device__ __forceinline__ void load_page(uint32_t to, const __nv_bfloat16* page, uint32_t keys) {
    constexpr uint32_t PARTS = DIM / 8;
#pragma unroll
    for (uint32_t i = threadIdx.x; i < PAGE_TOKENS * PARTS; i += THREADS) {
        const uint32_t row = i / PARTS, part = i % PARTS;
        copy_async(to + swizzled<PARTS>(row, part), page + i * 8, row < keys);
    }
}

// The warp's queries as fragments [DIM / 16][4], straight from memory; rows beyond `tokens` are zeros.
template <uint32_t DIM>
__device__ __forceinline__ void load_queries(uint32_t (&q)[DIM / 16][4], const __nv_bfloat16* from, size_t stride, uint32_t row, uint32_t tokens) {
    const uint32_t g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
#pragma unroll
    for (uint32_t step = 0; step < DIM / 16; ++step)
#pragma unroll
        for (uint32_t part = 0; part < 4; ++part) {
            const uint32_t at = row + g + part % 2 * 8;
            const __nv_bfloat16* word = from + at * stride + step * 16 + part / 2 * 8 + t * 2;
            q[step][part] = at < tokens ? *reinterpret_cast<const uint32_t*>(word) : 0;
        }
}

// scores [16, 64] = queries times the page's keys, transposed.
template <uint32_t DIM>
__device__ __forceinline__ void multiply_keys(float (&scores)[8][4], const uint32_t (&q)[DIM / 16][4], uint32_t keys) {
    const uint32_t lane = threadIdx.x % 32;
#pragma unroll
    for (uint32_t pair = 0; pair < 4; ++pair) {
#pragma unroll
        for (uint32_t i = 0; i < 8; ++i) scores[pair * 2 + i / 4][i % 4] = 0.0f;
#pragma unroll
        for (uint32_t step = 0; step < DIM / 16; ++step) {
            uint32_t k[4];
            const uint32_t row = pair * 16 + lane / 16 * 8 + lane % 8, part = step * 2 + lane / 8 % 2;
            load_matrices(k, keys + swizzled<DIM / 8>(row, part));
            multiply(scores[pair * 2], q[step], k[0], k[1]);
            multiply(scores[pair * 2 + 1], q[step], k[2], k[3]);
        }
    }
}

// out [16, DIM] += weights [16, 64] times the page's values.
template <uint32_t DIM>
__device__ __forceinline__ void multiply_values(float (&out)[DIM / 8][4], const float (&weights)[8][4], uint32_t values) {
    const uint32_t lane = threadIdx.x % 32;
#pragma unroll
    for (uint32_t step = 0; step < 4; ++step) {
        const float(&low)[4] = weights[step * 2], (&high)[4] = weights[step * 2 + 1];
        const uint32_t p[4] = {pack(low[0], low[1]), pack(low[2], low[3]), pack(high[0], high[1]), pack(high[2], high[3])};
#pragma unroll
        for (uint32_t pair = 0; pair < DIM / 16; ++pair) {
            uint32_t v[4];
            const uint32_t row = step * 16 + lane % 16, part = pair * 2 + lane / 16;
            load_matrices_transposed(v, values + swizzled<DIM / 8>(row, part));
            multiply(out[pair * 2], p, v[0], v[1]);
            multiply(out[pair * 2 + 1], p, v[2], v[3]);
        }
    }
}

// Scores of keys that a query does not see become -inf; `seen` is how many of the page's keys the thread's first row sees.
__device__ __forceinline__ void hide_later_keys(float (&scores)[8][4], int32_t seen) {
    const int32_t t = threadIdx.x % 4;
#pragma unroll
    for (int32_t tile = 0; tile < 8; ++tile)
#pragma unroll
        for (int32_t i = 0; i < 4; ++i) {
            const int32_t key = tile * 8 + t * 2 + i % 2;
            if (key >= seen + i / 2 * 8) scores[tile][i] = -INFINITY;
        }
}

// Scores to weights, in place: 2^(scale (score - top)). Earlier results shrink where a row's top rises.
template <uint32_t DIM>
__device__ __forceinline__ void soften(float (&scores)[8][4], float (&top)[2], float (&sum)[2], float (&out)[DIM / 8][4], float scale) {
#pragma unroll
    for (uint32_t half = 0; half < 2; ++half) {
        float new_top = top[half];
#pragma unroll
        for (uint32_t tile = 0; tile < 8; ++tile) new_top = fmaxf(new_top, fmaxf(scores[tile][half * 2], scores[tile][half * 2 + 1]));
        new_top = fmaxf(new_top, __shfl_xor_sync(~0u, new_top, 1));
        new_top = fmaxf(new_top, __shfl_xor_sync(~0u, new_top, 2));
        const float keep = power_of_two((top[half] - new_top) * scale), shift = new_top * scale;
        top[half] = new_top;
        sum[half] *= keep;
#pragma unroll
        for (uint32_t tile = 0; tile < DIM / 8; ++tile) {
            out[tile][half * 2] *= keep;
            out[tile][half * 2 + 1] *= keep;
        }
#pragma unroll
        for (uint32_t tile = 0; tile < 8; ++tile)
#pragma unroll
            for (uint32_t i = half * 2; i < half * 2 + 2; ++i) {
                scores[tile][i] = power_of_two(fmaf(scores[tile][i], scale, -shift));
                sum[half] += scores[tile][i];
            }
    }
}

// Results over their sums, and the sums' logarithms, to memory.
template <uint32_t DIM>
__device__ __forceinline__ void store(const Prompt& prompt, const float (&result)[DIM / 8][4], const float (&top)[2], float (&sum)[2],
                                      uint32_t head, uint32_t row, float scale) {
    const uint32_t g = threadIdx.x % 32 / 4, t = threadIdx.x % 4;
#pragma unroll
    for (uint32_t half = 0; half < 2; ++half) {
        sum[half] += __shfl_xor_sync(~0u, sum[half], 1);
        sum[half] += __shfl_xor_sync(~0u, sum[half], 2);
        const uint32_t at = row + g + half * 8;
        if (at >= prompt.tokens) continue;
        const float factor = 1.0f / sum[half];
        uint32_t* to = reinterpret_cast<uint32_t*>(prompt.out + ((size_t)at * prompt.heads + head) * DIM) + t;
#pragma unroll
        for (uint32_t tile = 0; tile < DIM / 8; ++tile) to[tile * 4] = pack(result[tile][half * 2] * factor, result[tile][half * 2 + 1] * factor);
        if (t == 0) prompt.lse[(size_t)head * prompt.tokens + at] = top[half] * scale + log2f(sum[half]);
    }
}

template <uint32_t DIM>
__device__ __forceinline__ void attend(const Prompt& prompt, const KvView& kv) {
    extern __shared__ __align__(128) uint8_t shared[];
    constexpr uint32_t PAGE_BYTES = PAGE_TOKENS * DIM * 2;
    // The longest blocks first; heads that share keys beside each other.
    const uint32_t head = blockIdx.x, kv_head = head / (prompt.heads / kv.kv_heads);
    const uint32_t block_row = (gridDim.y - 1 - blockIdx.y) * QUERIES, row = block_row + threadIdx.x / 32 * 16;
    const uint32_t end = min(prompt.position + min(block_row + QUERIES, prompt.tokens), kv.pages * PAGE_TOKENS);
    const float scale = 1.44269504f * rsqrtf((float)DIM);
    uint32_t q[DIM / 16][4];
    const size_t stride = (size_t)(prompt.heads + 2 * kv.kv_heads) * DIM;
    load_queries<DIM>(q, prompt.qkv + (size_t)head * DIM, stride, row, prompt.tokens);
    float result[DIM / 8][4] = {}, top[2] = {-INFINITY, -INFINITY}, sum[2] = {};

    const uint32_t pages = (end + PAGE_TOKENS - 1) / PAGE_TOKENS;
    auto start = [&](uint32_t page) {
        const uint32_t to = shared_address(shared) + page % 2 * 2 * PAGE_BYTES, at = kv.table[page];
        load_page<DIM>(to, kv_page(kv, prompt.layer, 0, at, kv_head), end - page * PAGE_TOKENS);
        load_page<DIM>(to + PAGE_BYTES, kv_page(kv, prompt.layer, 1, at, kv_head), end - page * PAGE_TOKENS);
        commit_copies();
    };
    start(0);
    for (uint32_t page = 0; page < pages; ++page) {
        wait_copies<0>();
        __syncthreads();
        if (page + 1 < pages) start(page + 1);
        const uint32_t keys = shared_address(shared) + page % 2 * 2 * PAGE_BYTES;
        const int32_t seen = (int32_t)(prompt.position + row + 1) - (int32_t)(page * PAGE_TOKENS);
        if (seen + 15 <= 0) continue;
        float scores[8][4];
        multiply_keys<DIM>(scores, q, keys);
        if (seen < (int32_t)PAGE_TOKENS) hide_later_keys(scores, seen + (int32_t)(threadIdx.x % 32 / 4));
        soften<DIM>(scores, top, sum, result, scale);
        multiply_values<DIM>(result, scores, keys + PAGE_BYTES);
    }
    store<DIM>(prompt, result, top, sum, head, row, scale);
}

// Attention of a prompt's queries, see Prompt. Grid (heads, tokens / 128), dynamic shared memory for two pages of keys and of values.
extern "C" __global__ void __launch_bounds__(THREADS) attend_64(Prompt prompt, KvView kv) { attend<64>(prompt, kv); }

extern "C" __global__ void __launch_bounds__(THREADS) attend_128(Prompt prompt, KvView kv) { attend<128>(prompt, kv); }
