// Between a session's pages and one contiguous block, bf16 keys then values, each [layers, kv_heads, tokens, head_dim]: what the codecs
// without kernels of their own read and write. The block may lie in page-locked memory of the host. CPU twin: `KvBlock` itself.
#include "kv_pages.cuh"

// Words of N elements; a thread copies one. Grid: words of both sides / 256.
template <typename Word, int N, bool TO_PAGES>
__device__ __forceinline__ void copy(const KvView& kv, uint32_t first_token, uint32_t tokens, Word* block) {
    size_t at = (size_t)blockIdx.x * blockDim.x + threadIdx.x;
    uint32_t words = kv.head_dim / N;
    size_t row = at / words, planes = (size_t)kv.layers * kv.kv_heads;
    if (row >= 2 * planes * tokens) return;
    uint32_t token = row % tokens, plane = row / tokens % planes, value = row / tokens / planes;
    __nv_bfloat16* elements = kv_row(kv, plane / kv.kv_heads, value, first_token + token, plane % kv.kv_heads);
    Word* word = (Word*)elements + at % words;
    if (TO_PAGES) *word = block[at];
    else block[at] = *word;
}

#define BLOCKS_OF(N, Word)                                                                                                            \
    extern "C" __global__ void block_from_pages_##N(KvView kv, uint32_t first_token, uint32_t tokens, Word* block) {                   \
        copy<Word, N, false>(kv, first_token, tokens, block);                                                                         \
    }                                                                                                                                 \
    extern "C" __global__ void block_to_pages_##N(KvView kv, uint32_t first_token, uint32_t tokens, Word* block) {                     \
        copy<Word, N, true>(kv, first_token, tokens, block);                                                                          \
    }
BLOCKS_OF(8, uint4)
BLOCKS_OF(1, uint16_t)
