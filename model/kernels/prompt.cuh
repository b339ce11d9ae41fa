// The queries of an attention call.
#pragma once
#include <cuda_bf16.h>
#include <cstdint>

struct Prompt {
    const __nv_bfloat16* qkv; // [tokens, heads + 2 * kv_heads, head_dim], keys and values in the pages already
    __nv_bfloat16* out;       // [tokens, heads, head_dim]
    float* lse;               // [heads, tokens]: base-2 logarithms of the softmaxes' denominators
    uint32_t heads, tokens;
    uint32_t position; // of the first query
    uint32_t layer;
};
