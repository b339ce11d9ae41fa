// Bytes to raw DEFLATE segments (RFC 1951), one thread block per segment; the CPU's twin is stages/deflate.rs with stages/huffman.rs.
//
// A block of literals starts where the statistics of bytes change enough to pay for another table. Of references only runs of a byte are
// looked for: what quantization leaves has hardly any other repeats, and a decoder that works in parallel likes literals best.
#include "deflate_bits.cuh"

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

// Estimated size of a block: its entropy and its header. Thread i has the count of byte i.
__device__ float estimate(uint32_t count, uint32_t total, Shared& s) {
    float mine = count == 0 ? 0 : SYMBOL_BITS - count * __log2f((float)count);
    return sum_of(mine, s.float_sums) + HEADER_BITS + (total == 0 ? 0 : total * __log2f((float)total));
}

// The first break behind `offset`.
__device__ uint32_t first_break(const DeflateJob& job, uint64_t offset) {
    uint32_t low = 0, high = job.break_count;
    while (low < high) {
        uint32_t middle = (low + high) / 2;
        if (job.breaks[middle] <= offset) low = middle + 1; else high = middle;
    }
    return low;
}

// How often bytes [start, end) are this thread's.
__device__ uint32_t count_piece(const Segment& segment, uint32_t start, uint32_t end, Shared& s) {
    __syncthreads();
    s.pieces[threadIdx.x] = 0;
    __syncthreads();
    for (uint32_t k = start + threadIdx.x; k < end; k += THREADS) atomicAdd(&s.pieces[segment.content[k]], 1);
    __syncthreads();
    return s.pieces[threadIdx.x];
}

// Joins neighbouring pieces as long as one table for both is cheaper than two; how many blocks there are.
__device__ uint32_t find_blocks(const DeflateJob& job, const Segment& segment, uint64_t offset, Shared& s) {
    uint32_t blocks = 0, start = 0, joined = 0, block_bytes = 0;
    float block_bits = 0;
    for (uint32_t i = first_break(job, offset); start < segment.bytes; i++) {
        uint64_t at = i < job.break_count ? job.breaks[i] - offset : segment.bytes;
        uint32_t end = (uint32_t)min(at, (uint64_t)segment.bytes);
        bool is_last = end == segment.bytes;
        if (is_last && blocks == 0) break;
        if (end <= start || (!is_last && end - start < MIN_PIECE)) continue;
        uint32_t count = count_piece(segment, start, end, s), bytes = end - start;
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
