// Runs the blocks of a launch one after another, in an order drawn from a seed, and the threads of a block one at a
// time: a thread runs until it waits for others, then another thread that can run is drawn. In half of the blocks any
// thread may be drawn, in the other half the warps have priorities. If a kernel lacks a barrier, its result therefore
// changes from seed to seed. These faults are reported as errors of the launch:
//   a barrier or warp exchange that not all awaited threads reach (compared by source line and mask);
//   a lane that is not in the mask that it passes, or that reads from a lane outside the mask;
//   an access of 2 to 16 bytes at an address that is not a multiple of its size;
//   a block, a grid or dynamic shared memory larger than a device allows.
// Shared memory holds NaN when a block starts. Only include/cuda_runtime.h includes this file.
#pragma once

#include <functional>
#include <string>

namespace emulator {

constexpr int kWarp = 32;
constexpr unsigned kMostThreads = 1024;
constexpr size_t kDynamicSharedBytes = size_t{48} << 10;

// A barrier or exchange that a lane takes part in. Lanes meet if all three fields are equal.
struct Meeting {
  const char* what;
  unsigned mask;
  std::source_location where;
};

cudaError_t launch(const cudaLaunchConfig_t& config, const std::function<void()>& thread);

void sync_block(std::source_location where);
uint64_t exchange(const Meeting& meeting, uint64_t value, int source);  // the value that lane `source` brought
unsigned ballot(const Meeting& meeting, bool vote);
int own_lane();

template <class T>
T shuffled(const Meeting& meeting, T value, int source) {
  static_assert(sizeof(T) == 4 || sizeof(T) == 8, "a shuffle moves 32 or 64 bits");
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof(T));
  bits = exchange(meeting, bits, source);
  std::memcpy(&value, &bits, sizeof(T));
  return value;
}

struct Traffic {
  int64_t loads, load_bytes, stores, store_bytes, wide_loads, wide_stores;  // wide: 128 bits
};
extern Traffic traffic;  // since the last configure()

void check_aligned(const void* address, size_t bytes);

inline void count_load(const void* from, size_t bytes) {
  check_aligned(from, bytes);
  traffic.loads += 1;
  traffic.load_bytes += static_cast<int64_t>(bytes);
  traffic.wide_loads += bytes == 16;
}
inline void count_store(const void* to, size_t bytes) {
  check_aligned(to, bytes);
  traffic.stores += 1;
  traffic.store_bytes += static_cast<int64_t>(bytes);
  traffic.wide_stores += bytes == 16;
}

// Sets the seed of the order and the largest number of blocks of a launch: a kernel that loops with the stride of the
// grid must do all its work with fewer blocks than it was launched with.
void configure(uint64_t seed, unsigned most_blocks);

}  // namespace emulator

// The memory that a kernel would declare as `extern __shared__ unsigned char dynamic_shared_memory[]`.
extern unsigned char dynamic_shared_memory[];
