// What happens to a step's rows outside of its linear layers: the embedding, and, where cuBLASLt multiplies, what the kernels of
// decode_linear.cu do along with their products. One block of 256 threads per row, unless said otherwise.
#include "decode.cuh"

constexpr uint32_t THREADS = 256;

// Sum over the block, in every thread.
__device__ float block_sum(float value) {
    __shared__ float sums[THREADS / WARP];
    for (uint32_t step = WARP / 2; step > 0; step /= 2) value += __shfl_xor_sync(~0u, value, step);
    __syncthreads();
    if (threadIdx.x % WARP == 0) sums[threadIdx.x / WARP] = value;
    __syncthreads();
    float sum = 0;
    for (uint32_t i = 0; i < THREADS / WARP; i++) sum += sums[i];
    return sum;
}

// 8 neighbouring elements.
struct Eight {
    float x[8];

    __device__ static Eight load(const __nv_bfloat16* from) {
        uint4 raw = *reinterpret_cast<const uint4*>(from);
        const __nv_bfloat162* pairs = reinterpret_cast<const __nv_bfloat162*>(&raw);
        Eight out;
        for (uint32_t i = 0; i < 4; i++) {
            float2 pair = __bfloat1622float2(pairs[i]);
            out.x[2 * i] = pair.x, out.x[2 * i + 1] = pair.y;
        }
        return out;
    }

    __device__ static Eight load(const float* from) {
        float4 low = __ldcg(reinterpret_cast<const float4*>(from)), high = __ldcg(reinterpret_cast<const float4*>(from) + 1);
        return {{low.x, low.y, low.z, low.w, high.x, high.y, high.z, high.w}};
    }

    __device__ void store(__nv_bfloat16* to) const {
        *reinterpret_cast<uint4*>(to) = make_uint4(pack(x[0], x[1]), pack(x[2], x[3]), pack(x[4], x[5]), pack(x[6], x[7]));
    }

    __device__ void store(float* to) const {
        reinterpret_cast<float4*>(to)[0] = make_float4(x[0], x[1], x[2], x[3]);
        reinterpret_cast<float4*>(to)[1] = make_float4(x[4], x[5], x[6], x[7]);
    }

    __device__ float squares() const {
        float sum = 0;
        for (float value : x) sum += value * value;
        return sum;
    }
};

// x[rows, hidden] = the tokens' rows of embedding[vocab, hidden]; scaled[rows, hidden] = x * norm[hidden], squares[rows, hidden / 8] as the
// linear kernels leave them. Rows of nobody and tokens outside of the vocabulary are 0.
extern "C" __global__ void __launch_bounds__(THREADS) decode_embed(const StepRow* step, const __nv_bfloat16* embedding, uint32_t vocab,
                                                                    uint32_t hidden, const float* norm, float* x, __nv_bfloat16* scaled,
                                                                    float* squares) {
    StepRow row = step[blockIdx.x];
    start_next();
    after_previous();
    bool valid = row.position != NOBODY && row.token < vocab;
    for (uint32_t i = threadIdx.x; i < hidden / 8; i += THREADS) {
        Eight e{}, weight = Eight::load(norm + i * 8);
        if (valid) e = Eight::load(embedding + (size_t)row.token * hidden + i * 8);
        size_t at = (size_t)blockIdx.x * hidden / 8 + i;
        e.store(x + at * 8);
        squares[at] = e.squares();
        for (uint32_t k = 0; k < 8; k++) e.x[k] *= weight.x[k];
        e.store(scaled + at * 8);
    }
}

// out[rows, hidden] = RMSNorm of x[rows, hidden] with norm[hidden].
extern "C" __global__ void __launch_bounds__(THREADS)
    decode_norm(const float* x, const float* norm, uint32_t hidden, float eps, __nv_bfloat16* out) {
    start_next();
    after_previous();
    const float* row = x + (size_t)blockIdx.x * hidden;
    float sum = 0;
    for (uint32_t i = threadIdx.x; i < hidden / 8; i += THREADS) sum += Eight::load(row + i * 8).squares();
    float factor = rsqrtf(block_sum(sum) / hidden + eps);
    for (uint32_t i = threadIdx.x; i < hidden / 8; i += THREADS) {
        Eight e = Eight::load(row + i * 8), weight = Eight::load(norm + i * 8);
        for (uint32_t k = 0; k < 8; k++) e.x[k] *= factor * weight.x[k];
        e.store(out + (size_t)blockIdx.x * hidden + i * 8);
    }
}

// qkv[rows, heads + 2 kv_heads, head_dim] -> turned queries[rows, heads, head_dim]; turned keys, and values, to the rows' caches. `kv`'s own
// table is not used.
extern "C" __global__ void __launch_bounds__(THREADS)
    decode_rotate(const __nv_bfloat16* qkv, const StepRow* step, const float* cosines, const float* sines, uint32_t heads, uint32_t layer,
                  const __grid_constant__ KvView kv_of_all, float* queries) {
    StepRow row = step[blockIdx.x];
    start_next();
    after_previous();
    KvView kv = kv_of_all;
    kv.table = row.table;
    uint32_t half = kv.head_dim / 2, all = heads + 2 * kv.kv_heads;
    for (uint32_t i = threadIdx.x; i < all * half; i += THREADS) {
        uint32_t head = i / half, at = i % half;
        const __nv_bfloat16* from = qkv + ((size_t)blockIdx.x * all + head) * kv.head_dim + at;
        float first = __bfloat162float(from[0]), second = __bfloat162float(from[half]), cosine = 1, sine = 0;
        if (row.position != NOBODY && head < heads + kv.kv_heads) {
            cosine = cosines[(size_t)row.position * half + at];
            sine = sines[(size_t)row.position * half + at];
        }
        float low = first * cosine - second * sine, high = second * cosine + first * sine;
        if (head < heads) {
            float* to = queries + ((size_t)blockIdx.x * heads + head) * kv.head_dim + at;
            to[0] = low, to[half] = high;
        } else if (row.position != NOBODY) {
            uint32_t is_value = head >= heads + kv.kv_heads;
            __nv_bfloat16* to = kv_row(kv, layer, is_value, row.position, head - heads - is_value * kv.kv_heads) + at;
            to[0] = __float2bfloat16_rn(low), to[half] = __float2bfloat16_rn(high);
        }
    }
}

// out[rows, width] = silu(gate) * up of gate_up[rows, gate | up, width]; a thread per 8 of the `items` * 8 outputs.
extern "C" __global__ void __launch_bounds__(THREADS) decode_gate(const __nv_bfloat16* gate_up, uint32_t width, uint32_t items, __nv_bfloat16* out) {
    start_next();
    after_previous();
    uint32_t item = blockIdx.x * THREADS + threadIdx.x;
    if (item >= items) return;
    uint32_t row = item / (width / 8), column = item % (width / 8) * 8;
    const __nv_bfloat16* from = gate_up + (size_t)row * 2 * width + column;
    Eight gate = Eight::load(from), up = Eight::load(from + width);
    for (uint32_t k = 0; k < 8; k++) gate.x[k] = gate.x[k] / (1.0f + __expf(-gate.x[k])) * up.x[k];
    gate.store(out + (size_t)item * 8);
}

// tokens[rows] = the first of the largest of logits[rows, vocab].
extern "C" __global__ void __launch_bounds__(THREADS) decode_argmax(const float* logits, uint32_t vocab, uint32_t* tokens) {
    __shared__ float bests[THREADS / WARP];
    __shared__ uint32_t bests_at[THREADS / WARP];
    start_next();
    after_previous();
    const float* row = logits + (size_t)blockIdx.x * vocab;
    float best = -INFINITY;
    uint32_t at = 0;
    for (uint32_t i = threadIdx.x * 8; i < vocab; i += THREADS * 8) {
        Eight e = Eight::load(row + i);
        for (uint32_t k = 0; k < 8; k++)
            if (e.x[k] > best) best = e.x[k], at = i + k;
    }
    auto take = [&](float other, uint32_t other_at) {
        if (other > best || (other == best && other_at < at)) best = other, at = other_at;
    };
    for (uint32_t step = WARP / 2; step > 0; step /= 2) take(__shfl_xor_sync(~0u, best, step), __shfl_xor_sync(~0u, at, step));
    if (threadIdx.x % WARP == 0) bests[threadIdx.x / WARP] = best, bests_at[threadIdx.x / WARP] = at;
    __syncthreads();
    if (threadIdx.x > 0) return;
    for (uint32_t i = 0; i < THREADS / WARP; i++) take(bests[i], bests_at[i]);
    tokens[blockIdx.x] = at;
}
