// Sums and maxima over a group of neighbouring lanes, whose number is a power of two. Every lane of the warp takes
// part, and every lane of a group ends with the same bits: the partners of each step add the same two numbers.
#pragma once

#include "cuda/launch.cuh"
#include "math/portable.h"

namespace zskd::cuda {

constexpr unsigned kWholeWarp = 0xFFFFFFFFu;

// A NaN of another lane is left out, as math::at_least leaves it.
template <class A>
__device__ __forceinline__ A group_max(A value, int lanes) {
  for (int distance = lanes / 2; distance > 0; distance /= 2) {
    value = math::at_least(value, __shfl_xor_sync(kWholeWarp, value, distance));
  }
  return value;
}

// Halves: the lower lanes add the upper ones, then again.
template <class A>
__device__ __forceinline__ A group_sum(A value, int lanes) {
  for (int distance = lanes / 2; distance > 0; distance /= 2) {
    value += __shfl_xor_sync(kWholeWarp, value, distance);
  }
  return value;
}

// The index of this thread in the whole grid, and the number of threads in it.
__device__ __forceinline__ int64_t grid_thread() { return int64_t{blockIdx.x} * blockDim.x + threadIdx.x; }
__device__ __forceinline__ int64_t grid_threads() { return int64_t{gridDim.x} * blockDim.x; }

// a / b for 0 <= a, 0 < b: a 64-bit division is many times slower than the 32-bit one that nearly always serves.
__device__ __forceinline__ int64_t divide(int64_t a, int64_t b) {
  if ((a | b) >> 32 == 0) return static_cast<uint32_t>(a) / static_cast<uint32_t>(b);
  return a / b;
}

}  // namespace zskd::cuda
