// Attention that tokens received from a prompt's last queries. Twin: `attention::add_received`.
#include "kv_pages.cuh"
#include "mma.cuh"

constexpr uint32_t THREADS = 128;
// Queries that meet the keys together; two tiles of them fit into 32 KiB.
template <uint32_t DIM>
constexpr uint32_t QUERIES = 64 * 128 / DIM;

// Where the queries that count lie: rows of qkv [.., heads + 2 * kv_heads, head_dim] from its first one on, `count` of them, standing at
// `position` and after; their sums are those of lse [heads, lse_stride] from its first element on.
struct Counted {
    const __nv_bfloat16* qkv;
    const float* lse;
    uint32_t lse_stride, heads, count, position, first_nearest, layer;
};

// A tile of one head's queries and their sums; rows beyond the last one get sums that leave them no weight.
template <uint32_t DIM>
__device__ __forceinline__ void load_tile(uint8_t* queries, float* sums, const Counted& c, size_t stride, uint32_t head, uint32_t first) {
    constexpr uint32_t PARTS = DIM / 8;
#pragma unroll
    for (uint32_t i = threadIdx.x; i < QUERIES<DIM> * PARTS; i += THREADS) {
        const uint32_t row = i / PARTS, part = i % PARTS;
        const bool valid = first + row < c.count;
        const __nv_bfloat16* from = c.qkv + (valid ? first + row : 0) * stride + head * DIM + part * 8;
        copy_async(shared_address(queries) + swizzled<PARTS>(row, part), from, valid);
    }
    commit_copies();
    if (threadIdx.x < QUERIES<DIM>) {
        const uint32_t row = first + threadIdx.x;
        sums[threadIdx.x] = row < c.count ? c.lse[(size_t)head * c.lse_stride + row] : INFINITY;
    }
}

// Adds up what the queries of one tile give to the thread's keys g and g + 8: totals[half][earlier | nearest].
template <uint32_t DIM>
__device__ __forceinline__ void add_tile(float (&totals)[2][2], const uint32_t (&keys)[DIM / 16][4], uint32_t key, uint32_t queries,
                                         const float* sums, uint32_t position, uint32_t first_nearest, float scale) {
    const uint32_t lane = threadIdx.x % 32, t = lane % 4;
#pragma unroll 4
    for (uint32_t pair = 0; pair < QUERIES<DIM> / 16; ++pair) {
        float scores[2][4] = {};
#pragma unroll
        for (uint32_t step = 0; step < DIM / 16; ++step) {
            uint32_t q[4];
            const uint32_t row = pair * 16 + lane / 16 * 8 + lane % 8, part = step * 2 + lane / 8 % 2;
            load_matrices(q, queries + swizzled<DIM / 8>(row, part));
            multiply(scores[0], keys[step], q[0], q[1]);
            multiply(scores[1], keys[step], q[2], q[3]);
        }
#pragma unroll
        for (uint32_t i = 0; i < 8; ++i) {
            const uint32_t column = pair * 16 + i / 4 * 8 + t * 2 + i % 2, query = position + column;
            const uint32_t half = i % 4 / 2;
            float weight = power_of_two(fmaf(scores[i / 4][i % 4], scale, -sums[column]));
            if (key + half * 8 > query) weight = 0.0f;
            totals[half][0] += query < first_nearest ? weight : 0.0f;
            totals[half][1] += query < first_nearest ? 0.0f : weight;
        }
    }
}

template <uint32_t DIM>
__device__ __forceinline__ void add_received(const Counted& c, const KvView& kv, float weight, uint32_t prompt_tokens, float* sums) {
    __shared__ __align__(128) uint8_t queries[2][QUERIES<DIM> * DIM * 2];
    __shared__ float tile_sums[2][QUERIES<DIM>];
    const uint32_t page = blockIdx.x, kv_head = blockIdx.y, group = c.heads / kv.kv_heads;
    if (page >= kv.pages) return;
    const uint32_t lane = threadIdx.x % 32, g = lane / 4, t = lane % 4;
    const uint32_t first_key = threadIdx.x / 32 * 16, key = page * PAGE_TOKENS + first_key + g;
    const size_t stride = (size_t)(c.heads + 2 * kv.kv_heads) * DIM;
    const float scale = 1.44269504f * rsqrtf((float)DIM);
    const uint32_t tiles = (c.count + QUERIES<DIM> - 1) / QUERIES<DIM>, all = tiles * group;
    load_tile<DIM>(queries[0], tile_sums[0], c, stride, kv_head * group, 0);
    uint32_t keys[DIM / 16][4];
    const __nv_bfloat16* rows = kv_page(kv, c.layer, 0, kv.table[page], kv_head) + (first_key + g) * DIM;
#pragma unroll
    for (uint32_t step = 0; step < DIM / 16; ++step)
#pragma unroll
        for (uint32_t part = 0; part < 4; ++part)
            keys[step][part] = *reinterpret_cast<const uint32_t*>(rows + part % 2 * 8 * DIM + step * 16 + part / 2 * 8 + t * 2);
    float totals[2][2] = {};
    for (uint32_t i = 0; i < all; ++i) {
        wait_copies<0>();
        __syncthreads();
        const uint32_t next = i + 1;
        if (next < all)
            load_tile<DIM>(queries[next % 2], tile_sums[next % 2], c, stride, kv_head * group + next / tiles, next % tiles * QUERIES<DIM>);
        add_tile<DIM>(totals, keys, key, shared_address(queries[i % 2]), tile_sums[i % 2], c.position + i % tiles * QUERIES<DIM>,
                      c.first_nearest, scale);
    }
#pragma unroll
    for (uint32_t i = 0; i < 4; ++i) {
        float total = totals[i / 2][i % 2];
        total += __shfl_xor_sync(~0u, total, 1);
        total += __shfl_xor_sync(~0u, total, 2);
        const uint32_t token = key + i / 2 * 8;
        if (t == i && token < c.position + c.count && token < prompt_tokens)
            sums[((size_t)kv_head * 2 + i % 2) * prompt_tokens + token] += weight * total;
    }
}

// sums [kv_heads, earlier | nearest, prompt_tokens] += `weight` times what each token of the session's pages receives, over the heads of a
// group. Grid (pages, kv_heads).
extern "C" __global__ void __launch_bounds__(THREADS) add_received_64(Counted counted, KvView kv, float weight, uint32_t prompt_tokens, float* sums) {
    add_received<64>(counted, kv, weight, prompt_tokens, sums);
}

extern "C" __global__ void __launch_bounds__(THREADS) add_received_128(Counted counted, KvView kv, float weight, uint32_t prompt_tokens, float* sums) {
    add_received<128>(counted, kv, weight, prompt_tokens, sums);
}

// out [earlier | nearest, tokens] = the sums [kv_heads, earlier | nearest, tokens] over heads. One thread per output, `outputs` of them.
extern "C" __global__ void fold_received(const float* sums, uint32_t kv_heads, uint32_t outputs, float* out) {
    const uint32_t i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= outputs) return;
    float total = 0.0f;
    for (uint32_t head = 0; head < kv_heads; ++head) total += sums[(size_t)head * outputs + i];
    out[i] = total;
}
