// Attention that tokens received from a prompt's last queries. Twin: `attention::add_received`.
#include "kv_pages.cuh"
#include "vectors.cuh"

// out [earlier | nearest, tokens] = the sums [kv_heads, earlier | nearest, tokens] over heads. One thread per output, `outputs` of them.
extern "C" __global__ void fold_received(const float* sums, uint32_t kv_heads, uint32_t outputs, float* out) {
    const uint32_t i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= outputs) return;
    float total = 0.0f;
    for (uint32_t head = 0; head < kv_heads; ++head) total += sums[(size_t)head * outputs + i];
    out[i] = total;
}
