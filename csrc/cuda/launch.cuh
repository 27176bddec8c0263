// The one way to start a kernel. Every launch is checked, and grids keep within the limits of the device: a kernel
// strides over what its grid does not cover.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <stdexcept>
#include <string>

namespace zskd::cuda {

constexpr int kWarp = 32;
constexpr int64_t kMostBlocks = int64_t{1} << 20;  // some thousands for each processor of any device

inline void check(cudaError_t status, const char* what) {
  if (status == cudaSuccess) return;
  cudaGetLastError();  // reported here, so not once more by whoever asks next
  throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(status));
}

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// `kernel` over `units` of work, `units_a_block` for each block of `threads`. No work, no launch.
template <class Params>
void launch(const char* op, void (*kernel)(Params), const Params& params, int64_t units, int64_t units_a_block,
            int threads, cudaStream_t stream) {
  if (units == 0) return;
  const int64_t blocks = ceil_div(units, units_a_block);
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned>(blocks < kMostBlocks ? blocks : kMostBlocks));
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.stream = stream;
  check(cudaLaunchKernelEx(&config, kernel, params), op);
}

}  // namespace zskd::cuda
