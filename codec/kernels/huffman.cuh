// Optimal prefix codes of limited length by one thread block, from counts of symbols; the CPU's twin is stages/huffman.rs.
#pragma once
#include <cstdint>

constexpr uint32_t MAX_SYMBOLS = 288;
constexpr uint32_t NEVER = ~0u;

struct __align__(16) Tree {
    union {
        uint32_t keys[MAX_SYMBOLS];    // while sorting: count << 9 | symbol, NEVER where the count is 0
        uint32_t parents[MAX_SYMBOLS]; // then, of inner nodes: an ancestor, the way to it << 16
    };
    uint32_t leaves[MAX_SYMBOLS + 2]; // weights, lightest first, then NEVER
    uint16_t symbols[MAX_SYMBOLS];    // of the leaves
    uint32_t inner[MAX_SYMBOLS];      // weights of inner nodes in the order of their making, then NEVER
    uint16_t leaf_parents[MAX_SYMBOLS];
};

// Sorts symbols by count; how many occur. All threads.
template <uint32_t THREADS>
__device__ __forceinline__ uint32_t sort_leaves(const uint32_t* counts, uint32_t symbols, Tree& tree) {
    uint32_t used = 0;
    for (uint32_t i = threadIdx.x; i < MAX_SYMBOLS; i += THREADS)
        tree.keys[i] = i < symbols && counts[i] > 0 ? counts[i] << 9 | i : NEVER;
    for (uint32_t i = threadIdx.x; i < MAX_SYMBOLS + 2; i += THREADS) tree.leaves[i] = NEVER;
    __syncthreads();
    for (uint32_t first = 0; first < MAX_SYMBOLS; first += THREADS) {
        uint32_t i = first + threadIdx.x, key = i < MAX_SYMBOLS ? tree.keys[i] : NEVER;
        used += __syncthreads_count(key != NEVER);
        if (key == NEVER) continue;
        uint32_t rank = 0;
        for (uint32_t j = 0; j < symbols; j += 4) {
            uint4 others = *reinterpret_cast<const uint4*>(tree.keys + j);
            rank += (others.x < key) + (others.y < key) + (others.z < key) + (others.w < key);
        }
        tree.leaves[rank] = key >> 9;
        tree.symbols[rank] = key & 511;
    }
    __syncthreads();
    return used;
}

// Huffman's algorithm with two queues: leaves, and inner nodes, which are made in the order of their weight. One thread.
__device__ __forceinline__ void join(Tree& tree, uint32_t used) {
    uint32_t leaf = 0, inner = 0;
    for (uint32_t made = 0; made + 1 < used; made++) {
        uint32_t leaf0 = tree.leaves[leaf], leaf1 = tree.leaves[leaf + 1];
        uint32_t inner0 = tree.inner[inner], inner1 = tree.inner[inner + 1];
        uint32_t taken = leaf1 <= inner0 ? 2 : leaf0 <= inner1 ? 1 : 0; // leaves, of the two lightest nodes
        uint32_t weight = taken == 2 ? leaf0 + leaf1 : taken == 1 ? leaf0 + inner0 : inner0 + inner1;
        if (taken >= 1) tree.leaf_parents[leaf] = made;
        if (taken == 2) tree.leaf_parents[leaf + 1] = made;
        if (taken <= 1) tree.parents[inner] = made | 1 << 16;
        if (taken == 0) tree.parents[inner + 1] = made | 1 << 16;
        leaf += taken;
        inner += 2 - taken;
        tree.inner[made] = weight;
    }
}

// Inner nodes' ways to the root, by doubling; weights that fit u32 make no tree deeper than 64. All threads.
template <uint32_t THREADS>
__device__ __forceinline__ void climb(Tree& tree, uint32_t used) {
    static_assert(2 * THREADS >= MAX_SYMBOLS, "two nodes a thread");
    if (threadIdx.x == 0) tree.parents[used - 2] = used - 2;
    __syncthreads();
    for (uint32_t round = 0; round < 6; round++) {
        uint32_t next[2];
#pragma unroll
        for (uint32_t k = 0; k < 2; k++) {
            uint32_t i = threadIdx.x + k * THREADS;
            uint32_t way = i < used - 1 ? tree.parents[i] : 0, on = tree.parents[way & 0xffff];
            next[k] = (on & 0xffff) | ((way >> 16) + (on >> 16)) << 16;
        }
        __syncthreads();
#pragma unroll
        for (uint32_t k = 0; k < 2; k++) {
            uint32_t i = threadIdx.x + k * THREADS;
            if (i < used - 1) tree.parents[i] = next[k];
        }
        __syncthreads();
    }
}

// Lengths of the words, none above `limit`; 0 for symbols that do not occur. At least two must. All threads.
template <uint32_t THREADS>
__device__ __forceinline__ void code_lengths(const uint32_t* counts, uint32_t symbols, uint32_t limit, Tree& tree, uint8_t* lengths) {
    uint32_t used = sort_leaves<THREADS>(counts, symbols, tree);
    for (uint32_t i = threadIdx.x; i < symbols; i += THREADS) lengths[i] = 0;
    for (;;) {
        for (uint32_t i = threadIdx.x; i < MAX_SYMBOLS; i += THREADS) tree.inner[i] = NEVER;
        __syncthreads();
        if (threadIdx.x == 0) join(tree, used);
        climb<THREADS>(tree, used);
        uint32_t longest = 0;
        for (uint32_t i = threadIdx.x; i < used; i += THREADS) {
            uint32_t length = (tree.parents[tree.leaf_parents[i]] >> 16) + 1;
            lengths[tree.symbols[i]] = length;
            longest = max(longest, length);
            // Flatter counts give shorter words, and stay in order. Should these do, nobody needs them any more.
            tree.leaves[i] = tree.leaves[i] / 2 + 1;
        }
        if (!__syncthreads_or(longest > limit)) return;
    }
}

// Canonical words, first bit lowest, their length << 16. The first warp.
__device__ __forceinline__ void assign_words(const uint8_t* lengths, uint32_t symbols, uint32_t* next, uint32_t* words) {
    uint32_t lane = threadIdx.x, before = (1u << lane) - 1;
    if (lane < 16) next[lane] = 0;
    __syncwarp();
    for (uint32_t i = lane; i < (symbols + 31) / 32 * 32; i += 32) {
        uint32_t length = i < symbols ? lengths[i] : 0, same = __match_any_sync(~0u, length);
        if ((same & before) == 0) next[length] += __popc(same);
        __syncwarp();
    }
    uint32_t mine = lane < 16 ? next[lane] : 0, word = 0;
    __syncwarp();
    for (uint32_t length = 1; length <= 15; length++) {
        word <<= 1;
        if (lane == length) next[length] = word;
        word += __shfl_sync(~0u, mine, length);
    }
    __syncwarp();
    for (uint32_t i = lane; i < (symbols + 31) / 32 * 32; i += 32) {
        uint32_t length = i < symbols ? lengths[i] : 0, same = __match_any_sync(~0u, length);
        uint32_t own = next[length] + __popc(same & before);
        __syncwarp();
        if (i < symbols) words[i] = length == 0 ? 0 : __brev(own) >> (32 - length) | length << 16;
        if ((same & before) == 0) next[length] += __popc(same);
        __syncwarp();
    }
}
