// Between a session's pages and rows of features for the matrix products of kvtc. CPU twins: stages/rows.rs, stages/rope.rs, exact.rs,
// kvtc/known.rs.
//
// P features of a token in the order layer, head, dimension; `first_token` is the position in the session of the chunk's first token.
#include "kv_pages.cuh"
#include "kvtc.cuh"

// turns[t, i] = (cos, sin) of (first_token + t) x inv_freq[i]: [tokens, half]. One thread an element, in f64 as the CPU does it.
extern "C" __global__ void kvtc_turns(const float* inv_freq, uint32_t half, uint32_t first_token, uint32_t tokens, float2* turns) {
    uint32_t at = blockIdx.x * blockDim.x + threadIdx.x;
    if (at >= tokens * half) return;
    double angle = (double)(first_token + at / half) * (double)inv_freq[at % half];
    double sine, cosine;
    sincos(angle, &sine, &cosine);
    turns[at] = make_float2((float)cosine, (float)sine);
}

template <int N> struct alignas(N * 2) Bf16s {
    __nv_bfloat16 at[N];
};
template <int N> struct alignas(N * 2) Halves {
    __half at[N];
};
template <int N> struct alignas(N >= 4 ? 16 : 4) Floats {
    float at[N >= 4 ? 4 : 1];
};

// The elements of a head that turn with each other and belong to one thread: N from `low` on, N from `low + half` on.
struct Place {
    uint32_t layer, head, low, feature;
};

template <int N> __device__ __forceinline__ bool place_of(const KvView& kv, uint32_t unit, Place& place) {
    uint32_t half = kv.head_dim / 2, units = half / N;
    uint32_t plane = unit / units;
    if (plane >= kv.layers * kv.kv_heads) return false;
    place.layer = plane / kv.kv_heads;
    place.head = plane % kv.kv_heads;
    place.low = unit % units * N;
    place.feature = plane * kv.head_dim + place.low;
    return true;
}

// rows[s, :P] = f16(alpha x (unturned cache row - mean)) for slots s < slots; `turns` is null for values. The smallest token with an entry
// that is not finite goes to bad_token. Grid: (units / 256, slots).
template <int N>
__device__ __forceinline__ void gather(const KvView& kv, uint32_t value, const uint32_t* slot_token, uint32_t first_token, const float2* turns,
                                       const float* mean, float alpha, __half* rows, uint32_t stride, uint32_t* bad_token) {
    Place place;
    if (!place_of<N>(kv, blockIdx.x * blockDim.x + threadIdx.x, place)) return;
    uint32_t half = kv.head_dim / 2, token = slot_token[blockIdx.y];
    const __nv_bfloat16* row = kv_row(kv, place.layer, value, first_token + token, place.head) + place.low;
    Bf16s<N> low = *(const Bf16s<N>*)row, high = *(const Bf16s<N>*)(row + half);
    Halves<N> out_low, out_high;
    bool finite = true;
    for (int i = 0; i < N; i++) {
        float a = __bfloat162float(low.at[i]), b = __bfloat162float(high.at[i]);
        finite = finite && isfinite(a) && isfinite(b);
        float x = a, y = b;
        if (turns) {
            float2 turn = turns[token * half + place.low + i];
            x = a * turn.x + b * turn.y;
            y = b * turn.x - a * turn.y;
        }
        out_low.at[i] = to_finite_half((x - mean[place.feature + i]) * alpha);
        out_high.at[i] = to_finite_half((y - mean[place.feature + half + i]) * alpha);
    }
    if (!finite) atomicMin(bad_token, token);
    __half* out = rows + (size_t)blockIdx.y * stride + place.feature;
    *(Halves<N>*)out = out_low;
    *(Halves<N>*)(out + half) = out_high;
}

// Writes rows[s, :P] x inverse + mean, turned to its position, to the pages, rounded to bf16: the mirror of `gather`.
template <int N>
__device__ __forceinline__ void scatter(const KvView& kv, uint32_t value, const uint32_t* slot_token, uint32_t first_token,
                                        const float2* turns, const float* mean, float inverse, const float* rows, uint32_t stride) {
    Place place;
    if (!place_of<N>(kv, blockIdx.x * blockDim.x + threadIdx.x, place)) return;
    uint32_t half = kv.head_dim / 2, token = slot_token[blockIdx.y];
    const float* row = rows + (size_t)blockIdx.y * stride + place.feature;
    constexpr int STEP = N >= 4 ? 4 : 1;
    float low[N], high[N];
    for (int i = 0; i < N; i += STEP) {
        *(Floats<N>*)(low + i) = *(const Floats<N>*)(row + i);
        *(Floats<N>*)(high + i) = *(const Floats<N>*)(row + half + i);
    }
    Bf16s<N> out_low, out_high;
    for (int i = 0; i < N; i++) {
        float a = low[i] * inverse + mean[place.feature + i], b = high[i] * inverse + mean[place.feature + half + i];
        float x = a, y = b;
        if (turns) {
            float2 turn = turns[token * half + place.low + i];
            x = a * turn.x - b * turn.y;
            y = b * turn.x + a * turn.y;
        }
        out_low.at[i] = __float2bfloat16_rn(x);
        out_high.at[i] = __float2bfloat16_rn(y);
    }
    __nv_bfloat16* out = kv_row(kv, place.layer, value, first_token + token, place.head) + place.low;
    *(Bf16s<N>*)out = out_low;
    *(Bf16s<N>*)(out + half) = out_high;
}

#define ROWS_OF(N)                                                                                                                    \
    extern "C" __global__ void kvtc_gather_##N(KvView kv, uint32_t value, const uint32_t* slot_token, uint32_t first_token,            \
                                               const float2* turns, const float* mean, float alpha, __half* rows, uint32_t stride,     \
                                               uint32_t* bad_token) {                                                                 \
        gather<N>(kv, value, slot_token, first_token, turns, mean, alpha, rows, stride, bad_token);                                   \
    }                                                                                                                                 \
    extern "C" __global__ void kvtc_scatter_##N(KvView kv, uint32_t value, const uint32_t* slot_token, uint32_t first_token,           \
                                                const float2* turns, const float* mean, float inverse, const float* rows,              \
                                                uint32_t stride) {                                                                    \
        scatter<N>(kv, value, slot_token, first_token, turns, mean, inverse, rows, stride);                                           \
    }
ROWS_OF(8)
ROWS_OF(1)

// out[s, b] = the id at b tokens before that of slot s, 0 before the prompt's start: [slots, context]. `ids` holds those of the chunk's
// tokens after those of `lead` tokens before it.
extern "C" __global__ void kvtc_slot_ids(const uint32_t* slot_token, uint32_t slots, uint32_t context, const uint32_t* ids, uint32_t lead,
                                         uint32_t* out) {
    uint32_t at = blockIdx.x * blockDim.x + threadIdx.x;
    if (at >= slots * context) return;
    uint32_t position = slot_token[at / context] + lead, back = at % context;
    out[at] = back <= position ? ids[position - back] : 0;
}

// rows[s, :width] = features of the ids of `kvtc_slot_ids`, [slots, context x token_features], and zeros up to `padded` and where there is
// no id. Grid: (padded / 256, slots).
extern "C" __global__ void kvtc_place_features(const __half* features, const uint32_t* slot_token, uint32_t context, uint32_t token_features,
                                               uint32_t lead, uint32_t padded, __half* rows, uint32_t stride) {
    uint32_t at = (blockIdx.x * blockDim.x + threadIdx.x) * 8;
    if (at >= padded) return;
    uint32_t width = context * token_features, position = slot_token[blockIdx.y] + lead;
    const __half* from = features + (size_t)blockIdx.y * width;
    __half* to = rows + (size_t)blockIdx.y * stride + at;
    if (token_features % 8 == 0) {
        bool is_known = at < width && at / token_features <= position;
        *(uint4*)to = is_known ? *(const uint4*)(from + at) : make_uint4(0, 0, 0, 0);
        return;
    }
    for (uint32_t i = 0; i < 8; i++) {
        bool is_known = at + i < width && (at + i) / token_features <= position;
        to[i] = is_known ? from[at + i] : __half(0.0f);
    }
}

// out[i] = table[ids[i]], [count, features]: what `DeviceTokenFeatures` asks for, from a table. Grid: (features / 256, count).
extern "C" __global__ void kvtc_feature_table(const __half* table, uint32_t features, const uint32_t* ids, __half* out) {
    uint32_t at = blockIdx.x * blockDim.x + threadIdx.x;
    if (at < features) out[(size_t)blockIdx.y * features + at] = table[(size_t)ids[blockIdx.y] * features + at];
}

// Element `at` of bf16 [layers, kv_heads, tokens, head_dim] in the pages.
__device__ __forceinline__ __nv_bfloat16* element(const KvView& kv, uint32_t value, uint32_t first_token, uint32_t tokens, uint32_t at) {
    uint32_t dimension = at % kv.head_dim, token = at / kv.head_dim % tokens, plane = at / kv.head_dim / tokens;
    return kv_row(kv, plane / kv.kv_heads, value, first_token + token, plane % kv.kv_heads) + dimension;
}

// Exact tokens: bf16 [layers, kv_heads, tokens, head_dim] of `elements` elements a side, keys (y = 0) then values (y = 1), each all low bytes
// and then all high bytes. Grid: (elements / 256, 2).
extern "C" __global__ void kvtc_take_exact(KvView kv, uint32_t first_token, uint32_t tokens, uint32_t elements, uint8_t* bytes) {
    uint32_t at = blockIdx.x * blockDim.x + threadIdx.x;
    if (at >= elements) return;
    uint16_t bits = __bfloat16_as_ushort(*element(kv, blockIdx.y, first_token, tokens, at));
    uint8_t* side = bytes + (size_t)blockIdx.y * 2 * elements;
    side[at] = (uint8_t)bits;
    side[elements + at] = (uint8_t)(bits >> 8);
}

// The mirror of `kvtc_take_exact`.
extern "C" __global__ void kvtc_put_exact(KvView kv, uint32_t first_token, uint32_t tokens, uint32_t elements, const uint8_t* bytes) {
    uint32_t at = blockIdx.x * blockDim.x + threadIdx.x;
    if (at >= elements) return;
    const uint8_t* side = bytes + (size_t)blockIdx.y * 2 * elements;
    *element(kv, blockIdx.y, first_token, tokens, at) = __ushort_as_bfloat16((uint16_t)(side[at] | side[elements + at] << 8));
}

// Sets *differs where an element of token 0 is farther from the plan's row, [2, P], than tolerance[side]. Grid: (P / 256, 2).
extern "C" __global__ void kvtc_compare_first(KvView kv, const __nv_bfloat16* row, float key_tolerance, float value_tolerance,
                                              uint32_t* differs) {
    uint32_t at = blockIdx.x * blockDim.x + threadIdx.x, features = kv.layers * kv.kv_heads * kv.head_dim;
    if (at >= features) return;
    float here = __bfloat162float(*element(kv, blockIdx.y, 0, 1, at)), there = __bfloat162float(row[blockIdx.y * features + at]);
    bool is_near = fabsf(here - there) <= (blockIdx.y ? value_tolerance : key_tolerance);
    if (!is_near) *differs = 1;
}

// Puts the plan's row, [2, P], at token 0. Grid: (P / 256, 2).
extern "C" __global__ void kvtc_put_first(KvView kv, const __nv_bfloat16* row) {
    uint32_t at = blockIdx.x * blockDim.x + threadIdx.x, features = kv.layers * kv.kv_heads * kv.head_dim;
    if (at < features) *element(kv, blockIdx.y, 0, 1, at) = row[blockIdx.y * features + at];
}
