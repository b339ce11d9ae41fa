// A session's KV cache in pages of one pool; the Rust side is gpu/src/pages.rs.
#pragma once
#include <cuda_bf16.h>
#include <cstdint>

constexpr uint32_t PAGE_TOKENS = 64;

struct KvView {
    __nv_bfloat16* pool;   // [layers, keys | values, pool_pages, kv_heads, PAGE_TOKENS, head_dim]
    const uint32_t* table; // [pages]: the session's pages in the order of its tokens
    uint32_t pool_pages, pages, layers, kv_heads, head_dim, reserved;
};

// First element of PAGE_TOKENS tokens of one head, [PAGE_TOKENS, head_dim] in a row. `value` is 0 for keys, 1 for values.
__device__ __forceinline__ __nv_bfloat16* kv_page(const KvView& kv, uint32_t layer, uint32_t value, uint32_t page, uint32_t head) {
    size_t plane = (size_t)(layer * 2 + value) * kv.pool_pages + page;
    return kv.pool + (plane * kv.kv_heads + head) * PAGE_TOKENS * kv.head_dim;
}

// The row of one token of one head, [head_dim]; the token must lie in the session's pages.
__device__ __forceinline__ __nv_bfloat16* kv_row(const KvView& kv, uint32_t layer, uint32_t value, uint32_t token, uint32_t head) {
    return kv_page(kv, layer, value, kv.table[token / PAGE_TOKENS], head) + (size_t)(token % PAGE_TOKENS) * kv.head_dim;
}
