// The storage types of the CUDA backend, and loads and stores of global memory: 16-bit floats are converted to float32
// on load and back on store. Adjacent elements are moved 128 bits at a time where pointer, stride and length allow it.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <cstring>

#include "math/portable.h"

namespace zskd::cuda {

using Half = __half;
using BFloat16 = __nv_bfloat16;

constexpr int kVectorBytes = 16;

template <class T>
constexpr int kVector = kVectorBytes / static_cast<int>(sizeof(T));  // elements per 128-bit access

using math::accumulate_t;

__device__ __forceinline__ float widen(float x) { return x; }
__device__ __forceinline__ double widen(double x) { return x; }
__device__ __forceinline__ float widen(Half x) { return __half2float(x); }
__device__ __forceinline__ float widen(BFloat16 x) { return __bfloat162float(x); }

// Rounds to nearest, ties to even.
template <class T>
__device__ __forceinline__ T narrow(accumulate_t<T> x) {
  return x;
}
template <>
__device__ __forceinline__ Half narrow<Half>(float x) {
  return __float2half_rn(x);
}
template <>
__device__ __forceinline__ BFloat16 narrow<BFloat16>(float x) {
  return __float2bfloat16_rn(x);
}

// Whether rows of `length` elements, `stride` elements apart, may be moved `width` elements at a time.
template <class T>
bool is_aligned(const T* rows, int64_t stride, int64_t length, int width) {
  const auto address = reinterpret_cast<uintptr_t>(rows);
  return address % kVectorBytes == 0 && stride * static_cast<int64_t>(sizeof(T)) % kVectorBytes == 0 &&
         length % width == 0;
}

#if defined(__CUDACC__)
// Plain accesses, which the compiler may reorder: __ldca and __stwb compile to LDG.STRONG and STG.STRONG. The emulator
// of the tests has functions of the same names that count.
template <class T>
__device__ __forceinline__ T load_global(const T* from) {
  return *from;
}
template <class T>
__device__ __forceinline__ void store_global(T* to, T value) {
  *to = value;
}
// Assembly, because the compiler splits some plain stores of 128 bits into four.
__device__ __forceinline__ void store_global(uint4* to, uint4 value) {
  asm volatile("st.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(to), "r"(value.x), "r"(value.y), "r"(value.z),
               "r"(value.w)
               : "memory");
}
#endif

// Loads `width` adjacent elements, as 128-bit pieces if they fill whole pieces.
template <int width, class T>
__device__ __forceinline__ void load(const T* from, accumulate_t<T>* to) {
  if constexpr (width % kVector<T> == 0) {
    constexpr int pieces = width / kVector<T>;
    uint4 raw[pieces];
#pragma unroll
    for (int i = 0; i < pieces; ++i) raw[i] = load_global(reinterpret_cast<const uint4*>(from) + i);
    T elements[width];
    memcpy(elements, raw, sizeof(raw));
#pragma unroll
    for (int i = 0; i < width; ++i) to[i] = widen(elements[i]);
  } else {
#pragma unroll
    for (int i = 0; i < width; ++i) to[i] = widen(load_global(from + i));
  }
}

// Stores `width` adjacent elements in the same way.
template <int width, class T>
__device__ __forceinline__ void store(T* to, const accumulate_t<T>* from) {
  if constexpr (width % kVector<T> == 0) {
    T elements[width];
#pragma unroll
    for (int i = 0; i < width; ++i) elements[i] = narrow<T>(from[i]);
    uint4 raw[width / kVector<T>];
    memcpy(raw, elements, sizeof(raw));
#pragma unroll
    for (int i = 0; i < width / kVector<T>; ++i) store_global(reinterpret_cast<uint4*>(to) + i, raw[i]);
  } else {
#pragma unroll
    for (int i = 0; i < width; ++i) store_global(to + i, narrow<T>(from[i]));
  }
}

}  // namespace zskd::cuda
