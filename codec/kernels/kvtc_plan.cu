// Tables of a plan, finished on the device when it is loaded. CPU twin: the predictions of predict/mod.rs, projected.
#include "kvtc.cuh"

// One row of the encoder's matrix, [features, padding | inputs, padding]: the basis row is there, `mapped` is basis x map in f32,
// [components, inputs]. Writes -mapped x factor behind the basis row; where that is too large for f16 the whole row is made smaller by a
// power of two, and scale[row], which undoes the row's factors, larger. Grid: components, 256 threads.
extern "C" __global__ void kvtc_finish_row(const float* mapped, uint32_t inputs, uint32_t padded_inputs, uint32_t mapped_stride, float factor,
                                           __half* matrix, uint32_t padded_features, float* scale) {
    __shared__ float largest[256];
    const float* from = mapped + (size_t)blockIdx.x * mapped_stride;
    __half* row = matrix + (size_t)blockIdx.x * (padded_features + padded_inputs);
    float here = 0.0f;
    for (uint32_t i = threadIdx.x; i < inputs; i += 256) here = fmaxf(here, fabsf(from[i] * factor));
    largest[threadIdx.x] = here;
    for (uint32_t half = 128; half > 0; half /= 2) {
        __syncthreads();
        if (threadIdx.x < half) largest[threadIdx.x] = fmaxf(largest[threadIdx.x], largest[threadIdx.x + half]);
    }
    __syncthreads();
    float shrink = 1.0f;
    while (largest[0] * shrink > 32768.0f) shrink *= 0.5f;
    if (shrink < 1.0f) {
        for (uint32_t i = threadIdx.x; i < padded_features; i += 256) row[i] = __float2half_rn(__half2float(row[i]) * shrink);
    }
    for (uint32_t i = threadIdx.x; i < padded_inputs; i += 256) {
        row[padded_features + i] = __float2half_rn(i < inputs ? -from[i] * factor * shrink : 0.0f);
    }
    if (threadIdx.x == 0) scale[blockIdx.x] /= shrink;
}
