// What the kernels of a decode step share: its inputs, and the few instructions that C++ has no name for.
#pragma once
#include "kv_pages.cuh"

constexpr uint32_t WARP = 32;
// Position of a row that stands for no session: it is computed with the others, reads zeros and writes no cache.
constexpr uint32_t NOBODY = 0xffffffff;

// One session's part in a step.
struct StepRow {
    const uint32_t* table; // [pages] of its cache
    uint32_t token;        // what it continues after
    uint32_t position;     // of that token; its keys and values are appended there
};

// Tokens start..end of a session, one block's share of its attention.
struct StepItem {
    uint32_t row, start, end;
    uint16_t first, count; // the session's shares are items first .. first + count
};

// Lets the next kernel of the stream start as soon as there is room for its blocks. What it reads of this one's results waits in
// after_previous() until this one is through.
__device__ __forceinline__ void start_next() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

__device__ __forceinline__ void after_previous() {
#if __CUDA_ARCH__ >= 900
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// Starts a copy of 16 bytes to shared memory; of zeros where `valid` is false.
__device__ __forceinline__ void copy16(void* shared, const void* global, bool valid = true) {
    uint32_t to = (uint32_t)__cvta_generic_to_shared(shared), bytes = valid ? 16 : 0;
    asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(to), "l"(global), "r"(bytes) : "memory");
}

__device__ __forceinline__ void end_copies() { asm volatile("cp.async.commit_group;" ::: "memory"); }

// Waits until at most LATER groups of this thread's copies are under way.
template <int LATER>
__device__ __forceinline__ void await_copies() {
    asm volatile("cp.async.wait_group %0;" ::"n"(LATER) : "memory");
}

// c[16, 8] += a[16, 16] * b[16, 8], bf16 with f32 sums; fragments as in the PTX manual, mma.m16n8k16.
__device__ __forceinline__ void multiply(float (&c)[4], uint32_t a0, uint32_t a1, uint32_t a2, uint32_t a3, uint32_t b0, uint32_t b1) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};"
                 : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
                 : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b0), "r"(b1));
}

// Two floats as bf16, the first in the low half.
__device__ __forceinline__ uint32_t pack(float low, float high) {
    __nv_bfloat162 both = __floats2bfloat162_rn(low, high);
    return *reinterpret_cast<uint32_t*>(&both);
}
