// Between coefficients and packed symbols. CPU twins: stages/quantize.rs, stages/pack.rs.
#include "kvtc.cuh"

constexpr uint32_t ALL_LANES = 0xffffffff;
constexpr uint32_t COMPONENTS_PER_THREAD = 16;

// q = sign(y) floor(|y| / D + 0.40), with the CPU's roundings.
__device__ __forceinline__ int32_t quantized(float y, float inverse_step) {
    float magnitude = fminf(__fadd_rn(__fmul_rn(fabsf(y), inverse_step), 0.40f), 32767.0f);
    int32_t whole = (int32_t)magnitude;
    return y < 0.0f ? -whole : whole;
}

// What the symbol at offset `at` of its class adds to which byte. The last of a class adds the zeros that fill up its byte.
struct Share {
    uint32_t byte, sum;
};

__device__ __forceinline__ Share share_of(const ClassTable& table, uint32_t at, int32_t symbol) {
    int limit = packing_limit(table.packing);
    uint32_t count = packing_count(table.packing), digit = at % count;
    uint32_t value = digit_value(table.packing, digit);
    uint32_t sum = (uint32_t)(abs(symbol) > limit ? limit : symbol + limit) * value;
    if (at + 1 == table.symbols) {
        for (uint32_t i = digit + 1; i < count; i++) {
            value *= packing_base(table.packing);
            sum += limit * value;
        }
    }
    return {table.byte + at / count, sum};
}

// Adds the lanes' shares up by word, so that each word of a warp costs one atomic. Lanes of a key are neighbours.
__device__ __forceinline__ void add_shares(uint32_t* packed, Share share, uint32_t key, bool is_active) {
    uint32_t lane = threadIdx.x % 32, sum = is_active ? share.sum << (share.byte % 4 * 8) : 0;
    for (uint32_t distance = 1; distance < 32; distance *= 2) {
        uint32_t other = __shfl_down_sync(ALL_LANES, sum, distance);
        uint32_t other_key = __shfl_down_sync(ALL_LANES, key, distance);
        bool other_active = __shfl_down_sync(ALL_LANES, is_active, distance);
        if (lane + distance < 32 && other_active && other_key == key) sum += other;
    }
    uint32_t before = __shfl_up_sync(ALL_LANES, key, 1);
    bool before_active = __shfl_up_sync(ALL_LANES, is_active, 1);
    bool is_head = lane == 0 || !before_active || before != key;
    if (is_active && is_head && sum) atomicAdd(packed + share.byte / 4, sum);
}

// Quantizes and packs y[component, slot - slot0] x scale[component], [components, stride]. `packed` and `escape_bits` (one bit a symbol)
// must be zeros, all bands of a side add to them; symbols over their class's limit go to `escapes` as (position, value) in any order, as
// far as there is room, and are counted. Grid: (slots / 256, components / 16), 256 threads.
extern "C" __global__ void kvtc_pack(SideOrder order, const float* y, uint32_t stride, uint32_t slot0, uint32_t slots, uint32_t components,
                                     const float* scale, uint32_t* packed, uint32_t* escape_bits, uint2* escapes, uint32_t capacity,
                                     uint32_t* count) {
    uint32_t at = blockIdx.x * blockDim.x + threadIdx.x;
    bool is_token = at < slots;
    uint32_t slot = slot0 + (is_token ? at : 0), number = order.slot_group[slot];
    Group group = order.groups[number];
    uint32_t first = blockIdx.y * COMPONENTS_PER_THREAD;
    for (uint32_t c = first; c < min(first + COMPONENTS_PER_THREAD, components); c++) {
        bool is_active = is_token && c < group.kept;
        if (!__any_sync(ALL_LANES, is_active)) break;
        uint32_t number_of_table = is_active ? table_of(order, group.exponent, c) : 0;
        const ClassTable& table = order.tables[number_of_table];
        BandAt band = order.at[number * order.table_count + number_of_table];
        uint32_t position = band.start + (c - band.component) * group.length + slot - group.first_slot;
        int32_t symbol = is_active ? quantized(y[(size_t)c * stride + at] * scale[c], group.inverse_step) : 0;
        uint32_t offset = position - table.start;
        bool is_wide = is_active && table.packing == PACKED_WIDE;
        if (is_wide) {
            uint16_t bits = (uint16_t)symbol ^ 0x8000;
            uint8_t* bytes = (uint8_t*)packed + table.byte;
            bytes[offset] = (uint8_t)bits;
            bytes[table.symbols + offset] = (uint8_t)(bits >> 8);
        }
        Share share = {0, 0};
        bool adds = is_active && !is_wide;
        if (adds) share = share_of(table, offset, symbol);
        add_shares(packed, share, share.byte / 4 * 64 + number, adds);
        if (is_active && abs(symbol) > packing_limit(table.packing)) {
            atomicOr(escape_bits + position / 32, 1u << position % 32);
            uint32_t place = atomicAdd(count, 1);
            if (place < capacity) escapes[place] = make_uint2(position, (uint32_t)symbol & 0xffff);
        }
    }
}

// A symbol from its class's bytes; sets *invalid for bytes that no symbols pack to.
__device__ __forceinline__ int32_t unpacked(const uint8_t* packed, const ClassTable& table, uint32_t at, uint32_t* invalid) {
    const uint8_t* bytes = packed + table.byte;
    if (table.packing == PACKED_WIDE) {
        uint32_t bits = bytes[at] | bytes[table.symbols + at] << 8;
        if (bits == 0) *invalid = 1;
        return (int32_t)bits - 32768;
    }
    uint32_t count = packing_count(table.packing), base = packing_base(table.packing), byte = bytes[at / count];
    if (byte >= digit_value(table.packing, count - 1) * base) *invalid = 1;
    return (int32_t)(byte / digit_value(table.packing, at % count) % base) - packing_limit(table.packing);
}

constexpr uint32_t TILE_SLOTS = 32, TILE_COMPONENTS = 64;

// Coefficients x scale[component] in f16 to rows[slot - slot0, component], zeros where a token's group does not code the component.
// `components` is a multiple of 64. Grid: (components / 64, slots / 32), 256 threads.
extern "C" __global__ void kvtc_unpack(SideOrder order, const uint8_t* packed, uint32_t slot0, uint32_t slots, const float* scale,
                                       __half* rows, uint32_t stride, uint32_t* invalid) {
    __shared__ __half tile[TILE_SLOTS][TILE_COMPONENTS + 2];
    uint32_t lane = threadIdx.x % 32, warp = threadIdx.x / 32, first = blockIdx.x * TILE_COMPONENTS;
    uint32_t at = blockIdx.y * TILE_SLOTS + lane;
    if (at < slots) {
        uint32_t slot = slot0 + at, number = order.slot_group[slot];
        Group group = order.groups[number];
        for (uint32_t i = warp; i < TILE_COMPONENTS; i += 8) {
            uint32_t c = first + i;
            float y = 0.0f;
            if (c < group.kept) {
                uint32_t number_of_table = table_of(order, group.exponent, c);
                const ClassTable& table = order.tables[number_of_table];
                BandAt band = order.at[number * order.table_count + number_of_table];
                uint32_t position = band.start + (c - band.component) * group.length + slot - group.first_slot;
                int32_t symbol = unpacked(packed, table, position - table.start, invalid);
                y = dequantized(table, symbol, group.step) * scale[c];
            }
            tile[lane][i] = to_finite_half(y);
        }
    }
    __syncthreads();
    for (uint32_t row = warp; row < TILE_SLOTS; row += 8) {
        uint32_t to = blockIdx.y * TILE_SLOTS + row;
        if (to >= slots) continue;
        __half2 pair = *(const __half2*)&tile[row][lane * 2];
        *(__half2*)(rows + (size_t)to * stride + first + lane * 2) = pair;
    }
}
