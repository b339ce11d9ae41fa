// One segment in the making: its coded bytes behind a window, its output behind the history that references reach back into.
#pragma once
#include <cstdint>

constexpr uint32_t THREADS = 128;
constexpr uint32_t SPAN = 128; // bits that a thread decodes at a time
constexpr uint32_t SPARE_WORDS = THREADS * SPAN / 32 + 16; // what all threads may look at together

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
