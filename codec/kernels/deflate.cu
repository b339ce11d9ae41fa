// Bytes to raw DEFLATE segments (RFC 1951), one thread block per segment; the CPU's twin is stages/deflate.rs with stages/huffman.rs.
//
// A block of literals starts where the statistics of bytes change enough to pay for another table. Of references only runs of a byte are
// looked for: what quantization leaves has hardly any other repeats, and a decoder that works in parallel likes literals best.
#include "huffman.cuh"

constexpr uint32_t THREADS = 256;
constexpr uint32_t WARPS = THREADS / 32;
constexpr uint32_t MAX_SEGMENT = 32768;
constexpr uint32_t MIN_PIECE = 256;  // shorter pieces never get a table of their own
constexpr uint32_t MAX_BLOCKS = MAX_SEGMENT / MIN_PIECE + 1;
constexpr uint32_t END = 256, FIRST_LENGTH = 257, SYMBOLS = 286;
constexpr uint32_t RUN_PART = 256;   // runs are cut at its multiples
constexpr float RUN_BITS = 12;       // that a reference has to save
constexpr uint32_t MIN_RUN = 4;
// Estimated bits of a block's header, and of each symbol in its table.
constexpr float HEADER_BITS = 90, SYMBOL_BITS = 3.5f;
enum Kind : uint32_t { STORED, FIXED, DYNAMIC };

struct DeflateJob {
    const uint8_t* payload;  // [payload_bytes]
    const uint32_t* breaks;  // [break_count]: offsets, increasing, where statistics may change
    uint8_t* slots;          // [segments, slot_bytes]: each segment at the start of its own
    uint32_t* lengths;       // [segments]: bytes of them
    uint64_t payload_bytes;
    uint32_t segment_bytes, segments, break_count, slot_bytes;
};

__constant__ uint8_t LENGTH_ORDER[19] = {16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15};

struct Shared {
    union {
        Tree tree;
        uint32_t pieces[256];        // while blocks are looked for: counts of the next piece's bytes
        uint32_t words[MAX_SYMBOLS]; // once the tree is done with
    };
    uint32_t counts[MAX_SYMBOLS]; // of the block's symbols
    uint8_t lengths[MAX_SYMBOLS + 32]; // of literals and lengths, then the one of distances
    uint8_t min_runs[256];
    uint32_t block_ends[MAX_BLOCKS];
    uint32_t changes[10];         // bits: a length other than the one before
    uint32_t length_counts[32];
    uint8_t length_lengths[32];
    uint32_t length_words[32];
    uint32_t next[16];
    uint32_t sums[2 * WARPS];
    float float_sums[2 * WARPS];
};

// What a segment is made of; all in shared memory.
struct Segment {
    const uint8_t* content; // [bytes]
    uint8_t* tokens;        // [bytes]: 1 a literal, above that the length of a run, 0 within a run
    uint32_t* out;          // bits, lowest first, 0 where none was put
    uint32_t bytes;
};

// Sum over all threads.
template <typename T>
__device__ T sum_of(T value, T* sums) {
    for (uint32_t step = 16; step > 0; step /= 2) value += __shfl_xor_sync(~0u, value, step);
    __syncthreads();
    if ((threadIdx.x & 31) == 0) sums[threadIdx.x / 32] = value;
    __syncthreads();
    T total = 0;
    for (uint32_t i = 0; i < WARPS; i++) total += sums[i];
    return total;
}

// Sum over the threads before this one.
__device__ uint32_t sum_before(uint32_t value, uint32_t* sums) {
    uint32_t lane = threadIdx.x & 31, warp = threadIdx.x / 32, sum = value;
    for (uint32_t step = 1; step < 32; step *= 2) {
        uint32_t other = __shfl_up_sync(~0u, sum, step);
        if (lane >= step) sum += other;
    }
    __syncthreads();
    if (lane == 31) sums[warp] = sum;
    __syncthreads();
    for (uint32_t i = 0; i < warp; i++) sum += sums[i];
    return sum - value;
}

// Estimated size of a block: its entropy and its header. Thread i has the count of byte i.
__device__ float estimate(uint32_t count, uint32_t total, Shared& s) {
    float mine = count == 0 ? 0 : SYMBOL_BITS - count * __log2f((float)count);
    return sum_of(mine, s.float_sums) + HEADER_BITS + (total == 0 ? 0 : total * __log2f((float)total));
}

// Joins neighbouring pieces as long as one table for both is cheaper than two; how many blocks there are.
__device__ uint32_t find_blocks(const DeflateJob& job, const Segment& segment, uint64_t offset, Shared& s) {
    uint32_t low = 0, high = job.break_count;
    while (low < high) {
        uint32_t middle = (low + high) / 2;
        if (job.breaks[middle] <= offset) low = middle + 1; else high = middle;
    }
    uint32_t blocks = 0, start = 0, joined = 0, block_bytes = 0;
    float block_bits = 0;
    for (uint32_t i = low; start < segment.bytes; i++) {
        uint64_t at = i < job.break_count ? job.breaks[i] - offset : segment.bytes;
        uint32_t end = (uint32_t)min(at, (uint64_t)segment.bytes);
        bool is_last = end == segment.bytes;
        if (is_last && blocks == 0) break;
        if (end <= start || (!is_last && end - start < MIN_PIECE)) continue;
        __syncthreads();
        s.pieces[threadIdx.x] = 0;
        __syncthreads();
        for (uint32_t k = start + threadIdx.x; k < end; k += THREADS) atomicAdd(&s.pieces[segment.content[k]], 1);
        __syncthreads();
        uint32_t count = s.pieces[threadIdx.x], bytes = end - start;
        float piece_bits = estimate(count, bytes, s);
        float both_bits = blocks == 0 ? 0 : estimate(joined + count, block_bytes + bytes, s);
        if (blocks > 0 && both_bits <= block_bits + piece_bits) {
            joined += count;
            block_bytes += bytes;
            block_bits = both_bits;
        } else {
            joined = count;
            block_bytes = bytes;
            block_bits = piece_bits;
            blocks++;
        }
        if (threadIdx.x == 0) s.block_ends[blocks - 1] = end;
        start = end;
    }
    if (blocks == 0) {
        if (threadIdx.x == 0) s.block_ends[0] = segment.bytes;
        blocks = 1;
    }
    __syncthreads();
    return blocks;
}

// Number of a run's length code, and how many extra bits it has.
__device__ uint2 length_code(uint32_t length) {
    uint32_t over = length - 3, extra = over < 8 ? 0 : 29 - __clz(over);
    return {FIRST_LENGTH + (extra << 2) + (over >> extra), extra};
}

__device__ void clear_counts(Shared& s) {
    __syncthreads();
    for (uint32_t i = threadIdx.x; i < MAX_SYMBOLS; i += THREADS) s.counts[i] = i == END;
    __syncthreads();
}

// Length of the run that place `lane` of word `word` lies in, and the place in it. `masks` say where a byte equals the one before.
__device__ uint2 run_at(const uint32_t* masks, uint32_t word, uint32_t lane) {
    uint32_t start = 0, end = RUN_PART, at = word * 32 + lane;
#pragma unroll
    for (uint32_t i = 0; i < RUN_PART / 32; i++) {
        uint32_t unequal = ~masks[i];
        uint32_t below = i < word ? unequal : i == word ? unequal & ((1u << lane) - 1) : 0;
        if (below) start = i * 32 + 32 - __clz(below);
        uint32_t above = i > word ? unequal : i == word ? unequal & ~((2u << lane) - 1) : 0;
        if (above && end == RUN_PART) end = i * 32 + __ffs(above) - 1;
    }
    return {end - start, at - start};
}

// Sets the tokens of bytes [start, end); whether there are runs. A warp takes RUN_PART bytes at a time.
__device__ bool find_runs(const Segment& segment, uint32_t start, uint32_t end, const Shared& s) {
    uint32_t lane = threadIdx.x & 31, has_runs = 0;
    for (uint32_t part = start / RUN_PART + threadIdx.x / 32; part * RUN_PART < end; part += WARPS) {
        uint32_t masks[RUN_PART / 32], long_runs = 0, at = part * RUN_PART + lane;
#pragma unroll
        for (uint32_t i = 0; i < RUN_PART / 32; i++) {
            uint32_t k = at + i * 32;
            bool is_equal = k % RUN_PART != 0 && k >= start && k < end && segment.content[k] == segment.content[k - 1];
            masks[i] = __ballot_sync(~0u, is_equal);
        }
#pragma unroll
        for (uint32_t i = 0; i < RUN_PART / 32; i++) {
            uint32_t next = i + 1 < RUN_PART / 32 ? masks[i + 1] : 0;
            long_runs |= masks[i] & __funnelshift_r(masks[i], next, 1) & __funnelshift_r(masks[i], next, 2) & __funnelshift_r(masks[i], next, 3);
        }
#pragma unroll
        for (uint32_t i = 0; i < RUN_PART / 32; i++) {
            uint32_t k = at + i * 32, token = 1;
            if (long_runs && (masks[i] >> lane & 1)) {
                uint2 run = run_at(masks, i, lane);
                if (run.x >= s.min_runs[segment.content[k]]) token = run.y == 0 ? run.x : 0;
            }
            has_runs |= token != 1;
            if (k >= start && k < end) segment.tokens[k] = token;
        }
    }
    return __syncthreads_or(has_runs);
}

// Counts the symbols of bytes [start, end), with runs where they pay; whether there are any.
__device__ bool count_symbols(const Segment& segment, uint32_t start, uint32_t end, Shared& s) {
    clear_counts(s);
    for (uint32_t k = start + threadIdx.x; k < end; k += THREADS) atomicAdd(&s.counts[segment.content[k]], 1);
    __syncthreads();
    float share = (float)s.counts[threadIdx.x] / (end - start);
    s.min_runs[threadIdx.x] = share == 0 ? 255 : min(max((uint32_t)ceilf(RUN_BITS / max(-__log2f(share), 1.0f)), MIN_RUN), 255u);
    __syncthreads();
    if (!find_runs(segment, start, end, s)) return false;
    clear_counts(s);
    for (uint32_t k = start + threadIdx.x; k < end; k += THREADS) {
        uint32_t token = segment.tokens[k];
        if (token == 1) atomicAdd(&s.counts[segment.content[k]], 1);
        else if (token > 1) atomicAdd(&s.counts[length_code(token).x], 1);
    }
    __syncthreads();
    return true;
}

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

__device__ uint32_t fixed_length(uint32_t symbol) { return symbol < 144 ? 8 : symbol < 256 ? 9 : symbol < 280 ? 7 : 8; }

// Bits of the block's symbols with the code at hand and with the fixed one.
__device__ uint2 body_bits(Shared& s, bool has_runs) {
    uint32_t own = 0, fixed = 0;
    for (uint32_t i = threadIdx.x; i < SYMBOLS; i += THREADS) {
        uint32_t count = s.counts[i];
        if (i >= FIRST_LENGTH && !has_runs) continue;
        uint32_t extra = i < 265 || i >= 285 ? 0 : (i - 261) / 4;
        own += count * (s.lengths[i] + (i >= FIRST_LENGTH ? extra + 1 : 0));
        fixed += count * (fixed_length(i) + (i >= FIRST_LENGTH ? extra + 5 : 0));
    }
    return {sum_of(own, s.sums), sum_of(fixed, s.sums + WARPS)};
}

// One block of bytes [start, end) from bit `at` on; where it ends, or NEVER where that is behind `limit`.
__device__ uint32_t write_block(const Segment& segment, uint32_t start, uint32_t end, uint32_t at, uint32_t limit, Shared& s) {
    bool has_runs = count_symbols(segment, start, end, s);
    code_lengths<THREADS>(s.counts, SYMBOLS, 15, s.tree, s.lengths);
    uint2 body = body_bits(s, has_runs);
    Header header = code_header(has_runs, s);
    uint32_t is_last = end == segment.bytes, stored_at = (at + 3 + 7) & ~7u;
    uint32_t dynamic_bits = 3 + header.bits + body.x, fixed_bits = 3 + body.y;
    uint32_t stored_bits = stored_at - at + 32 + 8 * (end - start), bits = min(min(dynamic_bits, fixed_bits), stored_bits);
    if (at + bits > limit) return NEVER;
    uint32_t kind = bits == dynamic_bits ? DYNAMIC : bits == fixed_bits ? FIXED : STORED;
    if (threadIdx.x == 0) put(segment.out, at, is_last | kind << 1, 3);
    if (kind == STORED) {
        write_stored(segment, start, end - start, stored_at);
        return at + bits;
    }
    if (kind == DYNAMIC) write_header(header, segment.out, at + 3, s);
    __syncthreads();
    if (kind == FIXED)
        for (uint32_t i = threadIdx.x; i < MAX_SYMBOLS; i += THREADS) s.lengths[i] = fixed_length(i);
    __syncthreads();
    if (threadIdx.x < 32) assign_words(s.lengths, kind == FIXED ? MAX_SYMBOLS : header.literals, s.next, s.words);
    __syncthreads();
    at += 3 + (kind == DYNAMIC ? header.bits : 0);
    return write_symbols(segment, start, end, has_runs, kind == FIXED ? 5 : 1, at, s);
}

__device__ void load(const uint8_t* from, uint8_t* to, uint32_t bytes) {
    uint32_t wide = (uintptr_t)from % 16 == 0 ? bytes / 16 : 0;
    for (uint32_t i = threadIdx.x; i < wide; i += THREADS) reinterpret_cast<uint4*>(to)[i] = reinterpret_cast<const uint4*>(from)[i];
    for (uint32_t i = wide * 16 + threadIdx.x; i < bytes; i += THREADS) to[i] = from[i];
}

// Grid [segments], THREADS threads; dynamic shared memory: three times slot_bytes, a multiple of 16 that is segment_bytes + 16 at least.
extern "C" __global__ void __launch_bounds__(THREADS) deflate_segments(DeflateJob job) {
    __shared__ __align__(16) Shared s;
    extern __shared__ __align__(16) uint8_t dynamic[];
    uint64_t offset = (uint64_t)blockIdx.x * job.segment_bytes;
    uint32_t bytes = (uint32_t)min((uint64_t)job.segment_bytes, job.payload_bytes - offset);
    Segment segment = {dynamic, dynamic + job.slot_bytes, reinterpret_cast<uint32_t*>(dynamic + 2 * job.slot_bytes), bytes};
    load(job.payload + offset, dynamic, bytes);
    for (uint32_t i = threadIdx.x; i < job.slot_bytes / 4; i += THREADS) segment.out[i] = 0;
    __syncthreads();
    uint32_t blocks = find_blocks(job, segment, offset, s), at = 0, start = 0;
    for (uint32_t i = 0; i < blocks && at != NEVER; i++) {
        uint32_t end = s.block_ends[i];
        at = write_block(segment, start, end, at, 8 * bytes, s);
        start = end;
    }
    __syncthreads();
    uint32_t coded = at == NEVER ? bytes : (at + 7) / 8;
    bool is_stored = coded >= bytes;
    if (is_stored) coded = bytes;
    const uint8_t* from = is_stored ? segment.content : reinterpret_cast<const uint8_t*>(segment.out);
    uint4* slot = reinterpret_cast<uint4*>(job.slots + (size_t)blockIdx.x * job.slot_bytes);
    for (uint32_t i = threadIdx.x; i < (coded + 15) / 16; i += THREADS) slot[i] = reinterpret_cast<const uint4*>(from)[i];
    if (threadIdx.x == 0) job.lengths[blockIdx.x] = coded;
}

struct CompactJob {
    const uint8_t* slots;    // [segments, slot_bytes]
    const uint32_t* lengths; // [segments]
    uint8_t* coded;          // [sum of lengths], 4-byte aligned
    uint32_t* ends;          // [segments]: running sums of lengths
    uint32_t segments, slot_bytes;
};

// Moves every segment behind the one before. Grid [segments], THREADS threads.
extern "C" __global__ void __launch_bounds__(THREADS) compact_segments(CompactJob job) {
    __shared__ uint32_t sums[WARPS];
    uint32_t before = 0, bytes = job.lengths[blockIdx.x];
    for (uint32_t i = threadIdx.x; i < blockIdx.x; i += THREADS) before += job.lengths[i];
    uint32_t start = sum_of(before, sums), end = start + bytes;
    if (threadIdx.x == 0) job.ends[blockIdx.x] = end;
    const uint8_t* slot = job.slots + (size_t)blockIdx.x * job.slot_bytes;
    const uint32_t* words = reinterpret_cast<const uint32_t*>(slot);
    // Whole words of the output, each from two of the slot; single bytes at both ends.
    uint32_t first = min(end, (start + 3) & ~3u), last = max(first, end & ~3u), shift = (first - start) * 8;
    uint32_t* to = reinterpret_cast<uint32_t*>(job.coded + first);
    for (uint32_t i = threadIdx.x; i < (last - first) / 4; i += THREADS) to[i] = shift ? __funnelshift_r(words[i], words[i + 1], shift) : words[i];
    if (threadIdx.x < first - start) job.coded[start + threadIdx.x] = slot[threadIdx.x];
    if (threadIdx.x < end - last) job.coded[last + threadIdx.x] = slot[last - start + threadIdx.x];
}
