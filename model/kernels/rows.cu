// What happens to a token's row between the matrix products. Widths are multiples of 8; CPU twins are named at each kernel.
#include "kv_pages.cuh"
#include "vectors.cuh"

// x [tokens, hidden] = the rows `ids` [tokens] of `table` [vocab, hidden]; ids outside of the vocabulary become zeros.
// One block per token. Twin: the gather in `Llama::forward`.
extern "C" __global__ void embed(const uint32_t* ids, const __nv_bfloat16* table, uint32_t vocab, uint32_t hidden, float* x) {
    const uint32_t id = ids[blockIdx.x];
    for (uint32_t i = threadIdx.x * 8; i < hidden; i += blockDim.x * 8) {
        Eight v = {};
        if (id < vocab) v = load_eight(table + (size_t)id * hidden + i);
        store_eight(x + (size_t)blockIdx.x * hidden + i, v);
    }
}

template <typename From, typename To>
__device__ __forceinline__ void normalise(const From* from, const float* weight, uint32_t hidden, float eps, To* to) {
    float squares = 0.0f;
    for (uint32_t i = threadIdx.x * 8; i < hidden; i += blockDim.x * 8) {
        Eight v = load_eight(from + i);
#pragma unroll
        for (int j = 0; j < 8; ++j) squares += v.x[j] * v.x[j];
    }
    const float scale = rsqrtf(block_sum(squares) / hidden + eps);
    for (uint32_t i = threadIdx.x * 8; i < hidden; i += blockDim.x * 8) {
        Eight v = load_eight(from + i), w = load_eight(weight + i);
#pragma unroll
        for (int j = 0; j < 8; ++j) v.x[j] = v.x[j] * scale * w.x[j];
        store_eight(to + i, v);
    }
}

// out [rows, hidden] = RMSNorm of x [rows, hidden] with `weight` [hidden]. One block per row. Twin: `simd::rms_norm`.
extern "C" __global__ void rms_norm(const float* x, const float* weight, uint32_t hidden, float eps, __nv_bfloat16* out) {
    normalise(x + (size_t)blockIdx.x * hidden, weight, hidden, eps, out + (size_t)blockIdx.x * hidden);
}

// out [count, hidden] = the normalised rows `ids` [count] of `table` [vocab, hidden]; ids outside of the vocabulary become zeros.
// One block per row. Twin: `Llama::token_features`.
extern "C" __global__ void token_features(const uint32_t* ids, const __nv_bfloat16* table, const float* weight, uint32_t vocab,
                                          uint32_t hidden, float eps, __half* out) {
    const uint32_t id = ids[blockIdx.x];
    __half* to = out + (size_t)blockIdx.x * hidden;
    if (id < vocab) {
        normalise(table + (size_t)id * hidden, weight, hidden, eps, to);
        return;
    }
    for (uint32_t i = threadIdx.x * 8; i < hidden; i += blockDim.x * 8) store_eight(to + i, Eight{});
}

// Turns queries in place and moves turned keys and values into the pages of `layer`. qkv is [tokens, heads + 2 * kv_heads, head_dim], its
// first row stands at `position`; cos and sin are [positions, head_dim / 2]. One block per token, which must lie in the session's pages.
// Twin: `Llama::rotate_and_store`.
extern "C" __global__ void rotate_and_store(__nv_bfloat16* qkv, const float* cos, const float* sin, uint32_t heads, uint32_t position,
                                            uint32_t layer, KvView kv) {
    const uint32_t dim = kv.head_dim, half = dim / 2, token = position + blockIdx.x;
    if (token / PAGE_TOKENS >= kv.pages) return;
    __nv_bfloat16* row = qkv + (size_t)blockIdx.x * (heads + 2 * kv.kv_heads) * dim;
    const uint32_t turned = (heads + kv.kv_heads) * (half / 8), moved = kv.kv_heads * (dim / 8);
    for (uint32_t item = threadIdx.x; item < turned + moved; item += blockDim.x) {
        if (item >= turned) {
            const uint32_t head = (item - turned) / (dim / 8), at = (item - turned) % (dim / 8) * 8;
            const __nv_bfloat16* from = row + (heads + kv.kv_heads + head) * dim + at;
            *reinterpret_cast<uint4*>(kv_row(kv, layer, 1, token, head) + at) = *reinterpret_cast<const uint4*>(from);
            continue;
        }
        const uint32_t head = item / (half / 8), at = item % (half / 8) * 8;
        __nv_bfloat16* from = row + head * dim + at;
        __nv_bfloat16* to = head < heads ? from : kv_row(kv, layer, 0, token, head - heads) + at;
        const Eight c = load_eight(cos + (size_t)token * half + at), s = load_eight(sin + (size_t)token * half + at);
        const Eight a = load_eight(from), b = load_eight(from + half);
        Eight first, second;
#pragma unroll
        for (int j = 0; j < 8; ++j) {
            first.x[j] = a.x[j] * c.x[j] - b.x[j] * s.x[j];
            second.x[j] = b.x[j] * c.x[j] + a.x[j] * s.x[j];
        }
        store_eight(to, first);
        store_eight(to + half, second);
    }
}

// out [rows, width] = silu(gate) * up, where gate_up is [rows, gate | up, width]. `items` is rows * width / 8, one thread each.
// Twin: `simd::swiglu`.
extern "C" __global__ void swiglu(const __nv_bfloat16* gate_up, uint32_t width, uint64_t items, __nv_bfloat16* out) {
    const uint64_t item = (uint64_t)blockIdx.x * blockDim.x + threadIdx.x;
    if (item >= items) return;
    const uint64_t row = item / (width / 8), at = item % (width / 8) * 8;
    const __nv_bfloat16* from = gate_up + row * 2 * width + at;
    Eight gate = load_eight(from);
    const Eight up = load_eight(from + width);
#pragma unroll
    for (int j = 0; j < 8; ++j) gate.x[j] = gate.x[j] / (1.0f + __expf(-gate.x[j])) * up.x[j];
    store_eight(out + row * width + at, gate);
}
