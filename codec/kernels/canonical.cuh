// Canonical Huffman codes as DEFLATE has them: from code lengths to tables that a decoder looks symbols up in.
#pragma once
#include <cstdint>

constexpr uint32_t LITERAL_BITS = 11;
constexpr uint32_t DISTANCE_BITS = 9;
constexpr uint32_t NO_SYMBOL = 511 | 1 << 16; // bits that no code starts with

// A code by length of its words. Codes are compared as 15 bits, first bit highest.
struct Canonical {
    uint32_t below[16];  // first value that no word of this length or shorter starts
    uint32_t first[16];  // value of the first word of this length
    uint32_t offset[16]; // its place in `sorted`
    uint16_t sorted[288]; // symbols by length, then by number
};

// Entry of the literal table. One or two literals: them, bits of the first << 16, bits of all << 20, their number << 30.
// Any other symbol: it, its bits << 16. 0 for words longer than the table's index.
__device__ __forceinline__ uint32_t literal_entry(uint32_t literal, uint32_t bits) { return literal | bits << 16 | bits << 20 | 1u << 30; }
__device__ __forceinline__ uint32_t first_bits(uint32_t entry) { return (entry >> 16) & 15; }
__device__ __forceinline__ uint32_t all_bits(uint32_t entry) { return (entry >> 20) & 15; }
__device__ __forceinline__ bool is_long(uint32_t entry) { return entry == 0; }

// The symbol that `bits` (first bit lowest) start with, its length << 16; only lengths above `shortest`.
__device__ __forceinline__ uint32_t find(const Canonical& code, uint64_t bits, uint32_t shortest) {
    uint32_t value = __brev((uint32_t)bits) >> 17;
    for (uint32_t length = shortest + 1; length <= 15; length++)
        if (value < code.below[length])
            return code.sorted[code.offset[length] + ((value - code.first[length]) >> (15 - length))] | length << 16;
    return NO_SYMBOL;
}

// Fills the table of the code that codes lengths; `mine` is the length of the word of symbol `lane`. False unless it is complete. One warp.
__device__ __forceinline__ bool fill_length_table(uint32_t mine, uint16_t* table) {
    uint32_t lane = threadIdx.x & 31, code = 0, word = 0;
    int left = 1;
    for (uint32_t length = 1; length <= 7; length++) {
        uint32_t same = __ballot_sync(~0u, mine == length);
        left = 2 * left - __popc(same);
        if (left < 0) return false;
        code <<= 1;
        if (mine == length) word = code + __popc(same & ((1u << lane) - 1));
        code += __popc(same);
    }
    if (left != 0) return false;
    if (mine > 0)
        for (uint32_t i = __brev(word) >> (32 - mine); i < 128; i += 1u << mine) table[i] = lane | mine << 8;
    return true;
}

// Sorts the symbols and finds the first word of every length. False for codes that inflate refuses: over-subscribed ones, and incomplete
// ones but for a single word of 1 bit and, where `may_be_empty`, none at all. One warp.
__device__ __forceinline__ bool sort_symbols(const uint8_t* lengths, uint32_t count, bool may_be_empty, Canonical& code) {
    uint32_t lane = threadIdx.x & 31, before = (1u << lane) - 1;
    if (lane < 16) code.offset[lane] = 0;
    __syncwarp();
    for (uint32_t i = lane; i < (count + 31) / 32 * 32; i += 32) {
        uint32_t length = i < count ? lengths[i] : 0, same = __match_any_sync(~0u, length);
        if ((same & before) == 0) code.offset[length] += __popc(same);
        __syncwarp();
    }
    uint32_t mine = lane < 16 ? code.offset[lane] : 0, word = 0, place = 0, longest = 0;
    int left = 1;
    for (uint32_t length = 1; length <= 15; length++) {
        uint32_t words = __shfl_sync(~0u, mine, length);
        left = 2 * left - (int)words;
        if (left < 0) return false;
        word <<= 1;
        if (lane == length) {
            code.first[length] = word << (15 - length);
            code.below[length] = (word + words) << (15 - length);
            code.offset[length] = place;
        }
        word += words;
        place += words;
        if (words > 0) longest = length;
    }
    if (left > 0 && !(longest == 1 || (may_be_empty && longest == 0))) return false;
    __syncwarp();
    for (uint32_t i = lane; i < (count + 31) / 32 * 32; i += 32) {
        uint32_t length = i < count ? lengths[i] : 0, same = __match_any_sync(~0u, length);
        uint32_t at = code.offset[length] + __popc(same & before);
        __syncwarp();
        if (length > 0) code.sorted[at] = i;
        if ((same & before) == 0 && length > 0) code.offset[length] += __popc(same);
        __syncwarp();
    }
    // Back to where each length starts.
    uint32_t own = lane > 0 && lane < 16 ? code.offset[lane] - mine : 0;
    __syncwarp();
    if (lane < 16) code.offset[lane] = own;
    return true;
}

// The symbol of a table's index, its length << 16, or 0 for a longer word.
template <uint32_t BITS>
__device__ __forceinline__ uint32_t symbol_of(const Canonical& code, const uint32_t* below, uint32_t index) {
    uint32_t value = __brev(index) >> 17, length = 1;
#pragma unroll
    for (uint32_t i = 0; i < BITS; i++) length += value >= below[i];
    if (length > BITS) return 0;
    return code.sorted[code.offset[length] + ((value - code.first[length]) >> (15 - length))] | length << 16;
}

template <uint32_t THREADS>
__device__ __forceinline__ void fill_literals(const Canonical& code, uint32_t* table) {
    uint32_t below[LITERAL_BITS];
#pragma unroll
    for (uint32_t i = 0; i < LITERAL_BITS; i++) below[i] = code.below[i + 1];
    for (uint32_t i = threadIdx.x; i < 1u << LITERAL_BITS; i += THREADS) {
        uint32_t symbol = symbol_of<LITERAL_BITS>(code, below, i);
        bool is_literal = symbol != 0 && (symbol & 511) < 256;
        table[i] = is_literal ? literal_entry(symbol & 255, symbol >> 16) : symbol;
    }
}

// Puts a second literal into entries whose index has room for it. All threads; a barrier has to be before and behind.
template <uint32_t THREADS>
__device__ __forceinline__ void pair_literals(uint32_t* table) {
    uint32_t entries[(1 << LITERAL_BITS) / THREADS];
#pragma unroll
    for (uint32_t k = 0; k < (1 << LITERAL_BITS) / THREADS; k++) {
        uint32_t i = k * THREADS + threadIdx.x, entry = table[i], bits = first_bits(entry), second = table[i >> bits];
        // The bits above the index are not known: a word that needs them is no match.
        bool fits = entry >> 30 != 0 && second >> 30 != 0 && bits + first_bits(second) <= LITERAL_BITS;
        entries[k] = fits ? (entry & 0xf00ff) | (second & 255) << 8 | (bits + first_bits(second)) << 20 | 2u << 30 : entry;
    }
    __syncthreads();
#pragma unroll
    for (uint32_t k = 0; k < (1 << LITERAL_BITS) / THREADS; k++) table[k * THREADS + threadIdx.x] = entries[k];
}

// Entries of the distance table: symbol, bits << 9; 0 for longer words.
template <uint32_t THREADS>
__device__ __forceinline__ void fill_distances(const Canonical& code, uint16_t* table) {
    uint32_t below[DISTANCE_BITS];
#pragma unroll
    for (uint32_t i = 0; i < DISTANCE_BITS; i++) below[i] = code.below[i + 1];
    for (uint32_t i = threadIdx.x; i < 1u << DISTANCE_BITS; i += THREADS) {
        uint32_t symbol = symbol_of<DISTANCE_BITS>(code, below, i);
        table[i] = (symbol & 511) | (symbol >> 16) << 9;
    }
}
