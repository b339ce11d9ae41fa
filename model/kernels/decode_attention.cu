// Attention of a decode step over paged caches: one query per session and head, the query heads of a KV head together, so that keys and
// values are read once. Sessions are cut into shares (StepItem) that the host sizes so that they fill the card; a block takes shares of one
// KV head in turn, its 4 warps 16 tokens each in turn, with an online softmax (Milakov and Gimelshein) of their own. Whichever block finishes
// a session's last share combines all of them, in their order: the result does not depend on who was first.
//
// Launch: 128 threads, grid (any, kv_heads), dynamic shared memory as in src/cuda/decode/attention.rs. head_dim 64 or 128,
// at most 8 query heads per KV head; shares start on multiples of 64 tokens and only the last one holds the new token.
#include "decode.cuh"

constexpr uint32_t WARPS = 4, TOKENS = 16, GROUP = 8;

struct Attention {
    KvView kv;                // its table is not used: each row has its own
    const StepRow* step;      // [rows]
    const StepItem* items;    // [*count]
    const uint32_t* count;    // [1]
    const float* queries;     // [rows, heads, head_dim]
    __nv_bfloat16* out;       // [rows, heads, head_dim]
    float* partial;           // [items, kv_heads, GROUP, head_dim + 2]: sums, then the maximum and the sum of weights
    uint32_t* arrived;        // [rows, kv_heads]: 0 before and after
    uint32_t heads, layer;
    float scale; // log2(e) / sqrt(head_dim)
};

// 8 bf16 of one of 16 tokens' rows; in each row they are exchanged so that 8 rows' same 8 values lie in different banks.
template <int DIM>
__device__ __forceinline__ uint32_t value_vector(uint32_t token, uint32_t vector) {
    return token * (DIM / 8) + (vector ^ (token & 7));
}

template <int DIM>
struct Warp {
    static constexpr uint32_t SPANS = DIM / 32, TILES = DIM / 8, VECTORS = 2 * TOKENS * DIM / 8; // of 16 bytes, keys then values
    static constexpr uint32_t STAGES = 3;
    const Attention& a;
    uint4* ring; // [STAGES, VECTORS]
    uint32_t warp, lane, g, t;
    const uint32_t* table;
    uint32_t position, end, at; // the new token, the share's end, next tokens to copy
    float largest, weight;      // of row g, the weight only this lane's part
    float sum[TILES][4];        // [16, DIM], rows of query heads
    uint32_t query[SPANS][4];   // row g, inputs 32 span + 8 t .. + 8

    __device__ void next(uint32_t stage) {
        if (at < end) {
            // The new token's keys and values come from the kernel before.
            if (at <= position && position < at + TOKENS) after_previous();
            uint32_t page = table[at / PAGE_TOKENS], inside = at % PAGE_TOKENS;
            const __nv_bfloat16* keys = kv_page(a.kv, a.layer, 0, page, blockIdx.y) + inside * DIM;
            const __nv_bfloat16* values = kv_page(a.kv, a.layer, 1, page, blockIdx.y) + inside * DIM;
            uint4* to = ring + stage * VECTORS;
#pragma unroll
            for (uint32_t i = 0; i < 2 * SPANS; i++) {
                uint32_t token = i / SPANS * 8 + g;
                copy16(to + i * WARP + lane, keys + token * DIM + i % SPANS * 32 + t * 8, at + token < end);
            }
            to += VECTORS / 2;
#pragma unroll
            for (uint32_t i = 0; i < 2 * SPANS; i++) {
                uint32_t vector = i * WARP + lane, token = vector / (DIM / 8), column = vector % (DIM / 8);
                copy16(to + value_vector<DIM>(token, column), values + token * DIM + column * 8, at + token < end);
            }
            at += WARPS * TOKENS;
        }
        end_copies();
    }

    __device__ void load_queries(uint32_t row) {
        uint32_t group = a.heads / a.kv.kv_heads;
        const float* q = a.queries + ((size_t)row * a.heads + blockIdx.y * group + g) * DIM + t * 8;
#pragma unroll
        for (uint32_t span = 0; span < SPANS; span++)
#pragma unroll
            for (uint32_t i = 0; i < 4; i++) {
                float2 two = g < group ? __ldcg(reinterpret_cast<const float2*>(q + span * 32 + i * 2)) : make_float2(0, 0);
                query[span][i] = pack(two.x, two.y);
            }
    }

    // Weights of 16 tokens from `first` for row g: tokens 2 t, 2 t + 1 of the first 8 and of the second.
    __device__ void score(const uint4* keys, uint32_t first, float (&p)[4]) {
        float best = largest;
#pragma unroll
        for (uint32_t half = 0; half < 2; half++) {
            float c[4] = {};
#pragma unroll
            for (uint32_t span = 0; span < SPANS; span++) {
                uint4 k = keys[(half * SPANS + span) * WARP + lane];
                multiply(c, query[span][0], 0, query[span][1], 0, k.x, k.y);
                multiply(c, query[span][2], 0, query[span][3], 0, k.z, k.w);
            }
#pragma unroll
            for (uint32_t i = 0; i < 2; i++) {
                p[half * 2 + i] = first + half * 8 + 2 * t + i < end ? c[i] * a.scale : -INFINITY;
                best = fmaxf(best, p[half * 2 + i]);
            }
        }
        best = fmaxf(best, __shfl_xor_sync(~0u, best, 1));
        best = fmaxf(best, __shfl_xor_sync(~0u, best, 2));
        float rescale = exp2f(largest - best);
        largest = best;
        weight *= rescale;
#pragma unroll
        for (uint32_t tile = 0; tile < TILES; tile++) sum[tile][0] *= rescale, sum[tile][1] *= rescale;
#pragma unroll
        for (uint32_t i = 0; i < 4; i++) weight += p[i] = exp2f(p[i] - best);
    }

    __device__ void add_values(const uint4* values, const float (&p)[4]) {
        uint32_t low = pack(p[0], p[1]), high = pack(p[2], p[3]);
        uint32_t token = lane % 16, column = lane / 16;
#pragma unroll
        for (uint32_t tile = 0; tile < TILES; tile += 2) {
            uint32_t v[4], from = (uint32_t)__cvta_generic_to_shared(values + value_vector<DIM>(token, tile + column));
            asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
                         : "=r"(v[0]), "=r"(v[1]), "=r"(v[2]), "=r"(v[3])
                         : "r"(from)
                         : "memory");
            multiply(sum[tile], low, 0, high, 0, v[0], v[1]);
            multiply(sum[tile + 1], low, 0, high, 0, v[2], v[3]);
        }
    }

    __device__ void run(const StepItem& item) {
        StepRow row = a.step[item.row];
        table = row.table, position = row.position, end = item.end, at = item.start + warp * TOKENS;
        largest = -INFINITY, weight = 0;
#pragma unroll
        for (uint32_t tile = 0; tile < TILES; tile++)
#pragma unroll
            for (uint32_t i = 0; i < 4; i++) sum[tile][i] = 0;
        for (uint32_t i = 0; i < STAGES; i++) next(i);
        after_previous();
        load_queries(item.row);
        uint32_t stage = 0;
        for (uint32_t first = item.start + warp * TOKENS; first < end; first += WARPS * TOKENS) {
            await_copies<STAGES - 1>();
            __syncwarp();
            float p[4];
            score(ring + stage * VECTORS, first, p);
            add_values(ring + stage * VECTORS + VECTORS / 2, p);
            __syncwarp();
            next(stage);
            stage = stage + 1 == STAGES ? 0 : stage + 1;
        }
        await_copies<0>();
        weight += __shfl_xor_sync(~0u, weight, 1);
        weight += __shfl_xor_sync(~0u, weight, 2);
    }
};

// The warps' results in shared memory, [WARPS, GROUP, DIM + 2] like `partial`.
template <int DIM>
__device__ void leave(const Warp<DIM>& w, float* to) {
    float* mine = to + (w.warp * GROUP + w.g) * (DIM + 2);
#pragma unroll
    for (uint32_t tile = 0; tile < DIM / 8; tile++) *reinterpret_cast<float2*>(mine + tile * 8 + 2 * w.t) = make_float2(w.sum[tile][0], w.sum[tile][1]);
    if (w.t == 0) mine[DIM] = w.largest, mine[DIM + 1] = w.weight;
}

// Elements d and d + 1 of head `g` over the warps' results: the sums for the largest maximum, which comes back with the weights.
template <int DIM>
__device__ float2 combine_warps(const float* results, uint32_t g, uint32_t d, float& largest, float& weight) {
    const float* part = results + g * (DIM + 2);
    constexpr uint32_t STRIDE = GROUP * (DIM + 2);
    largest = -INFINITY, weight = 0;
    float2 sum = make_float2(0, 0);
    for (uint32_t i = 0; i < WARPS; i++) largest = fmaxf(largest, part[i * STRIDE + DIM]);
    for (uint32_t i = 0; i < WARPS; i++) {
        float rescale = exp2f(part[i * STRIDE + DIM] - largest);
        sum.x += rescale * part[i * STRIDE + d];
        sum.y += rescale * part[i * STRIDE + d + 1];
        weight += rescale * part[i * STRIDE + DIM + 1];
    }
    return sum;
}

// out[group, DIM] from `count` shares' results, which lie `stride` apart; `factors` has room for group * count.
template <int DIM>
__device__ void combine_shares(const float* parts, uint32_t count, size_t stride, uint32_t group, float* factors, __nv_bfloat16* out) {
    uint32_t warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    for (uint32_t g = warp; g < group; g += WARPS) {
        const float* part = parts + g * (DIM + 2) + DIM;
        float largest = -INFINITY, weight = 0;
        for (uint32_t i = lane; i < count; i += WARP) largest = fmaxf(largest, __ldcg(part + i * stride));
        for (uint32_t step = WARP / 2; step > 0; step /= 2) largest = fmaxf(largest, __shfl_xor_sync(~0u, largest, step));
        for (uint32_t i = lane; i < count; i += WARP) {
            float2 end = __ldcg(reinterpret_cast<const float2*>(part + i * stride));
            float rescale = exp2f(end.x - largest);
            factors[g * count + i] = rescale;
            weight += rescale * end.y;
        }
        for (uint32_t step = WARP / 2; step > 0; step /= 2) weight += __shfl_xor_sync(~0u, weight, step);
        __syncwarp();
        for (uint32_t i = lane; i < count; i += WARP) factors[g * count + i] /= weight;
    }
    __syncthreads();
    for (uint32_t e = threadIdx.x * 2; e < group * DIM; e += WARPS * WARP * 2) {
        const float* part = parts + e / DIM * (DIM + 2) + e % DIM;
        const float* factor = factors + e / DIM * count;
        float2 sum = make_float2(0, 0);
#pragma unroll 8
        for (uint32_t i = 0; i < count; i++) {
            float2 two = __ldcg(reinterpret_cast<const float2*>(part + i * stride));
            sum.x += factor[i] * two.x, sum.y += factor[i] * two.y;
        }
        *reinterpret_cast<uint32_t*>(out + e) = pack(sum.x, sum.y);
    }
}

template <int DIM>
__device__ void attend(const Attention& a) {
    extern __shared__ __align__(128) uint8_t shared[];
    __shared__ bool last;
    uint32_t warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    uint4* ring = reinterpret_cast<uint4*>(shared);
    float* results = reinterpret_cast<float*>(ring + WARPS * Warp<DIM>::STAGES * Warp<DIM>::VECTORS);
    Warp<DIM> w{a, ring + warp * Warp<DIM>::STAGES * Warp<DIM>::VECTORS, warp, lane, lane >> 2, lane & 3};
    uint32_t group = a.heads / a.kv.kv_heads, part = GROUP * (DIM + 2), count = *a.count;
    start_next();
    for (uint32_t i = blockIdx.x; i < count; i += gridDim.x) {
        StepItem item = a.items[i];
        w.run(item);
        leave<DIM>(w, results);
        __syncthreads();
        float* mine = a.partial + ((size_t)i * a.kv.kv_heads + blockIdx.y) * part;
        __nv_bfloat16* out = a.out + ((size_t)item.row * a.heads + blockIdx.y * group) * DIM;
        for (uint32_t e = threadIdx.x * 2; e < group * DIM; e += WARPS * WARP * 2) {
            float largest, weight;
            float2 sum = combine_warps<DIM>(results, e / DIM, e % DIM, largest, weight);
            if (item.count == 1) {
                *reinterpret_cast<uint32_t*>(out + e) = pack(sum.x / weight, sum.y / weight);
                continue;
            }
            float* to = mine + e / DIM * (DIM + 2);
            *reinterpret_cast<float2*>(to + e % DIM) = sum;
            if (e % DIM == 0) to[DIM] = largest, to[DIM + 1] = weight;
        }
        if (item.count > 1) {
            __threadfence();
            __syncthreads();
            uint32_t* arrived = a.arrived + item.row * a.kv.kv_heads + blockIdx.y;
            if (threadIdx.x == 0) last = atomicAdd(arrived, 1) == item.count - 1;
            __syncthreads();
            if (last) {
                __threadfence();
                const float* parts = a.partial + ((size_t)item.first * a.kv.kv_heads + blockIdx.y) * part;
                // The ring is idle until the next share.
                combine_shares<DIM>(parts, item.count, (size_t)a.kv.kv_heads * part, group, reinterpret_cast<float*>(ring), out);
                if (threadIdx.x == 0) *arrived = 0;
            }
        }
        // `results` and `last` are the next share's.
        __syncthreads();
    }
    after_previous();
}

extern "C" __global__ void __launch_bounds__(128) decode_attention_64(const __grid_constant__ Attention a) { attend<64>(a); }

extern "C" __global__ void __launch_bounds__(128) decode_attention_128(const __grid_constant__ Attention a) { attend<128>(a); }
