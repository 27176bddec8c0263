// Kernels with planted bugs, which the emulator must find. If `broken` is false, the kernel is correct: each output is
// the input mirrored within its block, or the sum over its warp.
#include <cstring>

#include "cuda/launch.cuh"
#include "cuda/memory.cuh"
#include "cuda/reduce.cuh"

namespace {

using namespace zskd::cuda;

constexpr int kThreads = 64;

struct Bug {
  const float* in;
  float* out;
  int64_t count;  // a multiple of kThreads
  bool broken;
};

__device__ int own() { return static_cast<int>(threadIdx.x); }
__device__ int mirrored() { return kThreads - 1 - own(); }
__device__ bool in_upper_half() { return own() % kWarp >= kWarp / 2; }

__global__ void missing_barrier(const Bug p) {
  static __shared__ float values[kThreads];
  values[own()] = p.in[grid_thread()];
  if (!p.broken) __syncthreads();
  p.out[grid_thread()] = values[mirrored()];
}

__global__ void missing_barrier_before_reuse(const Bug p) {
  static __shared__ float values[kThreads];
  for (int64_t first = 0; first < p.count; first += kThreads) {
    values[own()] = p.in[first + own()];
    __syncthreads();
    p.out[first + own()] = values[mirrored()];
    if (!p.broken) __syncthreads();
  }
}

// The bug shows only if one warp gets ahead of the other by a whole shuffle.
__global__ void missing_barrier_after_a_shuffle(const Bug p) {
  static __shared__ float sums[kThreads / kWarp];
  for (int64_t first = 0; first < p.count; first += kThreads) {
    const float sum = group_sum(p.in[first + own()], kWarp);
    if (own() % kWarp == 0) sums[own() / kWarp] = sum;
    __syncthreads();
    p.out[first + own()] = sums[own() / kWarp ^ 1];
    if (!p.broken) __syncthreads();
  }
}

__global__ void barrier_in_a_branch(const Bug p) {
  static __shared__ float values[kThreads];
  values[own()] = p.in[grid_thread()];
  if (p.broken && own() == 7) return;
  __syncthreads();
  p.out[grid_thread()] = values[mirrored()];
}

__global__ void two_barriers_for_one(const Bug p) {
  static __shared__ float values[kThreads];
  values[own()] = p.in[grid_thread()];
  if (p.broken && own() < kWarp) {
    __syncthreads();
  } else {
    __syncthreads();
  }
  p.out[grid_thread()] = values[mirrored()];
}

__global__ void unwritten_shared_memory(const Bug p) {
  static __shared__ float values[kThreads];
  if (!p.broken || own() != 5) values[own()] = p.in[grid_thread()];
  __syncthreads();
  p.out[grid_thread()] = values[mirrored()];
}

__global__ void lane_outside_its_mask(const Bug p) {
  float sum = p.in[grid_thread()];
  const unsigned mask = p.broken ? kWholeWarp >> 1 : kWholeWarp;
  for (int distance = kWarp / 2; distance > 0; distance /= 2) sum += __shfl_xor_sync(mask, sum, distance);
  p.out[grid_thread()] = sum;
}

__global__ void source_outside_the_mask(const Bug p) {
  float sum = p.in[grid_thread()];
  const unsigned mask = !p.broken ? kWholeWarp : in_upper_half() ? 0xFFFF0000u : 0x0000FFFFu;
  for (int distance = kWarp / 2; distance > 0; distance /= 2) sum += __shfl_xor_sync(mask, sum, distance);
  p.out[grid_thread()] = sum;
}

__global__ void shuffle_without_all_lanes(const Bug p) {
  if (p.broken && own() % kWarp == 3) return;
  p.out[grid_thread()] = group_sum(p.in[grid_thread()], kWarp);
}

__global__ void ballot_without_all_lanes(const Bug p) {
  if (p.broken && own() % kWarp == 3) return;
  const bool all = __ballot_sync(kWholeWarp, 1) == kWholeWarp;
  p.out[grid_thread()] = group_sum(p.in[grid_thread()], all ? kWarp : 1);
}

__global__ void missing_warp_barrier(const Bug p) {
  static __shared__ float values[kThreads];
  values[own()] = p.in[grid_thread()];
  if (!p.broken) __syncwarp();
  float sum = 0;
  for (int lane = 0; lane < kWarp; ++lane) sum += values[own() / kWarp * kWarp + lane];
  p.out[grid_thread()] = sum;
}

__global__ void misaligned_vector(const Bug p) {
  float values[4];
  const int64_t i = grid_thread() / 4 * 4;
  load<4>(p.in + (p.broken ? i + 1 : i), values);
  p.out[grid_thread()] = group_sum(values[grid_thread() - i], kWarp);
}

__global__ void no_stride_over_the_grid(const Bug p) {
  static __shared__ float values[kThreads];
  for (int64_t i = grid_thread(); i < p.count; i += p.broken ? p.count : grid_threads()) {
    values[own()] = p.in[i];
    __syncthreads();
    p.out[i] = values[mirrored()];
    __syncthreads();
  }
}

__global__ void one_element_too_far(const Bug p) {
  for (int64_t i = grid_thread(); p.broken ? i <= p.count : i < p.count; i += grid_threads()) {
    p.out[i] = p.in[i / kThreads * kThreads + mirrored()];
  }
}

__global__ void past_static_shared_memory(const Bug p) {
  static __shared__ float values[kThreads];
  values[own() + (p.broken ? 1 : 0)] = p.in[grid_thread()];
  __syncthreads();
  p.out[grid_thread()] = values[mirrored()];
}

__global__ void past_dynamic_shared_memory(const Bug p) {
  float* const values = reinterpret_cast<float*>(dynamic_shared_memory);
  values[own() + (p.broken ? 1 : 0)] = p.in[grid_thread()];
  __syncthreads();
  p.out[grid_thread()] = values[mirrored()];
}

void run(void (*kernel)(Bug), const Bug& bug) {
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(static_cast<unsigned>(bug.count / kThreads));
  config.blockDim = dim3(kThreads);
  config.dynamicSmemBytes = kThreads * sizeof(float);
  check(cudaLaunchKernelEx(&config, kernel, bug), "planted bug");
}

__global__ void nothing(const Bug) {}

// Launches that a device would refuse.
void too_large_a_block(const Bug& bug) {
  launch("planted bug", missing_barrier, bug, bug.count, kThreads, bug.broken ? 2048 : kThreads, nullptr);
}
void too_much_dynamic_shared_memory(const Bug& bug) {
  cudaLaunchConfig_t config = {};
  config.blockDim = dim3(1);
  config.dynamicSmemBytes = bug.broken ? size_t{1} << 20 : 16;
  check(cudaLaunchKernelEx(&config, nothing, bug), "planted bug");
}

#define PLANTED(name) \
  if (!std::strcmp(kernel, #name)) return run(name, bug);
#define PLANTED_LAUNCH(name) \
  if (!std::strcmp(kernel, #name)) return name(bug);

}  // namespace

void run_planted_bug(const char* kernel, const float* in, float* out, int64_t count, bool broken) {
  const Bug bug = {in, out, count, broken};
  PLANTED(missing_barrier)
  PLANTED(missing_barrier_before_reuse)
  PLANTED(missing_barrier_after_a_shuffle)
  PLANTED(barrier_in_a_branch)
  PLANTED(two_barriers_for_one)
  PLANTED(unwritten_shared_memory)
  PLANTED(lane_outside_its_mask)
  PLANTED(source_outside_the_mask)
  PLANTED(shuffle_without_all_lanes)
  PLANTED(ballot_without_all_lanes)
  PLANTED(missing_warp_barrier)
  PLANTED(misaligned_vector)
  PLANTED(no_stride_over_the_grid)
  PLANTED(one_element_too_far)
  PLANTED(past_static_shared_memory)
  PLANTED(past_dynamic_shared_memory)
  PLANTED_LAUNCH(too_large_a_block)
  PLANTED_LAUNCH(too_much_dynamic_shared_memory)
  throw std::runtime_error(std::string("no planted bug is called ") + kernel);
}
