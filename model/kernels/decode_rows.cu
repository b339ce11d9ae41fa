// What happens to a step's rows outside of its linear layers: the embedding, and, where cuBLASLt multiplies, what the kernels of
// decode_linear.cu do along with their products. One block per row.
#include "decode.cuh"
#include "vectors.cuh"

constexpr uint32_t THREADS = 256;

// x[rows, hidden] = the tokens' rows of embedding[vocab, hidden]; scaled[rows, hidden] = x * norm[hidden] and squares[rows, hidden / 8] as the
// linear kernels leave them. Rows of nobody and tokens outside of the vocabulary are 0. Twin: the gather in `Llama::forward`.
extern "C" __global__ void __launch_bounds__(THREADS) decode_embed(const StepRow* step, const __nv_bfloat16* embedding, uint32_t vocab,
                                                                    uint32_t hidden, const float* norm, float* x, __nv_bfloat16* scaled,
                                                                    float* squares) {
    start_next();
    after_previous();
    StepRow row = step[blockIdx.x];
    bool valid = row.position != NOBODY && row.token < vocab;
    for (uint32_t i = threadIdx.x; i < hidden / 8; i += THREADS) {
        Eight e = {}, weight = load_eight(norm + i * 8);
        if (valid) e = load_eight(embedding + (size_t)row.token * hidden + i * 8);
        size_t at = (size_t)blockIdx.x * hidden / 8 + i;
        store_eight(x + at * 8, e);
        float sum = 0;
        for (uint32_t k = 0; k < 8; k++) {
            sum += e.x[k] * e.x[k];
            e.x[k] *= weight.x[k];
        }
        squares[at] = sum;
        store_eight(scaled + at * 8, e);
    }
}

// qkv[rows, heads + 2 kv_heads, head_dim] -> turned queries[rows, heads, head_dim]; turned keys, and values, to the rows' caches. `kv`'s own
// table is not used. Twin: `Llama::rotate_and_store`.
extern "C" __global__ void __launch_bounds__(THREADS)
    decode_rotate(const __nv_bfloat16* qkv, const StepRow* step, const float* cosines, const float* sines, uint32_t heads, uint32_t layer,
                  const __grid_constant__ KvView kv_of_all, float* queries) {
    start_next();
    after_previous();
    StepRow row = step[blockIdx.x];
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

// tokens[rows] = the first of the largest of logits[rows, vocab]. Twin: `Sampling::GREEDY`.
extern "C" __global__ void __launch_bounds__(THREADS) decode_argmax(const float* logits, uint32_t vocab, uint32_t* tokens) {
    __shared__ float bests[THREADS / WARP];
    __shared__ uint32_t bests_at[THREADS / WARP];
    start_next();
    after_previous();
    const float* row = logits + (size_t)blockIdx.x * vocab;
    float best = -INFINITY;
    uint32_t at = 0;
    for (uint32_t i = threadIdx.x * 8; i < vocab; i += THREADS * 8) {
        Eight e = load_eight(row + i);
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
