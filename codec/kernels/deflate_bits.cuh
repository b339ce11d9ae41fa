// Symbols of a block to bits, and the table before them.
#pragma once
#include "deflate_runs.cuh"

__constant__ uint8_t LENGTH_ORDER[19] = {16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15};

// Puts the `bits` low bits of `value`, at most 32, to bit `at`.
__device__ void put(uint32_t* out, uint32_t at, uint32_t value, uint32_t bits) {
    uint64_t shifted = (uint64_t)value << (at & 31);
    atomicOr(&out[at >> 5], (uint32_t)shifted);
    if ((at & 31) + bits > 32) atomicOr(&out[(at >> 5) + 1], (uint32_t)(shifted >> 32));
}

// A symbol of the code that codes lengths; `symbol` NEVER where a repeat before covers the place.
struct Repeat {
    uint32_t symbol, extra, extra_bits;
};

// What place i of the lengths is coded as.
__device__ Repeat repeat_at(const Shared& s, uint32_t i, uint32_t places) {
    uint32_t start = 0, end = places;
    for (uint32_t word = 0; word < 10; word++) {
        uint32_t changes = s.changes[word];
        uint32_t until = word < i / 32 ? changes : word == i / 32 ? changes & ((2u << (i & 31)) - 1) : 0;
        if (until) start = word * 32 + 31 - __clz(until);
        uint32_t behind = changes & ~until;
        if (word >= i / 32 && behind && end == places) end = min(places, word * 32 + __ffs(behind) - 1);
    }
    uint32_t length = s.lengths[i], at = i - start, run = end - start;
    if (length > 0 && at == 0) return {length, 0, 0};
    if (length > 0) at--, run--;
    uint32_t most = length > 0 ? 6 : 138, group = at / most * most, taken = min(most, run - group);
    if (taken < 3) return {length, 0, 0};
    if (at != group) return {NEVER, 0, 0};
    if (length > 0) return {16, taken - 3, 2};
    return taken <= 10 ? Repeat{17, taken - 3, 3} : Repeat{18, taken - 11, 7};
}

// A dynamic block's table as it will be written.
struct Header {
    Repeat repeats[2]; // of this thread's places
    uint32_t literals, used, bits;
};

// Codes the lengths of literals and of the one distance.
__device__ Header code_header(bool has_runs, Shared& s) {
    uint32_t warp = threadIdx.x / 32, lane = threadIdx.x & 31, literals = FIRST_LENGTH;
    if (has_runs) {
        uint32_t last = 0;
        for (uint32_t i = FIRST_LENGTH; i < SYMBOLS; i++)
            if (s.lengths[i] > 0) last = i;
        literals = last + 1;
    }
    uint32_t places = literals + 1;
    __syncthreads();
    if (threadIdx.x == 0) s.lengths[literals] = has_runs;
    if (threadIdx.x < 32) s.length_counts[threadIdx.x] = 0;
    __syncthreads();
    for (uint32_t word = warp; word < 10; word += WARPS) {
        uint32_t i = word * 32 + lane;
        uint32_t changes = __ballot_sync(~0u, i < places && (i == 0 || s.lengths[i] != s.lengths[i - 1]));
        if (lane == 0) s.changes[word] = changes;
    }
    __syncthreads();
    Header header = {{{NEVER, 0, 0}, {NEVER, 0, 0}}, literals, 0, 0};
#pragma unroll
    for (uint32_t k = 0; k < 2; k++) {
        uint32_t i = threadIdx.x * 2 + k;
        if (i < places) header.repeats[k] = repeat_at(s, i, places);
        if (header.repeats[k].symbol != NEVER) atomicAdd(&s.length_counts[header.repeats[k].symbol], 1);
    }
    __syncthreads();
    code_lengths<THREADS>(s.length_counts, 19, 7, s.tree, s.length_lengths);
    if (threadIdx.x < 32) assign_words(s.length_lengths, 19, s.next, s.length_words);
    __syncthreads();
    header.used = 4;
    for (uint32_t i = 4; i < 19; i++)
        if (s.length_lengths[LENGTH_ORDER[i]] > 0) header.used = i + 1;
    uint32_t mine = 0;
#pragma unroll
    for (uint32_t k = 0; k < 2; k++)
        if (header.repeats[k].symbol != NEVER) mine += s.length_lengths[header.repeats[k].symbol] + header.repeats[k].extra_bits;
    header.bits = 14 + 3 * header.used + sum_of(mine, s.sums);
    return header;
}

__device__ void write_header(const Header& header, uint32_t* out, uint32_t at, Shared& s) {
    if (threadIdx.x == 0) put(out, at, header.literals - FIRST_LENGTH | (header.used - 4) << 10, 14);
    if (threadIdx.x < header.used) put(out, at + 14 + 3 * threadIdx.x, s.length_lengths[LENGTH_ORDER[threadIdx.x]], 3);
    at += 14 + 3 * header.used;
    uint32_t mine = 0;
#pragma unroll
    for (uint32_t k = 0; k < 2; k++)
        if (header.repeats[k].symbol != NEVER) mine += s.length_lengths[header.repeats[k].symbol] + header.repeats[k].extra_bits;
    at += sum_before(mine, s.sums);
#pragma unroll
    for (uint32_t k = 0; k < 2; k++) {
        Repeat repeat = header.repeats[k];
        if (repeat.symbol == NEVER) continue;
        uint32_t word = s.length_words[repeat.symbol], bits = word >> 16;
        put(out, at, (word & 0xffff) | repeat.extra << bits, bits + repeat.extra_bits);
        at += bits + repeat.extra_bits;
    }
}

// Bits of one token: value, count. `distance_bits` are those of the one distance, all 0.
__device__ uint2 token_bits(const Segment& segment, const Shared& s, uint32_t k, uint32_t token, uint32_t distance_bits) {
    if (token == 0) return {0, 0};
    if (token == 1) {
        uint32_t word = s.words[segment.content[k]];
        return {word & 0xffff, word >> 16};
    }
    uint2 code = length_code(token);
    uint32_t word = s.words[code.x], bits = word >> 16, extra = (token - 3) & ((1u << code.y) - 1);
    return {(word & 0xffff) | extra << bits, bits + code.y + distance_bits};
}

// Codes bytes [start, end) from bit `at` on, and the end of the block behind them; where that ends.
__device__ uint32_t write_symbols(const Segment& segment, uint32_t start, uint32_t end, bool has_runs, uint32_t distance_bits, uint32_t at, Shared& s) {
    // An odd number of words a thread: then the threads of a warp read from different banks.
    uint32_t part = ((((end - start + THREADS - 1) / THREADS + 3) / 4) | 1) * 4;
    uint32_t first = min(end, start + threadIdx.x * part), last = min(end, first + part), mine = 0;
    for (uint32_t k = first; k < last; k++) mine += token_bits(segment, s, k, has_runs ? segment.tokens[k] : 1, distance_bits).y;
    uint32_t place = at + sum_before(mine, s.sums), total = sum_of(mine, s.sums);
    uint32_t word = place >> 5, filled = place & 31;
    uint64_t held = 0;
    for (uint32_t k = first; k < last; k++) {
        uint2 bits = token_bits(segment, s, k, has_runs ? segment.tokens[k] : 1, distance_bits);
        held |= (uint64_t)bits.x << filled;
        filled += bits.y;
        if (filled >= 32) {
            atomicOr(&segment.out[word++], (uint32_t)held);
            held >>= 32;
            filled -= 32;
        }
    }
    if (held) atomicOr(&segment.out[word], (uint32_t)held);
    at += total;
    if (threadIdx.x == 0) put(segment.out, at, s.words[END] & 0xffff, s.words[END] >> 16);
    return at + (s.words[END] >> 16);
}

__device__ void write_stored(const Segment& segment, uint32_t start, uint32_t bytes, uint32_t at) {
    if (threadIdx.x == 0) put(segment.out, at, bytes, 16), put(segment.out, at + 16, bytes ^ 0xffff, 16);
    for (uint32_t k = threadIdx.x; k < bytes; k += THREADS) put(segment.out, at + 32 + 8 * k, segment.content[start + k], 8);
}
