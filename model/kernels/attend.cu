// Causal grouped-query attention of a prompt's tokens over the paged cache. Twin: `attention::attend`.
#include "kv_pages.cuh"
#include "vectors.cuh"

constexpr uint32_t MAX_DIM = 128;

// out [tokens, heads, head_dim], lse [heads, tokens] (base 2, of scaled scores). The queries are the first of
// qkv [tokens, heads + 2 * kv_heads, head_dim], the first one stands at `position`; their keys are in the pages already.
// One warp per query and head.
extern "C" __global__ void attend(const __nv_bfloat16* qkv, uint32_t heads, uint32_t tokens, uint32_t position, uint32_t layer,
                                  KvView kv, __nv_bfloat16* out, float* lse) {
    __shared__ float query[MAX_DIM];
    const uint32_t dim = kv.head_dim, row = blockIdx.x, head = blockIdx.y, kv_head = head / (heads / kv.kv_heads), lane = threadIdx.x;
    const float scale = 1.44269504f * rsqrtf((float)dim);
    for (uint32_t i = lane; i < dim; i += 32)
        query[i] = __bfloat162float(qkv[((size_t)row * (heads + 2 * kv.kv_heads) + head) * dim + i]) * scale;
    __syncwarp();
    float top = -INFINITY, sum = 0.0f, result[MAX_DIM / 32] = {};
    const uint32_t keys = min(position + row + 1, kv.pages * PAGE_TOKENS);
    for (uint32_t first = 0; first < keys; first += 32) {
        float score = -INFINITY;
        if (first + lane < keys) {
            const __nv_bfloat16* key = kv_row(kv, layer, 0, first + lane, kv_head);
            score = 0.0f;
            for (uint32_t i = 0; i < dim; ++i) score += query[i] * __bfloat162float(key[i]);
        }
        float block_top = score;
        for (int step = 16; step > 0; step /= 2) block_top = fmaxf(block_top, __shfl_xor_sync(~0u, block_top, step));
        const float new_top = fmaxf(top, block_top), p = exp2f(score - new_top), keep = exp2f(top - new_top);
        float p_sum = p;
        for (int step = 16; step > 0; step /= 2) p_sum += __shfl_xor_sync(~0u, p_sum, step);
        sum = sum * keep + p_sum;
        top = new_top;
        for (uint32_t j = 0; j < MAX_DIM / 32; ++j) result[j] *= keep;
        for (uint32_t key = 0; key < 32 && first + key < keys; ++key) {
            const float weight = __shfl_sync(~0u, p, key);
            const __nv_bfloat16* value = kv_row(kv, layer, 1, first + key, kv_head);
            for (uint32_t j = 0; j < dim / 32; ++j) result[j] += weight * __bfloat162float(value[j * 32 + lane]);
        }
    }
    for (uint32_t j = 0; j < dim / 32; ++j)
        out[((size_t)row * heads + head) * dim + j * 32 + lane] = __float2bfloat16(result[j] / sum);
    if (lane == 0) lse[(size_t)head * tokens + row] = top + log2f(sum);
}
