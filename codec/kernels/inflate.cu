// Raw DEFLATE segments (RFC 1951) to bytes, one thread block per segment; the CPU's twin is stages/deflate.rs.
//
// A Huffman stream has to be decoded from its start, but a decoder that starts anywhere falls into step with it after a few symbols.
// So every thread decodes SPAN bits from where it guesses a symbol to start; then each compares its start with the end that its
// predecessor found, and decodes again where they differ, until the chain holds. Then places in the output are known and are written to;
// references that may reach what another thread writes, and long ones, are left to the first warp. It also decodes, one symbol after the
// other, whatever stops the threads: ends of blocks, damage, very long output.
#include "inflate_spans.cuh"

constexpr uint32_t ALONE_SYMBOLS = 32; // decoded one by one before the threads try together again
constexpr uint32_t FLUSH_BYTES = 8192; // of a stored block that are copied at a time

struct InflateJob {
    const uint8_t* coded;  // [ends[segments - 1]]: the segments one after the other
    const uint32_t* ends;  // [segments]
    uint8_t* payload;      // [payload_bytes]
    uint32_t* bad;         // lowest segment that is not valid, ~0 where all are
    uint64_t payload_bytes;
    uint32_t segment_bytes, segments;
    uint32_t window_words; // of coded bytes in shared memory, SPARE_WORDS at least
    uint32_t history_mask; // ~0 where a whole segment fits
};

__constant__ uint8_t LENGTH_ORDER[19] = {16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15};

enum Kind : uint32_t { STORED, FIXED, DYNAMIC, INVALID };
enum Outcome : uint32_t { PAUSED, ENDED, FAILED };

// Length code and what it codes: lengths of both codes. The first warp, all lanes alike.
__device__ bool read_lengths(const Segment& segment, Reader& reader, Shared& s) {
    uint32_t lane = threadIdx.x;
    reader.refill(segment);
    uint32_t literals = reader.take(5) + 257, distances = reader.take(5) + 1, used = reader.take(4) + 4;
    if (literals > LAST_LENGTH + 1 || distances > LAST_DISTANCE + 1) return false;
    uint32_t mine = 0;
    for (uint32_t i = 0; i < used; i++) {
        reader.refill(segment);
        uint32_t bits = reader.take(3);
        if (lane == LENGTH_ORDER[i]) mine = bits;
    }
    if (!fill_length_table(mine, s.lengths_table)) return false;
    __syncwarp();
    uint32_t total = literals + distances, have = 0, last = 0;
    while (have < total) {
        reader.refill(segment);
        uint32_t entry = s.lengths_table[reader.held & 127], symbol = entry & 255;
        reader.skip(entry >> 8);
        uint32_t copies = 1;
        if (symbol == 16) {
            if (have == 0) return false;
            copies = 3 + reader.take(2);
        } else if (symbol > 16) {
            last = 0;
            copies = symbol == 17 ? 3 + reader.take(3) : 11 + reader.take(7);
        } else {
            last = symbol;
        }
        if (have + copies > total) return false;
        for (uint32_t i = lane; i < copies; i += 32) s.lengths[have + i] = last;
        have += copies;
    }
    s.literal_count = literals;
    s.distance_count = distances;
    __syncwarp();
    return s.lengths[END] != 0;
}

__device__ void fixed_lengths(Shared& s) {
    for (uint32_t i = threadIdx.x; i < LITERALS + DISTANCES; i += 32)
        s.lengths[i] = i < 144 ? 8 : i < 256 ? 9 : i < 280 ? 7 : i < LITERALS ? 8 : 5;
    s.literal_count = LITERALS;
    s.distance_count = DISTANCES;
}

// A block's header, up to its first symbol or byte. The first warp.
__device__ void read_header(const Segment& segment, uint32_t position, bool has_fixed, Shared& s) {
    Reader reader;
    reader.open(segment, position);
    uint32_t is_last = reader.take(1), kind = reader.take(2);
    if (kind == STORED) {
        reader.skip(reader.count & 7);
        reader.refill(segment);
        uint32_t bytes = reader.take(16);
        reader.refill(segment);
        if ((bytes ^ 0xffff) != reader.take(16)) kind = INVALID;
        if (threadIdx.x == 0) s.stored_bytes = bytes;
    } else if (kind == FIXED && !has_fixed) {
        fixed_lengths(s);
    } else if (kind == DYNAMIC && !read_lengths(segment, reader, s)) {
        kind = INVALID;
    }
    if (reader.position() > segment.end) kind = INVALID;
    if (threadIdx.x == 0) {
        s.is_last = is_last;
        s.kind = kind;
        s.position = reader.position();
    }
}

// Both codes' tables from `lengths`; false where they are no codes. All threads.
__device__ bool make_tables(Shared& s) {
    uint32_t warp = threadIdx.x / 32;
    if (warp == 0) {
        bool holds = sort_symbols(s.lengths, s.literal_count, false, s.literal_code);
        if (threadIdx.x == 0) s.literals_hold = holds;
    } else if (warp == 1) {
        bool holds = sort_symbols(s.lengths + s.literal_count, s.distance_count, true, s.distance_code);
        if (threadIdx.x == 32) s.distances_hold = holds;
    }
    __syncthreads();
    if (!s.literals_hold || !s.distances_hold) return false;
    fill_literals<THREADS>(s.literal_code, s.literals);
    fill_distances<THREADS>(s.distance_code, s.distances);
    __syncthreads();
    pair_literals<THREADS>(s.literals);
    __syncthreads();
    return true;
}

// Bytes of a stored block. All threads.
__device__ bool copy_stored(const Segment& segment, uint32_t bytes, uint32_t& position, uint32_t& written, uint32_t& flushed) {
    if (bytes > segment.out_end - written || (uint64_t)position + bytes * 8 > segment.end) return false;
    const uint8_t* from = segment.base + position / 8;
    for (uint32_t done = 0; done < bytes; done += FLUSH_BYTES) {
        uint32_t part = min(bytes - done, FLUSH_BYTES);
        for (uint32_t i = threadIdx.x; i < part; i += THREADS) segment.at(written + i) = from[done + i];
        written += part;
        flushed = flush(segment, flushed, written, false);
    }
    position += bytes * 8;
    return true;
}

// Symbols one by one: some, or until the block ends. The first warp.
__device__ void decode_alone(const Segment& segment, Shared& s, uint32_t position, uint32_t written) {
    Reader reader;
    reader.open(segment, position);
    Outcome outcome = PAUSED;
    for (uint32_t symbols = 0; symbols < ALONE_SYMBOLS && outcome == PAUSED; symbols++) {
        reader.refill(segment);
        uint32_t entry = s.literals[reader.held & ((1 << LITERAL_BITS) - 1)], symbol = entry;
        if (is_long(entry)) symbol = find(s.literal_code, reader.held, LITERAL_BITS);
        bool is_literal = entry >> 30 != 0 || (symbol & 511) < END;
        uint32_t bytes = 1;
        Match match = {0, 0};
        reader.skip((symbol >> 16) & 15);
        if (!is_literal && (symbol & 511) == END) {
            outcome = ENDED;
            bytes = 0;
        } else if (!is_literal) {
            match = read_match(segment, s, reader, symbol & 511);
            bytes = match.length;
            if (bytes == 0 || match.distance > written - segment.skew) outcome = FAILED;
        }
        if (reader.position() > segment.end || bytes > segment.out_end - written) outcome = FAILED;
        if (outcome == FAILED) break;
        if (is_literal && threadIdx.x == 0) segment.at(written) = symbol;
        if (match.length > 0) copy_match(segment, written, match.length, match.distance);
        written += bytes;
    }
    if (threadIdx.x == 0) {
        s.position = reader.position();
        s.written = written;
        s.outcome = outcome;
    }
}

// A block's symbols, one by one first where `is_alone`. All threads.
__device__ bool decode_block(Segment& segment, Shared& s, bool is_alone, uint32_t& position, uint32_t& written, uint32_t& flushed) {
    for (;;) {
        move_window(segment, position, false);
        if (!is_alone) {
            if (!decode_together(segment, s, position, written, is_alone)) return false;
            flushed = flush(segment, flushed, written, false);
            continue;
        }
        if (threadIdx.x < 32) decode_alone(segment, s, position, written);
        __syncthreads();
        position = s.position;
        written = s.written;
        uint32_t outcome = s.outcome;
        if (outcome == FAILED) return false;
        flushed = flush(segment, flushed, written, false);
        if (outcome == ENDED) return true;
        is_alone = false;
    }
}

// Whether the segment is exactly its bytes of output from exactly its coded bytes. All threads.
__device__ bool inflate(Segment& segment, Shared& s) {
    uint32_t position = segment.first_byte * 8, written = segment.skew, flushed = written;
    bool has_fixed = false, is_last;
    if (threadIdx.x == 0) s.is_bad = 0;
    move_window(segment, position, true);
    do {
        move_window(segment, position, false);
        if (threadIdx.x < 32) read_header(segment, position, has_fixed, s);
        __syncthreads();
        uint32_t kind = s.kind, stored_bytes = s.stored_bytes;
        position = s.position;
        is_last = s.is_last;
        __syncthreads(); // before anybody writes them again
        if (kind == INVALID) return false;
        if (kind == STORED) {
            if (!copy_stored(segment, stored_bytes, position, written, flushed)) return false;
        } else {
            if (!(kind == FIXED && has_fixed) && !make_tables(s)) return false;
            has_fixed = kind == FIXED;
            if (!decode_block(segment, s, kind == FIXED, position, written, flushed)) return false;
        }
        __syncthreads();
    } while (!is_last);
    flush(segment, flushed, written, true);
    return written == segment.out_end && (position + 7) / 8 == segment.end_byte;
}

// Grid [segments], THREADS threads, four blocks of which a multiprocessor has room for; dynamic shared memory: window_words u32, then history bytes (segment_bytes + 16, or 64 KiB: the half that
// references reach back and room for a round).
extern "C" __global__ void __launch_bounds__(THREADS, 4) inflate_segments(InflateJob job) {
    __shared__ Shared s;
    extern __shared__ __align__(16) uint8_t dynamic[];
    uint32_t i = blockIdx.x;
    uint32_t start = i == 0 ? 0 : job.ends[i - 1], end = job.ends[i];
    uint64_t out_start = (uint64_t)i * job.segment_bytes;
    uint32_t out_bytes = (uint32_t)min((uint64_t)job.segment_bytes, job.payload_bytes - out_start);
    bool is_right = start < end && end - start <= out_bytes;
    const uint8_t* coded = job.coded + start;
    uint8_t* out = job.payload + out_start;
    if (is_right && end - start == out_bytes) {
        for (uint32_t at = threadIdx.x; at < out_bytes; at += THREADS) out[at] = coded[at];
        return;
    }
    if (is_right) {
        uint32_t before = (uint32_t)(uintptr_t)coded & 3, skew = (uint32_t)(uintptr_t)out & 15;
        uint32_t end_byte = before + end - start;
        Segment segment = {coded - before, before, end_byte, end_byte * 8, out - skew, skew, skew + out_bytes,
            reinterpret_cast<uint32_t*>(dynamic), job.window_words, 0, dynamic + job.window_words * 4, job.history_mask};
        is_right = inflate(segment, s);
    }
    if (!is_right && threadIdx.x == 0) atomicMin(job.bad, i);
}
