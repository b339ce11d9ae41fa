// Causal grouped-query attention of a prompt's tokens over the paged cache, for Hopper. Twin: `attention::attend`.
//
// One warpgroup brings keys and values, two pages at a time, with the copy engine; the others take 64 queries of one head each and meet
// them with an online softmax. While a tile's scores are softened, the product of the earlier weights and values runs, and the other
// warpgroups' products (after Shah et al., FlashAttention-3, https://arxiv.org/abs/2407.08608).
#include "kv_pages.cuh"
#include "mma.cuh"
#include "prompt.cuh"
#include "wgmma.cuh"

// The whole pool as rows of head_dim elements, read in boxes of 64 rows and 64 columns with the 128-byte swizzle.
struct alignas(64) PoolMap {
    uint64_t opaque[16];
};

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
constexpr uint32_t KEYS = 2 * PAGE_TOKENS, STAGES = 2, GROUP = 128;

// Shared memory: queries, then stages of keys and of values, then barriers; columns in blocks of 64, rows of 128 bytes.
template <uint32_t DIM, uint32_t GROUPS>
struct Layout {
    static constexpr uint32_t QUERIES = GROUPS * 64, HALVES = DIM / 64, TILE = KEYS * DIM * 2, QUERY_TILE = 64 * DIM * 2;
    uint32_t base;
    __device__ uint32_t queries(uint32_t group) const { return base + group * QUERY_TILE; }
    __device__ uint32_t keys(uint32_t tile) const { return base + GROUPS * QUERY_TILE + tile % STAGES * TILE; }
    __device__ uint32_t values(uint32_t tile) const { return keys(tile) + STAGES * TILE; }
    __device__ uint32_t barrier(uint32_t kind, uint32_t tile) const {
        return base + GROUPS * QUERY_TILE + 2 * STAGES * TILE + (kind * STAGES + tile % STAGES) * 8;
    }
};

enum Barrier : uint32_t { KEYS_FULL, VALUES_FULL, KEYS_FREE, VALUES_FREE };

// The producer's part: keys and values of all tiles in turn, each as soon as its place is free.
template <uint32_t DIM, uint32_t GROUPS>
__device__ __forceinline__ void bring(const Layout<DIM, GROUPS>& shared, const PoolMap& map, const KvView& kv, uint32_t layer,
                                      uint32_t kv_head, uint32_t tiles) {
    for (uint32_t tile = 0; tile < tiles; ++tile) {
        const uint32_t parity = tile / STAGES % 2 ^ 1;
#pragma unroll
        for (uint32_t value = 0; value < 2; ++value) {
            const uint32_t full = shared.barrier(value ? VALUES_FULL : KEYS_FULL, tile);
            wait_barrier(shared.barrier(value ? VALUES_FREE : KEYS_FREE, tile), parity);
            expect_bytes(full, Layout<DIM, GROUPS>::TILE);
#pragma unroll
            for (uint32_t page = 0; page < 2; ++page) {
                // An odd last page is brought twice; nobody sees its double.
                const uint32_t at = kv.table[min(tile * 2 + page, kv.pages - 1)];
                const uint32_t row = (((layer * 2 + value) * kv.pool_pages + at) * kv.kv_heads + kv_head) * PAGE_TOKENS;
                const uint32_t to = (value ? shared.values(tile) : shared.keys(tile)) + page * PAGE_TOKENS * 128;
#pragma unroll
                for (uint32_t half = 0; half < DIM / 64; ++half) copy_box(to + half * KEYS * 128, &map, half * 64, row, full);
            }
        }
    }
}

// Queries of one warpgroup to shared memory; rows beyond the prompt are zeros.
template <uint32_t DIM>
__device__ __forceinline__ void load_queries(uint32_t to, const __nv_bfloat16* from, size_t stride, uint32_t row, uint32_t tokens) {
    constexpr uint32_t PARTS = DIM / 8;
#pragma unroll
    for (uint32_t i = threadIdx.x % GROUP; i < 64 * PARTS; i += GROUP) {
        const uint32_t at = i / PARTS, part = i % PARTS;
        uint4 eight = {};
        if (row + at < tokens) eight = *reinterpret_cast<const uint4*>(from + (row + at) * stride + part * 8);
        const uint32_t address = to + part / 8 * 64 * 128 + at * 128 + (part % 8 ^ at % 8) * 16;
        asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};" ::"r"(address), "r"(eight.x), "r"(eight.y), "r"(eight.z), "r"(eight.w) : "memory");
    }
}

// Values from `first` on of a tile become zeros: what lies there may be anything, even no number, and 0 times that is none either.
template <uint32_t DIM>
__device__ __forceinline__ void clear_values(uint32_t tile, uint32_t first) {
    for (uint32_t i = first * 8 + threadIdx.x % GROUP; i < KEYS * 8; i += GROUP)
#pragma unroll
        for (uint32_t half = 0; half < DIM / 64; ++half)
            asm volatile("st.shared.v4.b32 [%0], {%1, %1, %1, %1};" ::"r"(tile + half * KEYS * 128 + i * 16), "r"(0) : "memory");
}

// scores [64, KEYS] = queries times keys, transposed; to be waited for.
template <uint32_t DIM>
__device__ __forceinline__ void start_scores(float (&scores)[KEYS / 2], uint32_t queries, uint32_t keys) {
    pin(scores);
    begin_products();
#pragma unroll
    for (uint32_t step = 0; step < DIM / 16; ++step) {
        const uint32_t half = step / 4, at = step % 4 * 32;
        multiply(scores, matrix_at(queries + half * 64 * 128 + at, 16), matrix_at(keys + half * KEYS * 128 + at, 16), step > 0);
    }
    commit_products();
}

// out [64, DIM] += weights [64, KEYS] times values; to be waited for.
template <uint32_t DIM>
__device__ __forceinline__ void start_result(float (&out)[DIM / 2], uint32_t (&weights)[KEYS / 4], uint32_t values) {
    pin(weights);
    pin(out);
    begin_products();
#pragma unroll
    for (uint32_t step = 0; step < KEYS / 16; ++step) multiply_add(out, weights + step * 4, matrix_at(values + step * 16 * 128, KEYS * 128));
    commit_products();
}

// Scores of keys that a query does not see become -inf; `seen` is how many of the tile's keys the thread's first row sees.
__device__ __forceinline__ void hide_later_keys(float (&scores)[KEYS / 2], int32_t seen) {
    const int32_t t = threadIdx.x % 4;
#pragma unroll
    for (int32_t i = 0; i < (int32_t)KEYS / 2; ++i)
        if (i / 4 * 8 + t * 2 + i % 2 >= seen + i / 2 % 2 * 8) scores[i] = -INFINITY;
}

// Scores to weights, in place: 2^(scale (score - top)). `keep` is by how much earlier results shrink.
__device__ __forceinline__ void soften(float (&scores)[KEYS / 2], float (&top)[2], float (&sum)[2], float (&keep)[2], float scale) {
#pragma unroll
    for (uint32_t half = 0; half < 2; ++half) {
        float new_top = top[half];
#pragma unroll
        for (uint32_t i = half * 2; i < KEYS / 2; i += 4) new_top = fmaxf(new_top, fmaxf(scores[i], scores[i + 1]));
        new_top = fmaxf(new_top, __shfl_xor_sync(~0u, new_top, 1));
        new_top = fmaxf(new_top, __shfl_xor_sync(~0u, new_top, 2));
        keep[half] = power_of_two((top[half] - new_top) * scale);
        const float shift = new_top * scale;
        top[half] = new_top;
        float total = 0.0f;
#pragma unroll
        for (uint32_t i = half * 2; i < KEYS / 2; i += 4) {
            scores[i] = power_of_two(fmaf(scores[i], scale, -shift));
            scores[i + 1] = power_of_two(fmaf(scores[i + 1], scale, -shift));
            total += scores[i] + scores[i + 1];
        }
        sum[half] = sum[half] * keep[half] + total;
    }
}

__device__ __forceinline__ void round_weights(uint32_t (&weights)[KEYS / 4], const float (&scores)[KEYS / 2]) {
#pragma unroll
    for (uint32_t i = 0; i < KEYS / 4; ++i) weights[i] = pack(scores[2 * i], scores[2 * i + 1]);
}

// The warpgroup's results over their sums, to memory; four threads exchange what they hold of a row so that each writes 16 bytes.
template <uint32_t DIM>
__device__ __forceinline__ void store(const Prompt& prompt, const float (&out)[DIM / 2], const float (&top)[2], float (&sum)[2], uint32_t head,
                                      uint32_t row, float scale) {
    const uint32_t t = threadIdx.x % 4;
#pragma unroll
    for (uint32_t half = 0; half < 2; ++half) {
        sum[half] += __shfl_xor_sync(~0u, sum[half], 1);
        sum[half] += __shfl_xor_sync(~0u, sum[half], 2);
        const uint32_t at = row + half * 8;
        const float factor = 1.0f / sum[half];
        __nv_bfloat16* to = prompt.out + ((size_t)at * prompt.heads + head) * DIM;
#pragma unroll
        for (uint32_t four = 0; four < DIM / 32; ++four) {
            uint32_t own[4], all[4];
#pragma unroll
            for (uint32_t i = 0; i < 4; ++i) own[i] = pack(out[(four * 4 + i) * 4 + half * 2] * factor, out[(four * 4 + i) * 4 + half * 2 + 1] * factor);
#pragma unroll
            for (uint32_t step = 0; step < 4; ++step) {
                // Thread t gives part t ^ step of what it holds to the thread t ^ step, whose part that is.
                const uint32_t give = t ^ step;
                const uint32_t word = give == 0 ? own[0] : give == 1 ? own[1] : give == 2 ? own[2] : own[3];
                const uint32_t got = __shfl_xor_sync(~0u, word, step);
#pragma unroll
                for (uint32_t i = 0; i < 4; ++i)
                    if (give == i) all[i] = got;
            }
            if (at < prompt.tokens) *reinterpret_cast<uint4*>(to + four * 32 + t * 8) = make_uint4(all[0], all[1], all[2], all[3]);
        }
        if (t == 0 && at < prompt.tokens) prompt.lse[(size_t)head * prompt.tokens + at] = top[half] * scale + log2f(sum[half]);
    }
}

// What a thread of a warpgroup holds of its queries' attention, see `multiply` for which elements.
template <uint32_t DIM>
struct State {
    float scores[KEYS / 2], out[DIM / 2], top[2], sum[2], keep[2];
    uint32_t weights[KEYS / 4];
};

// A warpgroup's part of a block: queries in shared memory, how many tiles they see, from which on they do not see all of it, and the
// position that follows the thread's first row.
struct Part {
    uint32_t queries, tiles, first_hidden, after_row;
    float scale;
};

// Takes the scores that have come, so that their keys may be overwritten, to weights that are not yet rounded.
template <uint32_t DIM, uint32_t GROUPS>
__device__ __forceinline__ void take_scores(State<DIM>& state, const Layout<DIM, GROUPS>& shared, const Part& part, uint32_t tile) {
    pin(state.scores);
    if (threadIdx.x % GROUP == 0) arrive(shared.barrier(KEYS_FREE, tile));
    if (tile >= part.first_hidden) hide_later_keys(state.scores, (int32_t)(part.after_row - tile * KEYS));
    soften(state.scores, state.top, state.sum, state.keep, part.scale);
}

// Starts a tile's scores and, behind them, the result of the tile before; its softmax runs beside the latter.
template <uint32_t DIM, uint32_t GROUPS>
__device__ __forceinline__ void meet_tile(State<DIM>& state, const Layout<DIM, GROUPS>& shared, const Part& part, uint32_t tile) {
    wait_barrier(shared.barrier(KEYS_FULL, tile), tile / STAGES % 2);
    start_scores<DIM>(state.scores, part.queries, shared.keys(tile));
    wait_barrier(shared.barrier(VALUES_FULL, tile - 1), (tile - 1) / STAGES % 2);
    start_result<DIM>(state.out, state.weights, shared.values(tile - 1));
    wait_products<1>();
    take_scores(state, shared, part, tile);
    wait_products<0>();
    pin(state.out);
    pin(state.weights);
    if (threadIdx.x % GROUP == 0) arrive(shared.barrier(VALUES_FREE, tile - 1));
#pragma unroll
    for (uint32_t i = 0; i < DIM / 2; ++i) state.out[i] *= state.keep[i / 2 % 2];
    round_weights(state.weights, state.scores);
}

// Adds the last tile's result. Where the keys end within it, what lies behind them is cleared by every warpgroup for itself.
template <uint32_t DIM, uint32_t GROUPS>
__device__ __forceinline__ void finish(State<DIM>& state, const Layout<DIM, GROUPS>& shared, const Part& part, uint32_t end) {
    const uint32_t last = part.tiles - 1, values = shared.values(last);
    wait_barrier(shared.barrier(VALUES_FULL, last), last / STAGES % 2);
    if (end < part.tiles * KEYS) {
        clear_values<DIM>(values, end - last * KEYS);
        publish_shared();
        sync_named(threadIdx.x / GROUP, GROUP);
    }
    start_result<DIM>(state.out, state.weights, values);
    wait_products<0>();
    pin(state.out);
}

// One warpgroup's queries over all that they see; `end` is the first token that nobody in the block sees.
template <uint32_t DIM, uint32_t GROUPS>
__device__ __forceinline__ void attend(const Layout<DIM, GROUPS>& shared, const Prompt& prompt, const KvView& kv, uint32_t head,
                                       uint32_t block_row, uint32_t end) {
    const uint32_t group = threadIdx.x / GROUP - 1, thread = threadIdx.x % GROUP;
    const uint32_t group_row = block_row + group * 64, row = group_row + thread / 32 * 16 + thread % 32 / 4;
    // Earlier warpgroups may be through a tile sooner; it is so late that nobody waits for them to free it.
    const uint32_t tiles = (min(prompt.position + group_row + 64, end) + KEYS - 1) / KEYS;
    const uint32_t first_hidden = (prompt.position + group_row + 1) / KEYS;
    const Part part = {shared.queries(group), tiles, first_hidden, prompt.position + row + 1, 1.44269504f * rsqrtf((float)DIM)};
    const size_t stride = (size_t)(prompt.heads + 2 * kv.kv_heads) * DIM;
    load_queries<DIM>(part.queries, prompt.qkv + (size_t)head * DIM, stride, group_row, prompt.tokens);
    publish_shared();
    sync_named(1 + group, GROUP);

    State<DIM> state = {};
    state.top[0] = state.top[1] = -INFINITY;
    wait_barrier(shared.barrier(KEYS_FULL, 0), 0);
    start_scores<DIM>(state.scores, part.queries, shared.keys(0));
    wait_products<0>();
    take_scores(state, shared, part, 0);
    round_weights(state.weights, state.scores);
    for (uint32_t tile = 1; tile < tiles; ++tile) meet_tile(state, shared, part, tile);
    finish(state, shared, part, end);
    store<DIM>(prompt, state.out, state.top, state.sum, head, row, part.scale);
}

template <uint32_t DIM, uint32_t GROUPS, int PRODUCER_REGISTERS, int CONSUMER_REGISTERS>
__device__ __forceinline__ void run(const PoolMap& map, const Prompt& prompt, const KvView& kv) {
    extern __shared__ __align__(1024) uint8_t memory[];
    const Layout<DIM, GROUPS> shared = {shared_address(memory)};
    // The longest blocks first; heads that share keys beside each other.
    const uint32_t head = blockIdx.x, kv_head = head / (prompt.heads / kv.kv_heads);
    const uint32_t block_row = (gridDim.y - 1 - blockIdx.y) * Layout<DIM, GROUPS>::QUERIES;
    const uint32_t end = min(prompt.position + min(block_row + Layout<DIM, GROUPS>::QUERIES, prompt.tokens), kv.pages * PAGE_TOKENS);
    if (threadIdx.x == 0) {
        for (uint32_t stage = 0; stage < STAGES; ++stage) {
            init_barrier(shared.barrier(KEYS_FULL, stage), 1);
            init_barrier(shared.barrier(VALUES_FULL, stage), 1);
            init_barrier(shared.barrier(KEYS_FREE, stage), GROUPS);
            init_barrier(shared.barrier(VALUES_FREE, stage), GROUPS);
        }
        publish_barriers();
    }
    __syncthreads();
    if (threadIdx.x < GROUP) {
        give_registers<PRODUCER_REGISTERS>();
        if (threadIdx.x == 0) bring(shared, map, kv, prompt.layer, kv_head, (end + KEYS - 1) / KEYS);
    } else {
        take_registers<CONSUMER_REGISTERS>();
        attend(shared, prompt, kv, head, block_row, end);
    }
}
#endif

// Attention of a prompt's queries, see Prompt. Grid (heads, tokens / 192) with 512 threads for heads of 64 elements, (heads, tokens / 128)
// with 384 for those of 128.
extern "C" __global__ void __launch_bounds__(512, 1) attend_hopper_64(const __grid_constant__ PoolMap map, Prompt prompt, KvView kv) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
    run<64, 3, 32, 160>(map, prompt, kv);
#endif
}

extern "C" __global__ void __launch_bounds__(384, 1) attend_hopper_128(const __grid_constant__ PoolMap map, Prompt prompt, KvView kv) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
    run<128, 2, 24, 240>(map, prompt, kv);
#endif
}
