// Symbols of a block by all threads together, each from where it guesses one to start; see inflate.cu.
#pragma once
#include "canonical.cuh"
#include "inflate_segment.cuh"

constexpr uint32_t ROUNDS = 8;          // of mending before what holds is taken
constexpr uint32_t ROUND_BYTES = 16384; // of output, and references, of all threads at a time
constexpr uint32_t ROUND_MATCHES = 512;
constexpr uint32_t OWN_MATCH = 16;      // bytes of a reference that a thread copies alone
constexpr uint32_t END = 256, LAST_LENGTH = 285, LAST_DISTANCE = 29, LITERALS = 288, DISTANCES = 32;

__constant__ uint16_t LENGTH_BASE[29] = {3, 4, 5, 6, 7, 8, 9, 10, 11, 13, 15, 17, 19, 23, 27, 31, 35, 43, 51, 59, 67, 83, 99, 115, 131, 163, 195, 227, 258};
__constant__ uint8_t LENGTH_EXTRA[29] = {0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3, 4, 4, 4, 4, 5, 5, 5, 5, 0};
struct Shared {
    uint32_t literals[1 << LITERAL_BITS];
    uint16_t distances[1 << DISTANCE_BITS];
    Canonical literal_code, distance_code;
    uint16_t lengths_table[128]; // of the code that codes lengths: symbol, bits << 8
    uint8_t lengths[LITERALS + DISTANCES + 160];
    uint32_t span_ends[THREADS];
    uint32_t broken[THREADS / 32], stopped[THREADS / 32];
    uint64_t sums[THREADS / 32];
    uint2 matches[ROUND_MATCHES]; // left to the first warp: place from the round's start | length << 16, 0 for none; distance
    uint32_t kind, is_last, literal_count, distance_count, stored_bytes;
    uint32_t position, written, outcome, match_count;
    uint32_t literals_hold, distances_hold, is_bad;
};

// A reference, read behind its length code; `length` is 0 where there is no such code.
struct Match {
    uint32_t length, distance;
};

__device__ __forceinline__ Match read_match(const Segment& segment, const Shared& s, Reader& reader, uint32_t symbol) {
    if (symbol > LAST_LENGTH) return {0, 0};
    uint32_t length = LENGTH_BASE[symbol - 257] + reader.take(LENGTH_EXTRA[symbol - 257]);
    reader.refill(segment);
    uint32_t code = s.distances[reader.held & ((1 << DISTANCE_BITS) - 1)];
    code = code ? (code & 511) | (code >> 9) << 16 : find(s.distance_code, reader.held, DISTANCE_BITS);
    reader.skip((code >> 16) & 15);
    code &= 511;
    if (code > LAST_DISTANCE) return {0, 0};
    reader.refill(segment);
    uint32_t extra = code < 4 ? 0 : code / 2 - 1;
    return {length, (code < 4 ? code : (2 + (code & 1)) << extra) + 1 + reader.take(extra)};
}

// What a thread finds from its start up to the first symbol that starts at `limit` or later.
struct Span {
    uint32_t end, bytes, matches;
    bool is_stopped; // at `end`, by the end of the block or something that is not valid
};

// Where a thread writes: `clean` is from where on it knows what lies there.
struct Sink {
    uint32_t round, place, clean;
    uint2* matches;
};

// Copies a reference, or leaves it to the first warp. One thread.
__device__ __forceinline__ void write_match(const Segment& segment, Shared& s, Sink& sink, uint32_t place, Match match) {
    if (match.distance > place - segment.skew) s.is_bad = 1;
    uint32_t from = place - match.distance;
    bool is_known = from >= sink.clean || from + min(match.length, match.distance) <= sink.round;
    if (s.is_bad || !is_known || match.length > OWN_MATCH) {
        *sink.matches++ = {place - sink.round | match.length << 16, match.distance};
        sink.clean = place + match.length;
        return;
    }
    *sink.matches++ = {0, 0};
    if (match.distance == 1) {
        uint8_t byte = segment.at(from);
        for (uint32_t i = 0; i < match.length; i++) segment.at(place + i) = byte;
    } else {
        for (uint32_t i = 0; i < match.length; i++) segment.at(place + i) = segment.at(from + i);
    }
}

// Decodes, and writes where WRITES.
template <bool WRITES>
__device__ __forceinline__ Span decode_span(const Segment& segment, Shared& s, uint32_t start, uint32_t limit, Sink sink) {
    Reader reader;
    reader.open(segment, start);
    Span span = {start, 0, 0, false};
    while (span.end < limit) {
        reader.refill(segment);
        uint32_t entry = s.literals[reader.held & ((1 << LITERAL_BITS) - 1)];
        if (entry >> 30 == 0) {
            uint32_t symbol = is_long(entry) ? find(s.literal_code, reader.held, LITERAL_BITS) : entry, bits = (symbol >> 16) & 15;
            if ((symbol & 511) >= END) {
                reader.skip(bits);
                Match match = (symbol & 511) == END ? Match{0, 0} : read_match(segment, s, reader, symbol & 511);
                span.is_stopped = match.length == 0 || reader.position() > segment.end;
                if (span.is_stopped) break;
                if (WRITES) write_match(segment, s, sink, sink.place + span.bytes, match);
                span.end = reader.position();
                span.bytes += match.length;
                span.matches++;
                continue;
            }
            entry = literal_entry(symbol & 255, bits);
        }
        // The second only where it starts before the limit: ends are then the same on every way that leads here.
        bool has_two = entry >> 31 && span.end + first_bits(entry) < limit;
        uint32_t bits = has_two ? all_bits(entry) : first_bits(entry);
        span.is_stopped = span.end + bits > segment.end;
        if (span.is_stopped) break;
        if (WRITES) {
            segment.at(sink.place + span.bytes) = entry;
            if (has_two) segment.at(sink.place + span.bytes + 1) = entry >> 8;
        }
        span.bytes += has_two ? 2 : 1;
        span.end += bits;
        reader.skip(bits);
    }
    return span;
}

__device__ uint32_t first_set(const uint32_t* masks) {
    uint32_t first = THREADS;
    for (int i = THREADS / 32 - 1; i >= 0; i--)
        if (masks[i]) first = i * 32 + __ffs(masks[i]) - 1;
    return first;
}

// Sum of `value` over this thread and those before it.
__device__ uint64_t sum_until(uint64_t value, uint64_t* sums) {
    uint32_t lane = threadIdx.x & 31, warp = threadIdx.x / 32;
    for (uint32_t step = 1; step < 32; step *= 2) {
        uint64_t other = __shfl_up_sync(~0u, value, step);
        if (lane >= step) value += other;
    }
    if (lane == 31) sums[warp] = value;
    __syncthreads();
    for (uint32_t i = 0; i < warp; i++) value += sums[i];
    return value;
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

// References of a round that the threads left. The first warp.
__device__ void copy_matches(const Segment& segment, const Shared& s, uint32_t round, uint32_t count) {
    for (uint32_t first = 0; first < count; first += 32) {
        uint2 mine = first + threadIdx.x < count ? s.matches[first + threadIdx.x] : uint2{0, 0};
        uint32_t left = __ballot_sync(~0u, mine.x != 0);
        for (; left; left &= left - 1) {
            uint32_t lane = __ffs(left) - 1, at = __shfl_sync(~0u, mine.x, lane), distance = __shfl_sync(~0u, mine.y, lane);
            copy_match(segment, round + (at & 0xffff), at >> 16, distance);
        }
    }
}

// Finds each thread's span from `position` on: the last argument is where this one's starts. How many of them hold, and whether the last
// of these was stopped.
__device__ __forceinline__ uint2 find_spans(const Segment& segment, Shared& s, uint32_t position, Span& span, uint32_t& start) {
    uint32_t thread = threadIdx.x, warp = thread / 32, broken, stopped;
    start = position + thread * SPAN;
    uint32_t limit = start + SPAN;
    span = decode_span<false>(segment, s, start, limit, {});
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
            span = decode_span<false>(segment, s, start, limit, {});
        }
    }
    return {stopped < broken ? stopped + 1 : broken, stopped < broken};
}

// Symbols from `position` on, by all threads together; `is_stopped` where only one warp gets on. False where something is not valid.
__device__ __forceinline__ bool decode_together(const Segment& segment, Shared& s, uint32_t& position, uint32_t& written, bool& is_stopped) {
    uint32_t thread = threadIdx.x, start;
    Span span;
    uint2 found = find_spans(segment, s, position, span, start);
    uint64_t mine = thread < found.x ? min(span.bytes, ROUND_BYTES + 1) | (uint64_t)span.matches << 32 : 0;
    uint64_t sum = sum_until(mine, s.sums);
    bool fits = (uint32_t)sum <= ROUND_BYTES && sum >> 32 <= ROUND_MATCHES;
    uint32_t taken = __syncthreads_count(thread < found.x && fits);
    is_stopped = taken == 0 || (found.y && taken == found.x);
    if (taken == 0) return true;
    if (thread == taken - 1) {
        s.position = span.end;
        s.written = written + (uint32_t)sum;
        s.match_count = sum >> 32;
    }
    __syncthreads();
    if (s.written > segment.out_end) return false;
    if (thread < taken) {
        uint64_t before = sum - mine;
        uint32_t place = written + (uint32_t)before, limit = position + (thread + 1) * SPAN;
        decode_span<true>(segment, s, start, span.is_stopped ? span.end : limit, {written, place, place, s.matches + (before >> 32)});
    }
    __syncthreads();
    if (s.is_bad) return false;
    if (thread < 32) copy_matches(segment, s, written, s.match_count);
    position = s.position;
    written = s.written;
    return true;
}
