// What the kernels of kvtc share: how the symbols of one side of a chunk are ordered (docs/kv-format.md, section 4). The Rust side is
// src/cuda/order.rs. Tokens stand in *slots*: sorted by the components that they need, groups together.
#pragma once
#include <cuda_fp16.h>
#include <cstdint>

// Tokens of one step.
struct Group {
    int32_t exponent;    // of the step, on the grid
    uint32_t length;     // tokens
    uint32_t first_slot; // of its first token
    uint32_t kept;       // coded components
    float step, inverse_step;
    uint32_t reserved[2];
};

// Where a class of a group begins.
struct BandAt {
    uint32_t start;     // position of its first symbol
    uint32_t component; // its first component
};

// Packings by number: 0 base 3, 1 base 5, 2 base 15, 3 base 255, 4 two bytes.
struct ClassTable {
    uint32_t packing;
    uint32_t start, symbols; // positions of the class's symbols
    uint32_t byte;           // offset of its first byte
    float centroids[8];
};

// Components of one class in one group, in the order of writing.
struct Band {
    uint32_t start, group, component, table;
};

struct SideOrder {
    const Group* groups;       // [group_count]
    const BandAt* at;          // [group_count, table_count]
    const ClassTable* tables;  // [table_count]
    const Band* bands;         // [band_count], start increasing
    const uint8_t* slot_group; // [slots]
    const int16_t* log_sigma;  // [components]
    int32_t first_class;
    uint32_t group_count, table_count, band_count, symbols;
    uint32_t reserved;
};

constexpr uint32_t PACKED_WIDE = 4;

__device__ __forceinline__ int packing_limit(uint32_t packing) {
    switch (packing) {
    case 0: return 1;
    case 1: return 2;
    case 2: return 7;
    case 3: return 127;
    default: return 32767;
    }
}

// Digits of a byte; their values are base^i.
__device__ __forceinline__ uint32_t packing_count(uint32_t packing) {
    return packing == 0 ? 5u : packing == 1 ? 3u : packing == 2 ? 2u : 1u;
}

__device__ __forceinline__ uint32_t packing_base(uint32_t packing) {
    return packing == 0 ? 3u : packing == 1 ? 5u : packing == 2 ? 15u : 255u;
}

__device__ __forceinline__ uint32_t digit_value(uint32_t packing, uint32_t digit) {
    uint32_t value = 1, base = packing_base(packing);
    for (uint32_t i = 0; i < 4; i++) value *= i < digit ? base : 1u;
    return value;
}

// Class table of a component that its group codes (component < kept).
__device__ __forceinline__ uint32_t table_of(const SideOrder& order, int32_t exponent, uint32_t component) {
    int32_t cls = ((order.log_sigma[component] - exponent + 8) >> 4) - order.first_class;
    return min((uint32_t)max(cls, 0), order.table_count - 1);
}

// sign(q) r(|q|) D.
__device__ __forceinline__ float dequantized(const ClassTable& table, int32_t symbol, float step) {
    uint32_t magnitude = abs(symbol);
    float r = magnitude == 0 ? 0.0f : magnitude <= 8 ? table.centroids[magnitude - 1] : (float)magnitude;
    return symbol < 0 ? -(r * step) : r * step;
}

__device__ __forceinline__ __half to_finite_half(float x) {
    return __float2half_rn(fminf(fmaxf(x, -65504.0f), 65504.0f));
}
