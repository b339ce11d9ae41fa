// The linear layers of a decode step with few rows: out[rows, outputs] = x[rows, inputs] * weights[outputs, inputs]^T, rows <= 8, bound by
// reading the weights once, each with what follows it in a block of the model.
//
// A tile is 8 rows of the weights; a block of 8 warps takes tiles blockIdx.x, blockIdx.x + gridDim.x, ..., its warps take pieces of 64 inputs
// in turn and add up at the tile's end. The weights flow through a ring in shared memory that is filled before the previous kernel is
// through (they do not depend on it) and never runs dry between tiles. Each thread copies exactly the 16 bytes that it later multiplies: lane
// 4 g + t holds 8 inputs of weight row g, which mma.m16n8k16 takes as they lie because x is read in the same order of inputs.
//
// RMSNorm is folded in: producers of the residual stream leave it multiplied by the norm's weights as bf16 ("scaled"), with sums of squares
// per 8 columns; the root mean square, common to a row, divides the sums here.
//
// Launch: 256 threads, at most `tiles` blocks, dynamic shared memory as in src/cuda/decode/linear.rs. inputs % 64 == 0, outputs % 8 == 0.
#include "decode.cuh"

constexpr uint32_t WARPS = 8, STAGES = 8, PIECE = 64, TILE = 8, ROWS = 8;
constexpr uint32_t STAGE_VECTORS = 2 * WARP; // 16 bytes each

struct Linear {
    const __nv_bfloat16* weights; // [outputs, inputs]
    const __nv_bfloat16* x;       // [rows, inputs]
    const float* squares;         // [rows, inputs / 8]: sums of squares to be normalised by, or null
    uint32_t rows, inputs, tiles;
    // Rows of a tile: 4 and, `half` further on, 4 more. 4 makes them neighbours; else outputs are pairs, half a rotary head or a gate and its
    // up projection apart.
    uint32_t half;
    float eps;
};

struct Smem {
    uint4* ring;          // [WARPS, STAGES, 2, WARP]
    float* sums;          // [2, WARPS, ROWS, TILE]
    float* factors;       // [ROWS]
    __nv_bfloat16* x;     // [rows, inputs + 32]: the padding moves rows to other banks
};

__device__ __forceinline__ uint32_t weight_row(const Linear& l, uint32_t tile, uint32_t g) {
    uint32_t per_half = l.half / 4;
    return tile / per_half * 2 * l.half + tile % per_half * 4 + (g & 3) + (g >> 2) * l.half;
}

__device__ Smem split_shared() {
    extern __shared__ __align__(128) uint8_t shared[];
    Smem s;
    s.ring = reinterpret_cast<uint4*>(shared);
    s.sums = reinterpret_cast<float*>(s.ring + WARPS * STAGES * STAGE_VECTORS);
    s.factors = s.sums + 2 * WARPS * ROWS * TILE;
    s.x = reinterpret_cast<__nv_bfloat16*>(s.factors + ROWS);
    return s;
}

// One warp's pieces of weights, on their way through its part of the ring.
struct Stream {
    const Linear& l;
    uint4* ring;
    uint32_t tile, piece, stage, warp, lane;

    __device__ void next() {
        uint32_t pieces = l.inputs / PIECE;
        if (tile < l.tiles && piece < pieces) {
            const __nv_bfloat16* from = l.weights + (size_t)weight_row(l, tile, lane >> 2) * l.inputs + piece * PIECE + (lane & 3) * 8;
            uint4* to = ring + stage * STAGE_VECTORS + lane;
            copy16(to, from);
            copy16(to + WARP, from + 32);
            piece += WARPS;
            if (piece >= pieces) {
                piece = warp;
                tile += gridDim.x;
            }
        }
        end_copies();
        stage = stage + 1 == STAGES ? 0 : stage + 1;
    }
};

// What a row's sums are multiplied by; for whole warps.
__device__ float factor_of(const Linear& l, uint32_t row, uint32_t lane) {
    if (l.squares == nullptr) return 1.0f;
    float sum = 0;
#pragma unroll 8
    for (uint32_t i = lane; i < l.inputs / 8; i += WARP) sum += __ldcg(l.squares + (size_t)row * (l.inputs / 8) + i);
    for (uint32_t step = WARP / 2; step > 0; step /= 2) sum += __shfl_xor_sync(~0u, sum, step);
    return rsqrtf(sum / l.inputs + l.eps);
}

// x, and the rows' factors, to shared memory. Many loads at once: the weights wait for them.
__device__ void stage_x(const Linear& l, const Smem& s, uint32_t warp, uint32_t lane) {
    constexpr uint32_t AT_ONCE = 8, THREADS = WARPS * WARP;
    uint32_t per_row = l.inputs / 8, all = l.rows * per_row;
    const uint4* from = reinterpret_cast<const uint4*>(l.x);
    uint4* to = reinterpret_cast<uint4*>(s.x);
    for (uint32_t start = threadIdx.x; start < all || start < THREADS; start += AT_ONCE * THREADS) {
        uint4 vectors[AT_ONCE];
#pragma unroll
        for (uint32_t j = 0; j < AT_ONCE; j++)
            if (start + j * THREADS < all) vectors[j] = __ldcg(from + start + j * THREADS);
        if (start < THREADS) {
            for (uint32_t row = warp; row < l.rows; row += WARPS) {
                float factor = factor_of(l, row, lane);
                if (lane == 0) s.factors[row] = factor;
            }
        }
#pragma unroll
        for (uint32_t j = 0; j < AT_ONCE; j++) {
            uint32_t i = start + j * THREADS;
            if (i < all) to[i + i / per_row * 4] = vectors[j];
        }
    }
    __syncthreads();
}

// Adds one piece's product to `sum`, in two chains.
__device__ __forceinline__ void multiply_piece(float (&sum)[2][4], const uint4* weights, const __nv_bfloat16* x, bool valid) {
#pragma unroll
    for (uint32_t j = 0; j < 2; j++) {
        uint4 w = weights[j * WARP];
        uint4 a = valid ? *reinterpret_cast<const uint4*>(x + j * 32) : make_uint4(0, 0, 0, 0);
        // The lower half of the 16 rows that the instruction has is not used.
        multiply(sum[0], a.x, 0, a.y, 0, w.x, w.y);
        multiply(sum[1], a.z, 0, a.w, 0, w.z, w.w);
    }
}

// The whole kernel. `after` gets, for each tile, `prepare` early and `finish` with the sum of each of its [rows, 8] outputs; the 8 lanes of a row
// are neighbours, all threads of a warp call it, and `row` may be beyond the rows there are.
template <class After>
__device__ void run(const Linear& l, After& after) {
    Smem s = split_shared();
    uint32_t warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, g = lane >> 2, t = lane & 3;
    Stream stream{l, s.ring + warp * STAGES * STAGE_VECTORS, blockIdx.x, warp, 0, warp, lane};
#pragma unroll 1
    for (uint32_t i = 0; i < STAGES; i++) stream.next();
    start_next();
    after_previous();
    stage_x(l, s, warp, lane);

    uint32_t stride = l.inputs + 32, row = threadIdx.x / TILE, column = threadIdx.x % TILE, parity = 0, stage = 0;
    const __nv_bfloat16* x = s.x + g * stride + t * 8;
    for (uint32_t tile = blockIdx.x; tile < l.tiles; tile += gridDim.x, parity ^= 1) {
        if (row < ROWS) after.prepare(l, tile, row, column);
        float sum[2][4] = {};
        for (uint32_t piece = warp; piece < l.inputs / PIECE; piece += WARPS) {
            await_copies<STAGES - 1>();
            multiply_piece(sum, stream.ring + stage * STAGE_VECTORS + lane, x + piece * PIECE, g < l.rows);
            stream.next();
            stage = stage + 1 == STAGES ? 0 : stage + 1;
        }
        float* sums = s.sums + parity * WARPS * ROWS * TILE;
        float2* mine = reinterpret_cast<float2*>(sums + (warp * ROWS + g) * TILE + 2 * t);
        mine[0] = make_float2(sum[0][0] + sum[1][0], sum[0][1] + sum[1][1]);
        // The other half of `sums` is free: whoever read it two tiles ago has passed the last barrier.
        __syncthreads();
        if (row < ROWS) {
            float total = 0;
#pragma unroll
            for (uint32_t w = 0; w < WARPS; w++) total += sums[(w * ROWS + row) * TILE + column];
            after.finish(l, tile, row, column, row < l.rows ? total * s.factors[row] : 0.0f);
        }
    }
    await_copies<0>();
    after.end(l);
}

// Queries, keys and values of the step's tokens: turns queries and keys, appends keys and values to the caches.
struct Attend {
    KvView kv; // its table is not used: each row has its own
    const StepRow* step; // [rows]
    const float *cosines, *sines; // [positions, head_dim / 2]
    float* queries;               // [rows, heads, head_dim]
    uint32_t heads, layer;
};

struct RotateAndAppend {
    Attend a;
    float cosine, sine;
    uint32_t position;

    __device__ void prepare(const Linear& l, uint32_t tile, uint32_t row, uint32_t column) {
        position = row < l.rows ? a.step[row].position : NOBODY;
        cosine = 1, sine = 0;
        uint32_t head = tile / (l.half / 4), i = tile % (l.half / 4) * 4 + (column & 3);
        if (position == NOBODY || head >= a.heads + a.kv.kv_heads) return;
        cosine = a.cosines[(size_t)position * l.half + i];
        sine = a.sines[(size_t)position * l.half + i];
    }

    __device__ void finish(const Linear& l, uint32_t tile, uint32_t row, uint32_t column, float value) {
        float other = __shfl_xor_sync(~0u, value, 4);
        float turned = value * cosine + (column < 4 ? -other : other) * sine;
        uint32_t head = tile / (l.half / 4), i = tile % (l.half / 4) * 4 + (column & 3) + (column >> 2) * l.half;
        if (row >= l.rows) return;
        if (head < a.heads) {
            a.queries[((size_t)row * a.heads + head) * a.kv.head_dim + i] = position == NOBODY ? 0.0f : turned;
        } else if (position != NOBODY) {
            uint32_t is_value = head >= a.heads + a.kv.kv_heads;
            KvView kv = a.kv;
            kv.table = a.step[row].table;
            kv_row(kv, a.layer, is_value, position, head - a.heads - is_value * kv.kv_heads)[i] = __float2bfloat16_rn(turned);
        }
    }

    __device__ void end(const Linear&) {}
};

// silu(gate) * up to out[rows, outputs / 2].
struct Gate {
    __nv_bfloat16* out;

    __device__ void prepare(const Linear&, uint32_t, uint32_t, uint32_t) {}

    __device__ void finish(const Linear& l, uint32_t tile, uint32_t row, uint32_t column, float gate) {
        float up = __shfl_xor_sync(~0u, gate, 4);
        if (row >= l.rows || column >= 4) return;
        out[(size_t)row * l.half + tile * 4 + column] = __float2bfloat16_rn(gate / (1.0f + __expf(-gate)) * up);
    }

    __device__ void end(const Linear&) {}
};

// Adds to the residual stream and leaves it as the next norm wants it.
struct Residual {
    float* x;                  // [rows, outputs]
    const float* norm;         // [outputs], the next norm's weights
    __nv_bfloat16* scaled;     // [rows, outputs]: x * norm
    float* squares;            // [rows, outputs / 8]
};

struct Add {
    Residual r;
    float before, weight;

    __device__ void prepare(const Linear& l, uint32_t tile, uint32_t row, uint32_t column) {
        weight = r.norm[tile * TILE + column];
        before = row < l.rows ? __ldcg(r.x + (size_t)row * l.tiles * TILE + tile * TILE + column) : 0.0f;
    }

    __device__ void finish(const Linear& l, uint32_t tile, uint32_t row, uint32_t column, float value) {
        float x = before + value, square = x * x;
        for (uint32_t step = TILE / 2; step > 0; step /= 2) square += __shfl_xor_sync(~0u, square, step);
        if (row >= l.rows) return;
        size_t at = (size_t)row * l.tiles * TILE + tile * TILE + column;
        r.x[at] = x;
        r.scaled[at] = __float2bfloat16_rn(x * weight);
        if (column == 0) r.squares[(size_t)row * l.tiles + tile] = square;
    }

    __device__ void end(const Linear&) {}
};

// Logits, and the first of the largest in each row.
struct Head {
    float* logits;                    // [rows, outputs]
    float* best;                      // [rows, gridDim.x]: the largest of each block
    uint32_t *best_at, *tokens, *done; // [rows, gridDim.x], [rows], [1]: 0 before and after
};

struct Choose {
    Head h;
    float best = -INFINITY;
    uint32_t at = 0;

    __device__ void prepare(const Linear&, uint32_t, uint32_t, uint32_t) {}

    __device__ void finish(const Linear& l, uint32_t tile, uint32_t row, uint32_t column, float value) {
        if (row >= l.rows) return;
        uint32_t id = tile * TILE + column;
        h.logits[(size_t)row * l.tiles * TILE + id] = value;
        if (value > best) best = value, at = id;
    }

    // The larger of two, the earlier of equals.
    __device__ void take(float other, uint32_t other_at) {
        if (other > best || (other == best && other_at < at)) best = other, at = other_at;
    }

    __device__ void end(const Linear& l) {
        uint32_t row = threadIdx.x / TILE;
        for (uint32_t step = TILE / 2; step > 0; step /= 2) take(__shfl_xor_sync(~0u, best, step), __shfl_xor_sync(~0u, at, step));
        if (row < l.rows && threadIdx.x % TILE == 0) {
            h.best[(size_t)row * gridDim.x + blockIdx.x] = best;
            h.best_at[(size_t)row * gridDim.x + blockIdx.x] = at;
        }
        __shared__ bool last;
        __threadfence();
        __syncthreads();
        if (threadIdx.x == 0) last = atomicAdd(h.done, 1) == gridDim.x - 1;
        __syncthreads();
        if (!last) return;
        __threadfence();
        for (row = threadIdx.x / WARP; row < l.rows; row += WARPS) {
            best = -INFINITY, at = 0;
            for (uint32_t i = threadIdx.x % WARP; i < gridDim.x; i += WARP)
                take(__ldcg(h.best + (size_t)row * gridDim.x + i), __ldcg(h.best_at + (size_t)row * gridDim.x + i));
            for (uint32_t step = WARP / 2; step > 0; step /= 2) take(__shfl_xor_sync(~0u, best, step), __shfl_xor_sync(~0u, at, step));
            if (threadIdx.x % WARP == 0) h.tokens[row] = at;
        }
        if (threadIdx.x == 0) *h.done = 0;
    }
};

#define KERNEL(NAME, ARGUMENT, AFTER)                                                                                                  \
    extern "C" __global__ void __launch_bounds__(256) decode_##NAME(const __grid_constant__ Linear l, const __grid_constant__ ARGUMENT a) { \
        AFTER after{a};                                                                                                                 \
        run(l, after);                                                                                                                  \
    }

KERNEL(qkv, Attend, RotateAndAppend)
KERNEL(add, Residual, Add)
KERNEL(head, Head, Choose)
KERNEL(gate, Gate, Gate)
