// The list of symbols that their class cannot hold (docs/kv-format.md, section 5). CPU twin: stages/escape.rs.
#include "kvtc.cuh"

constexpr uint32_t THREADS = 256;
constexpr uint32_t WORDS_PER_BLOCK = 1024;
constexpr uint32_t ENTRIES_PER_BLOCK = 4096;
constexpr int32_t BRIDGE = -32768;

// Sum over a block's values before this thread's, and of all; any number of threads up to 1,024, every one of them calls it.
template <typename T> __device__ __forceinline__ T scan_block(T value, T& total) {
    __shared__ T warps[32];
    uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32, count = blockDim.x / 32;
    T sum = value;
    for (uint32_t distance = 1; distance < 32; distance *= 2) {
        T other = __shfl_up_sync(0xffffffff, sum, distance);
        if (lane >= distance) sum += other;
    }
    __syncthreads();
    if (lane == 31) warps[warp] = sum;
    __syncthreads();
    T before = 0;
    total = 0;
    for (uint32_t i = 0; i < count; i++) {
        if (i < warp) before += warps[i];
        total += warps[i];
    }
    return before + sum - value;
}

// ranks[w] = set bits of the block's words before w, sums[block] = those of the block. Blocks of 1,024 words, 256 threads.
extern "C" __global__ void kvtc_escape_ranks(const uint32_t* bits, uint32_t words, uint32_t* ranks, uint32_t* sums) {
    uint32_t first = blockIdx.x * WORDS_PER_BLOCK + threadIdx.x * 4, here[4], sum = 0, total;
    for (uint32_t i = 0; i < 4; i++) {
        here[i] = first + i < words ? __popc(bits[first + i]) : 0;
        sum += here[i];
    }
    uint32_t before = scan_block(sum, total);
    for (uint32_t i = 0; i < 4 && first + i < words; i++) {
        ranks[first + i] = before;
        before += here[i];
    }
    if (threadIdx.x == 0) sums[blockIdx.x] = total;
}

// Turns sums into sums of all before. One block of 1,024 threads.
extern "C" __global__ void kvtc_scan_sums(uint32_t* sums, uint32_t count) {
    uint32_t carry = 0;
    for (uint32_t first = 0; first < count; first += blockDim.x) {
        uint32_t at = first + threadIdx.x, total;
        uint32_t before = scan_block(at < count ? sums[at] : 0u, total);
        if (at < count) sums[at] = carry + before;
        carry += total;
    }
}

// Puts escapes in the order of their positions. As many as *count says, if there was room for all of them. Any grid.
extern "C" __global__ void kvtc_escape_sort(const uint2* escapes, const uint32_t* count, uint32_t capacity, const uint32_t* bits,
                                            const uint32_t* ranks, const uint32_t* sums, uint2* sorted) {
    if (*count > capacity) return;
    for (uint32_t i = blockIdx.x * blockDim.x + threadIdx.x; i < *count; i += gridDim.x * blockDim.x) {
        uint2 escape = escapes[i];
        uint32_t word = escape.x / 32, below = bits[word] & ((1u << escape.x % 32) - 1);
        sorted[sums[word / WORDS_PER_BLOCK] + ranks[word] + __popc(below)] = escape;
    }
}

// Entries that only bridge gaps too wide for one.
__device__ __forceinline__ uint32_t gap_before(const uint2* sorted, uint32_t i) {
    return i == 0 ? sorted[0].x : sorted[i].x - sorted[i - 1].x - 1;
}

// places[i] = index in the list of escape i, *entries = length of the list, bridges counted. One block of 1,024 threads.
extern "C" __global__ void kvtc_escape_places(const uint2* sorted, const uint32_t* count, uint32_t capacity, uint32_t* places,
                                              uint32_t* entries) {
    if (*count > capacity) return;
    uint32_t carry = 0;
    for (uint32_t first = 0; first < *count; first += blockDim.x) {
        uint32_t i = first + threadIdx.x, total;
        uint32_t bridges = i < *count ? gap_before(sorted, i) >> 16 : 0;
        uint32_t before = scan_block(bridges, total);
        if (i < *count) places[i] = carry + before + bridges + i;
        carry += total;
    }
    if (threadIdx.x == 0) *entries = *count + carry;
}

// Writes the list's four planes of `entries` bytes.
extern "C" __global__ void kvtc_escape_write(const uint2* sorted, uint32_t count, const uint32_t* places, uint32_t entries, uint8_t* list) {
    uint32_t i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= count) return;
    uint32_t gap = gap_before(sorted, i), bridges = gap >> 16;
    for (uint32_t place = places[i] - bridges; place <= places[i]; place++) {
        bool is_bridge = place < places[i];
        uint32_t written = is_bridge ? 65535 : gap & 65535, value = is_bridge ? (uint32_t)BRIDGE & 0xffff : sorted[i].y;
        list[place] = (uint8_t)written;
        list[entries + place] = (uint8_t)(written >> 8);
        list[2 * (size_t)entries + place] = (uint8_t)value;
        list[3 * (size_t)entries + place] = (uint8_t)(value >> 8);
    }
}

__device__ __forceinline__ uint32_t listed_gap(const uint8_t* list, uint32_t entries, uint32_t i) {
    return list[i] | list[entries + i] << 8;
}

// sums[block] = positions that the block's 4,096 entries span. 256 threads.
extern "C" __global__ void kvtc_escape_spans(const uint8_t* list, uint32_t entries, uint64_t* sums) {
    uint64_t sum = 0, total;
    for (uint32_t i = 0; i < ENTRIES_PER_BLOCK / THREADS; i++) {
        uint32_t entry = blockIdx.x * ENTRIES_PER_BLOCK + i * THREADS + threadIdx.x;
        if (entry < entries) sum += listed_gap(list, entries, entry) + 1;
    }
    scan_block(sum, total);
    if (threadIdx.x == 0) sums[blockIdx.x] = total;
}

// Turns spans into spans of all before. One block of 1,024 threads.
extern "C" __global__ void kvtc_scan_spans(uint64_t* sums, uint32_t count) {
    uint64_t carry = 0;
    for (uint32_t first = 0; first < count; first += blockDim.x) {
        uint32_t at = first + threadIdx.x;
        uint64_t total, before = scan_block(at < count ? sums[at] : (uint64_t)0, total);
        if (at < count) sums[at] = carry + before;
        carry += total;
    }
}

// The band that holds a position.
__device__ __forceinline__ const Band& band_of(const SideOrder& order, uint32_t position) {
    uint32_t low = 0, high = order.band_count;
    while (high - low > 1) {
        uint32_t middle = (low + high) / 2;
        if (order.bands[middle].start <= position) low = middle;
        else high = middle;
    }
    return order.bands[low];
}

// One symbol to be replaced.
struct Found {
    uint32_t slot;      // none where all bits are set
    uint16_t component;
    int16_t value;
};
constexpr uint32_t NO_SLOT = 0xffffffff;

// Finds what each entry replaces; *invalid is set for a position outside of the symbols. Blocks of 4,096 entries, 256 threads.
extern "C" __global__ void kvtc_escape_find(SideOrder order, const uint8_t* list, uint32_t entries, const uint64_t* sums, Found* found,
                                            uint32_t* invalid) {
    uint64_t carry = sums[blockIdx.x];
    for (uint32_t i = 0; i < ENTRIES_PER_BLOCK / THREADS; i++) {
        uint32_t entry = blockIdx.x * ENTRIES_PER_BLOCK + i * THREADS + threadIdx.x;
        uint64_t span = entry < entries ? listed_gap(list, entries, entry) + 1 : 0, total;
        uint64_t position = carry + scan_block(span, total) + span - 1;
        carry += total;
        if (entry >= entries) continue;
        int16_t value = (int16_t)(list[2 * (size_t)entries + entry] | list[3 * (size_t)entries + entry] << 8);
        Found out = {NO_SLOT, 0, value};
        if (position >= order.symbols) {
            *invalid = 1;
        } else if (value != BRIDGE) {
            const Band& band = band_of(order, (uint32_t)position);
            const Group& group = order.groups[band.group];
            uint32_t offset = (uint32_t)position - band.start;
            out.slot = group.first_slot + offset % group.length;
            out.component = (uint16_t)(band.component + offset / group.length);
        }
        found[entry] = out;
    }
}

// Replaces the coefficients of the slots from slot0 on, as `kvtc_unpack` wrote them.
extern "C" __global__ void kvtc_escape_apply(SideOrder order, const Found* found, uint32_t entries, uint32_t slot0, uint32_t slots,
                                             const float* scale, __half* rows, uint32_t stride) {
    uint32_t entry = blockIdx.x * blockDim.x + threadIdx.x;
    if (entry >= entries) return;
    Found here = found[entry];
    if (here.slot < slot0 || here.slot >= slot0 + slots) return;
    const Group& group = order.groups[order.slot_group[here.slot]];
    const ClassTable& table = order.tables[table_of(order, group.exponent, here.component)];
    float y = dequantized(table, here.value, group.step) * scale[here.component];
    rows[(size_t)(here.slot - slot0) * stride + here.component] = to_finite_half(y);
}
