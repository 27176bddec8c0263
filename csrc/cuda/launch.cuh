// The function that starts all kernels. It checks every launch and limits the size of the grid, so every kernel loops
// with the stride of the grid until all work is done.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <stdexcept>
#include <string>

// The shared memory of a block that is launched with `shared_bytes`.
alignas(16) extern __shared__ unsigned char dynamic_shared_memory[];

namespace zskd::cuda {

constexpr int kWarp = 32;
constexpr int64_t kSharedBytes = int64_t{48} << 10;  // that a block of any device may have without asking for more
constexpr int64_t kMostBlocks = int64_t{1} << 20;    // thousands for each multiprocessor of any device

inline void check(cudaError_t status, const char* what) {
  if (status == cudaSuccess) return;
  cudaGetLastError();  // clears the error, so that the next check of the runtime does not report it again
  throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(status));
}

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Starts `kernel` with one block of `threads` threads for every `units_per_block` of the `units` of work, up to
// kMostBlocks. Does nothing if there is no work. `shared_bytes` come on top of the shared memory that the kernel
// declares.
template <class Params>
void launch(const char* op, void (*kernel)(Params), const Params& params, int64_t units, int64_t units_per_block,
            int threads, cudaStream_t stream, int64_t shared_bytes = 0) {
  if (units == 0) return;
  const int64_t blocks = ceil_div(units, units_per_block);
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned>(blocks < kMostBlocks ? blocks : kMostBlocks));
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.dynamicSmemBytes = static_cast<size_t>(shared_bytes);
  config.stream = stream;
  check(cudaLaunchKernelEx(&config, kernel, params), op);
}

}  // namespace zskd::cuda
