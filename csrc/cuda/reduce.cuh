// Sums and maxima over groups of adjacent lanes; the size of a group is a power of two. All lanes of the warp must call
// them. All lanes of a group get the same bits, because both lanes of a pair add the same two numbers.
#pragma once

#include "cuda/launch.cuh"
#include "math/portable.h"

namespace zskd::cuda {

constexpr unsigned kWholeWarp = 0xFFFFFFFFu;

// The larger of the two. Of a NaN and a number it may be either: a row with a NaN gets its NaN from the sums, whatever
// the maximum. For float it is one instruction, where math::at_least is two.
__device__ __forceinline__ float larger(float a, float b) { return __builtin_fmaxf(a, b); }
__device__ __forceinline__ double larger(double a, double b) { return math::at_least(b, a); }

template <class A>
__device__ __forceinline__ A group_max(A value, int lanes) {
  for (int distance = lanes / 2; distance > 0; distance /= 2) {
    value = larger(value, __shfl_xor_sync(kWholeWarp, value, distance));
  }
  return value;
}

// The lower half of the lanes plus the upper half, again and again (the order of math::kPartialSums).
template <class A>
__device__ __forceinline__ A group_sum(A value, int lanes) {
  for (int distance = lanes / 2; distance > 0; distance /= 2) {
    value += __shfl_xor_sync(kWholeWarp, value, distance);
  }
  return value;
}

// The index of this thread in the grid, and the number of threads of the grid.
__device__ __forceinline__ int64_t grid_thread() { return int64_t{blockIdx.x} * blockDim.x + threadIdx.x; }
__device__ __forceinline__ int64_t grid_threads() { return int64_t{gridDim.x} * blockDim.x; }

// a / b for a >= 0 and b > 0, as a 32-bit division if both fit: a 64-bit division is many times slower.
__device__ __forceinline__ int64_t divide(int64_t a, int64_t b) {
  if ((a | b) >> 32 == 0) return static_cast<uint32_t>(a) / static_cast<uint32_t>(b);
  return a / b;
}

}  // namespace zskd::cuda
