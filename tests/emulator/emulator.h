// Runs the blocks of a launch one after another, in an order drawn from a seed, and within a block one thread at a
// time: a thread goes on until it waits for others, then another that can go on is drawn, either any or one of the warp
// that the block favours. So a result that needs a barrier which is not there changes from seed to seed. What is
// watched and reported as an error of the launch:
//   a barrier or warp exchange that not every thread it waits for comes to (by source line and mask);
//   a lane outside the mask it names, or one that reads from outside it;
//   an access of 2 to 16 bytes at an address that is no multiple of its size;
//   a block, a grid or dynamic shared memory larger than a device has.
// Shared memory holds NaN when a block starts. Included by include/cuda_runtime.h alone.
#pragma once

#include <functional>
#include <string>

namespace emulator {

constexpr int kWarp = 32;
constexpr unsigned kMostThreads = 1024;
constexpr size_t kDynamicSharedBytes = size_t{48} << 10;

// What a lane takes part in: lanes meet where all three agree.
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

// The seed of the order, and the most blocks that a launch gets: a kernel that strides over its work does it all the
// same with fewer blocks than it asked for.
void configure(uint64_t seed, unsigned most_blocks);

}  // namespace emulator

// What a kernel under test declares as `extern __shared__ unsigned char dynamic_shared_memory[]`.
extern unsigned char dynamic_shared_memory[];
