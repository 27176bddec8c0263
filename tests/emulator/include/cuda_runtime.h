// The part of CUDA that csrc/cuda uses, on a CPU. g++ includes this header where nvcc includes that of the toolkit.
// Each thread of a block is a fiber; ../emulator.h lists the faults that are detected.
#pragma once

#include <cstdint>
#include <cstring>
#include <source_location>
#include <utility>

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline __attribute__((always_inline))
#define __launch_bounds__(...)
// One section for all shared memory, so that it can be filled with NaN before each block. Blocks run one by one.
#define __shared__ __attribute__((section("emulated_shared")))

struct uint3 {
  unsigned x, y, z;
};
struct dim3 {
  unsigned x, y, z;
  constexpr dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};

struct CUstream_st;
using cudaStream_t = CUstream_st*;
enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidConfiguration = 9, cudaErrorLaunchFailure = 719 };

struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes = 0;
  cudaStream_t stream = nullptr;
};

#include "../emulator.h"

extern uint3 threadIdx, blockIdx;
extern dim3 blockDim, gridDim;

const char* cudaGetErrorString(cudaError_t status);
cudaError_t cudaGetLastError();

template <class... Parameters, class... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               Arguments&&... arguments) {
  return emulator::launch(*config, [&] { kernel(static_cast<Parameters>(arguments)...); });
}

using SourceLine = std::source_location;

inline void __syncthreads(SourceLine where = SourceLine::current()) { emulator::sync_block(where); }
inline void __syncwarp(unsigned mask = 0xFFFFFFFFu, SourceLine where = SourceLine::current()) {
  emulator::exchange({"__syncwarp", mask, where}, 0, emulator::own_lane());
}

// A shuffle stays within its segment of `width` lanes. If the source is outside, a lane receives its own value.
template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32, SourceLine where = SourceLine::current()) {
  const int segment = emulator::own_lane() / width * width;
  return emulator::shuffled({"__shfl_sync", mask, where}, value, segment + (source % width + width) % width);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = 32, SourceLine where = SourceLine::current()) {
  const int own = emulator::own_lane(), source = own ^ lanes;
  return emulator::shuffled({"__shfl_xor_sync", mask, where}, value,
                            source < own / width * width + width ? source : own);
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned lanes, int width = 32, SourceLine where = SourceLine::current()) {
  const int own = emulator::own_lane(), source = own + static_cast<int>(lanes);
  return emulator::shuffled({"__shfl_down_sync", mask, where}, value,
                            source < own / width * width + width ? source : own);
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned lanes, int width = 32, SourceLine where = SourceLine::current()) {
  const int own = emulator::own_lane(), source = own - static_cast<int>(lanes);
  return emulator::shuffled({"__shfl_up_sync", mask, where}, value, source >= own / width * width ? source : own);
}
inline unsigned __ballot_sync(unsigned mask, int predicate, SourceLine where = SourceLine::current()) {
  return emulator::ballot({"__ballot_sync", mask, where}, predicate != 0);
}

// Accesses to global memory, as csrc/cuda/memory.cuh has them for a device; each one is counted.
template <class T>
T load_global(const T* from) {
  emulator::count_load(from, sizeof(T));
  return *from;
}
template <class T>
void store_global(T* to, T value) {
  emulator::count_store(to, sizeof(T));
  *to = value;
}
