// Raw DEFLATE segments (RFC 1951) to bytes, one thread block per segment; the CPU's twin is stages/deflate.rs.
//
// A Huffman stream has to be decoded from its start, but a decoder that starts anywhere falls into step with it after a few symbols.
// So every thread decodes SPAN bits from where it guesses a symbol to start; then each compares its start with the end that its
// predecessor found, and decodes again where they differ, until the chain holds. That works for literals. Whatever else comes
// (references, ends of blocks, damage) is decoded by the first warp, one symbol after the other.
#include "canonical.cuh"

constexpr uint32_t THREADS = 128;
constexpr uint32_t SPAN = 128;           // bits
constexpr uint32_t ROUNDS = 8;           // of mending before what holds is taken
constexpr uint32_t MIN_PATIENCE = 32;    // literals in a row after which the threads try together again
constexpr uint32_t MAX_PATIENCE = 1024;
constexpr uint32_t FLUSH_BYTES = 8192;   // decoded one by one before they are written out
constexpr uint32_t SPARE_WORDS = THREADS * SPAN / 32 + 16; // what a round of all threads may look at
constexpr uint32_t END = 256, LAST_LENGTH = 285, LAST_DISTANCE = 29, LITERALS = 288, DISTANCES = 32;

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

__constant__ uint16_t LENGTH_BASE[29] = {3, 4, 5, 6, 7, 8, 9, 10, 11, 13, 15, 17, 19, 23, 27, 31, 35, 43, 51, 59, 67, 83, 99, 115, 131, 163, 195, 227, 258};
__constant__ uint8_t LENGTH_EXTRA[29] = {0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3, 4, 4, 4, 4, 5, 5, 5, 5, 0};
__constant__ uint8_t LENGTH_ORDER[19] = {16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15};

enum Kind : uint32_t { STORED, FIXED, DYNAMIC, INVALID };
enum Outcome : uint32_t { PAUSED, ENDED, FAILED };

struct Shared {
    uint32_t literals[1 << LITERAL_BITS];
    uint16_t distances[1 << DISTANCE_BITS];
    Canonical literal_code, distance_code;
    uint16_t lengths_table[128]; // of the code that codes lengths: symbol, bits << 8
    uint8_t lengths[LITERALS + DISTANCES + 160];
    uint32_t span_ends[THREADS];
    uint32_t broken[THREADS / 32], stopped[THREADS / 32], sums[THREADS / 32];
    uint32_t kind, is_last, literal_count, distance_count, stored_bytes;
    uint32_t position, written, outcome;
    uint32_t literals_hold, distances_hold;
};

// One segment. Positions are bits from `base`, the 4-byte boundary at or before its first byte.
struct Segment {
    const uint8_t* base;
    uint32_t first_byte, end_byte; // from `base`
    uint32_t end;                  // bits
    uint8_t* out;                  // the 16-byte boundary at or before its output
    uint32_t skew, out_end;        // output lies at out[skew..out_end]
    uint32_t* window;
    uint32_t window_words, window_start;
    uint8_t* history;              // of output, by its place in `out`
    uint32_t mask;

    // Four coded bytes; 0 for those before or behind the segment, which are not touched.
    __device__ uint32_t fetch(uint32_t word) const {
        uint32_t at = word * 4;
        if (at >= first_byte && at + 4 <= end_byte) return *reinterpret_cast<const uint32_t*>(base + at);
        uint32_t value = 0;
        for (uint32_t i = 0; i < 4; i++)
            if (at + i >= first_byte && at + i < end_byte) value |= (uint32_t)base[at + i] << (8 * i);
        return value;
    }

    __device__ uint32_t word(uint32_t word) const {
        uint32_t at = word - window_start;
        return at < window_words ? window[at] : fetch(word);
    }

    __device__ uint8_t& at(uint32_t place) const { return history[place & mask]; }
};

// Bits of a segment, lowest first.
struct Reader {
    uint64_t held;
    uint32_t count, next;

    __device__ void open(const Segment& segment, uint32_t position) {
        next = position >> 5;
        held = (uint64_t)segment.word(next++) >> (position & 31);
        count = 32 - (position & 31);
        refill(segment);
    }
    // At least 33 bits from then on.
    __device__ void refill(const Segment& segment) {
        if (count > 32) return;
        held |= (uint64_t)segment.word(next++) << count;
        count += 32;
    }
    __device__ void skip(uint32_t bits) {
        held >>= bits;
        count -= bits;
    }
    __device__ uint32_t take(uint32_t bits) {
        uint32_t value = (uint32_t)held & ((1u << bits) - 1);
        skip(bits);
        return value;
    }
    __device__ uint32_t position() const { return next * 32 - count; }
};

// Makes the window start at `position` where a round of all threads would leave it. All threads.
__device__ void move_window(Segment& segment, uint32_t position, bool is_first) {
    uint32_t word = position >> 5;
    if (!is_first && word - segment.window_start + SPARE_WORDS <= segment.window_words) return;
    uint32_t behind = (segment.end_byte + 3) / 4;
    if (!is_first && segment.window_start + segment.window_words >= behind) return;
    __syncthreads();
    segment.window_start = word;
    for (uint32_t i = threadIdx.x; i < segment.window_words; i += THREADS) segment.window[i] = segment.fetch(word + i);
    __syncthreads();
}

// Writes output that is only in `history` to where it belongs: whole 16 bytes, and at the end the rest. All threads.
__device__ uint32_t flush(const Segment& segment, uint32_t flushed, uint32_t written, bool is_end) {
    __syncthreads();
    uint32_t from = flushed;
    if (from < segment.skew + 16 && (from & 15) != 0 && (written >= 16 || is_end)) {
        uint32_t to = min(written, 16u);
        if (from + threadIdx.x < to) segment.out[from + threadIdx.x] = segment.at(from + threadIdx.x);
        from = to;
    }
    if ((from & 15) == 0) {
        uint32_t to = written & ~15u;
        for (uint32_t at = from + threadIdx.x * 16; at < to; at += THREADS * 16)
            *reinterpret_cast<uint4*>(segment.out + at) = *reinterpret_cast<const uint4*>(&segment.at(at));
        from = max(from, to);
    }
    if (is_end && from + threadIdx.x < written) segment.out[from + threadIdx.x] = segment.at(from + threadIdx.x);
    __syncthreads();
    return from;
}

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

// What a thread finds from its start up to the first symbol that starts at `limit` or later.
struct Span {
    uint32_t end, count;
    bool is_stopped; // by a symbol that is not a literal, at `end`
};

// Decodes literals, and writes them where WRITES.
template <bool WRITES>
__device__ Span decode_span(const Segment& segment, const Shared& s, uint32_t start, uint32_t limit, uint32_t place) {
    Reader reader;
    reader.open(segment, start);
    uint32_t position = start, count = 0;
    while (position < limit) {
        reader.refill(segment);
        uint32_t entry = s.literals[reader.held & ((1 << LITERAL_BITS) - 1)];
        if (entry >> 30 == 0) {
            uint32_t symbol = is_long(entry) ? find(s.literal_code, reader.held, LITERAL_BITS) : entry;
            if ((symbol & 511) >= END) return {position, count, true};
            entry = literal_entry(symbol & 255, (symbol >> 16) & 15);
        }
        // The second only where it starts before the limit: ends are then the same on every way that leads here.
        bool has_two = entry >> 31 && position + first_bits(entry) < limit;
        uint32_t bits = has_two ? all_bits(entry) : first_bits(entry);
        if (position + bits > segment.end) return {position, count, true};
        if (WRITES) {
            segment.at(place + count) = entry;
            if (has_two) segment.at(place + count + 1) = entry >> 8;
        }
        count += has_two ? 2 : 1;
        position += bits;
        reader.skip(bits);
    }
    return {position, count, false};
}

__device__ uint32_t first_set(const uint32_t* masks) {
    uint32_t first = THREADS;
    for (int i = THREADS / 32 - 1; i >= 0; i--)
        if (masks[i]) first = i * 32 + __ffs(masks[i]) - 1;
    return first;
}

// Sum of `value` over the threads before this one, and over all.
__device__ uint2 sum_before(uint32_t value, uint32_t* sums) {
    uint32_t lane = threadIdx.x & 31, warp = threadIdx.x / 32, sum = value;
    for (uint32_t step = 1; step < 32; step *= 2) {
        uint32_t other = __shfl_up_sync(~0u, sum, step);
        if (lane >= step) sum += other;
    }
    if (lane == 31) sums[warp] = sum;
    __syncthreads();
    uint32_t before = 0, total = 0;
    for (uint32_t i = 0; i < THREADS / 32; i++) {
        if (i < warp) before += sums[i];
        total += sums[i];
    }
    return {before + sum - value, total};
}

// Literals from `position` on, by all threads together. `outcome` is PAUSED, also where another symbol stopped them: then `stopped`.
__device__ Outcome decode_together(const Segment& segment, Shared& s, uint32_t& position, uint32_t& written, bool& is_stopped) {
    uint32_t thread = threadIdx.x, warp = thread / 32;
    uint32_t start = position + thread * SPAN, limit = start + SPAN, broken, stopped;
    Span span = decode_span<false>(segment, s, start, limit, 0);
    for (uint32_t round = 0;; round++) {
        s.span_ends[thread] = span.is_stopped ? limit : span.end;
        __syncthreads();
        uint32_t right_start = thread == 0 ? position : s.span_ends[thread - 1];
        uint32_t breaks = __ballot_sync(~0u, right_start != start), stops = __ballot_sync(~0u, span.is_stopped);
        if ((thread & 31) == 0) s.broken[warp] = breaks, s.stopped[warp] = stops;
        __syncthreads();
        broken = first_set(s.broken);
        stopped = first_set(s.stopped);
        if (broken > stopped || broken == THREADS || round == ROUNDS) break;
        if (right_start != start) {
            start = right_start;
            span = decode_span<false>(segment, s, start, limit, 0);
        }
    }
    is_stopped = stopped < broken;
    uint32_t taken = is_stopped ? stopped + 1 : broken;
    uint2 sum = sum_before(thread < taken ? span.count : 0, s.sums);
    if (sum.y > segment.out_end - written) return FAILED;
    if (thread < taken) decode_span<true>(segment, s, start, is_stopped && thread == stopped ? span.end : limit, written + sum.x);
    if (thread == taken - 1) s.position = span.end;
    written += sum.y;
    __syncthreads();
    position = s.position;
    return PAUSED;
}

// A reference: `length` bytes from `distance` back. The first warp.
__device__ void copy_match(const Segment& segment, uint32_t written, uint32_t length, uint32_t distance) {
    __syncwarp();
    for (uint32_t done = 0; done < length; done += 32) {
        uint32_t i = done + threadIdx.x;
        uint32_t offset = distance >= length ? i : distance == 1 ? 0 : i % distance;
        uint8_t byte = segment.at(written - distance + offset);
        __syncwarp();
        if (i < length) segment.at(written + i) = byte;
    }
    __syncwarp();
}

// Symbols one by one until the block ends, or `patience` literals came in a row, or enough waits to be written. The first warp.
__device__ void decode_alone(const Segment& segment, Shared& s, uint32_t position, uint32_t written, uint32_t patience) {
    Reader reader;
    reader.open(segment, position);
    Outcome outcome = FAILED;
    uint32_t row = 0, pause = written + FLUSH_BYTES;
    for (;;) {
        if (row >= patience || written >= pause) { outcome = PAUSED; break; }
        reader.refill(segment);
        uint32_t entry = s.literals[reader.held & ((1 << LITERAL_BITS) - 1)], count = entry >> 30;
        if (count == 0) {
            uint32_t symbol = is_long(entry) ? find(s.literal_code, reader.held, LITERAL_BITS) : entry;
            if ((symbol & 511) < END) {
                entry = literal_entry(symbol & 255, (symbol >> 16) & 15);
                count = 1;
            } else {
                reader.skip((symbol >> 16) & 15);
                symbol &= 511;
                if (symbol == END) {
                    if (reader.position() <= segment.end) outcome = ENDED;
                    break;
                }
                if (symbol > LAST_LENGTH) break;
                uint32_t length = LENGTH_BASE[symbol - 257] + reader.take(LENGTH_EXTRA[symbol - 257]);
                reader.refill(segment);
                uint32_t code = s.distances[reader.held & ((1 << DISTANCE_BITS) - 1)];
                code = code ? (code & 511) | (code >> 9) << 16 : find(s.distance_code, reader.held, DISTANCE_BITS);
                reader.skip((code >> 16) & 15);
                code &= 511;
                if (code > LAST_DISTANCE) break;
                reader.refill(segment);
                uint32_t extra = code < 4 ? 0 : code / 2 - 1;
                uint32_t distance = (code < 4 ? code : (2 + (code & 1)) << extra) + 1 + reader.take(extra);
                if (reader.position() > segment.end || distance > written - segment.skew || length > segment.out_end - written) break;
                copy_match(segment, written, length, distance);
                written += length;
                row = 0;
                continue;
            }
        }
        reader.skip(all_bits(entry));
        if (reader.position() > segment.end || count > segment.out_end - written) break;
        if (threadIdx.x == 0) {
            segment.at(written) = entry;
            if (count == 2) segment.at(written + 1) = entry >> 8;
        }
        written += count;
        row += count;
    }
    if (threadIdx.x == 0) {
        s.position = reader.position();
        s.written = written;
        s.outcome = outcome;
    }
}

// A block's symbols, one by one first where `is_alone`. All threads.
__device__ bool decode_block(Segment& segment, Shared& s, bool is_alone, uint32_t& position, uint32_t& written, uint32_t& flushed) {
    uint32_t patience = MIN_PATIENCE;
    for (;;) {
        move_window(segment, position, false);
        uint32_t before = written;
        if (is_alone) {
            if (threadIdx.x < 32) decode_alone(segment, s, position, written, patience);
            __syncthreads();
            position = s.position;
            written = s.written;
            uint32_t outcome = s.outcome;
            if (outcome == FAILED) return false;
            flushed = flush(segment, flushed, written, false);
            if (outcome == ENDED) return true;
            is_alone = written - before >= FLUSH_BYTES && patience > MIN_PATIENCE;
        } else {
            if (decode_together(segment, s, position, written, is_alone) == FAILED) return false;
            flushed = flush(segment, flushed, written, false);
            if (is_alone) patience = written - before < 4 * patience ? min(2 * patience, MAX_PATIENCE) : MIN_PATIENCE;
        }
    }
}

// Whether the segment is exactly its bytes of output from exactly its coded bytes. All threads.
__device__ bool inflate(Segment& segment, Shared& s) {
    uint32_t position = segment.first_byte * 8, written = segment.skew, flushed = written;
    bool has_fixed = false, is_last;
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

// Grid [segments], THREADS threads; dynamic shared memory: window_words u32, then history bytes (segment_bytes + 16, or the 32 KiB that references reach back).
extern "C" __global__ void __launch_bounds__(THREADS) inflate_segments(InflateJob job) {
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
