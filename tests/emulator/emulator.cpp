#include <cuda_runtime.h>

#include <algorithm>
#include <cstdio>
#include <vector>

#include "switch.h"

uint3 threadIdx, blockIdx;
dim3 blockDim, gridDim;

extern unsigned char shared_begin[] __asm__("__start_emulated_shared");
extern unsigned char shared_end[] __asm__("__stop_emulated_shared");
alignas(16) __shared__ unsigned char dynamic_shared_memory[emulator::kDynamicSharedBytes];

namespace emulator {

Traffic traffic;

namespace {

enum class State { ready, at_barrier, in_warp, returned };

struct Thread {
  Fiber fiber;
  State state;
  uint3 index;
  Meeting meeting;  // while it waits
  uint64_t value;   // what it gives to an exchange
  int source;       // the lane whose value it receives
  uint64_t received;
};

// SplitMix64 (Steele, Lea, Flood 2014).
uint64_t random_state = 0;
uint64_t random_below(uint64_t limit) {
  uint64_t z = random_state += 0x9E3779B97F4A7C15u;
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
  return (z ^ (z >> 31)) % limit;
}

unsigned most_blocks_of_a_launch = ~0u;
std::string last_report;
std::vector<Thread> threads;
std::vector<std::vector<int>> ready;  // threads, for each warp
int ready_count = 0;
std::vector<size_t> priority;  // the warps, the one with the highest priority first
bool uses_priority = false;
int current = -1;
Fiber scheduler;
const std::function<void()>* body = nullptr;
std::string failure;
size_t dynamic_bytes = 0;

std::string name(int thread) { return "thread " + std::to_string(thread) + " of block " + std::to_string(blockIdx.x); }

std::string describe(const Meeting& meeting) {
  const std::string file = meeting.where.file_name();
  char mask[32] = "";
  if (meeting.mask) std::snprintf(mask, sizeof(mask), ", mask 0x%08x", meeting.mask);
  return std::string(meeting.what) + " (" + file.substr(file.rfind('/') + 1) + ":" +
         std::to_string(meeting.where.line()) + mask + ")";
}

std::string describe(int thread) {
  const Thread& t = threads[static_cast<size_t>(thread)];
  if (t.state == State::returned) return name(thread) + " has returned";
  return name(thread) + " waits at " + describe(t.meeting);
}

void yield() { switch_fiber(threads[static_cast<size_t>(current)].fiber, scheduler); }

// Ends the launch: no thread runs again.
void fail(const std::string& report) {
  if (failure.empty()) failure = report;
  yield();
}

void make_ready(int thread) {
  threads[static_cast<size_t>(thread)].state = State::ready;
  ready[static_cast<size_t>(thread / kWarp)].push_back(thread);
  ready_count += 1;
}

bool meets(const Meeting& a, const Meeting& b) {
  return a.what == b.what && a.mask == b.mask && a.where.line() == b.where.line() &&
         a.where.column() == b.where.column() && std::strcmp(a.where.file_name(), b.where.file_name()) == 0;
}

void run_thread() {
  Thread& own = threads[static_cast<size_t>(current)];
  enter_fiber(own.fiber);
  (*body)();
  own.state = State::returned;
  leave_fiber(scheduler);
}

template <class T>
void shuffle(std::vector<T>& values) {
  for (size_t i = values.size(); i > 1; --i) std::swap(values[i - 1], values[random_below(i)]);
}

// In half of the blocks, a warp runs as far as it can before the next warp runs. It gets further ahead of the others
// than it would if all threads were drawn with equal probability.
void draw_priority(size_t warps) {
  ready.assign(warps, {});
  ready_count = 0;
  priority.resize(warps);
  for (size_t i = 0; i < warps; ++i) priority[i] = i;
  shuffle(priority);
  uses_priority = random_below(2) == 1;
}

int draw_ready() {
  size_t place = uses_priority ? 0 : random_below(priority.size());
  while (ready[priority[place]].empty()) place = (place + 1) % priority.size();
  std::vector<int>& lanes = ready[priority[place]];
  std::swap(lanes[random_below(lanes.size())], lanes.back());
  const int thread = lanes.back();
  lanes.pop_back();
  ready_count -= 1;
  return thread;
}

// Names a thread that waits although no thread can run, and one that it waits for.
std::string stuck_report() {
  const auto waits = [](const Thread& t) { return t.state != State::returned; };
  const int waiting = static_cast<int>(std::find_if(threads.begin(), threads.end(), waits) - threads.begin());
  const Thread& t = threads[static_cast<size_t>(waiting)];
  const int warp = waiting / kWarp * kWarp;
  for (int other = 0; other < static_cast<int>(threads.size()); ++other) {
    const Thread& o = threads[static_cast<size_t>(other)];
    const bool awaited = t.state == State::at_barrier ||
                         (other / kWarp * kWarp == warp && (t.meeting.mask >> (other % kWarp) & 1u) != 0);
    if (awaited && !(o.state == t.state && meets(o.meeting, t.meeting))) {
      return describe(waiting) + ", but " + describe(other);
    }
  }
  return describe(waiting) + " for lanes that the block does not have";
}

void poison_shared_memory() {
  guard_beyond(dynamic_shared_memory, kDynamicSharedBytes, kDynamicSharedBytes);
  std::fill(shared_begin, shared_end, static_cast<unsigned char>(0xFF));
  guard_beyond(dynamic_shared_memory, dynamic_bytes, kDynamicSharedBytes);
}

void run_block() {
  poison_shared_memory();
  const int count = static_cast<int>(blockDim.x * blockDim.y * blockDim.z);
  draw_priority(static_cast<size_t>((count + kWarp - 1) / kWarp));
  for (int i = 0; i < count; ++i) {
    Thread& t = threads[static_cast<size_t>(i)];
    const unsigned u = static_cast<unsigned>(i);
    t.index = {u % blockDim.x, u / blockDim.x % blockDim.y, u / blockDim.x / blockDim.y};
    start_fiber(t.fiber, run_thread);
    make_ready(i);
  }
  while (ready_count > 0 && failure.empty()) {
    current = draw_ready();
    threadIdx = threads[static_cast<size_t>(current)].index;
    switch_fiber(scheduler, threads[static_cast<size_t>(current)].fiber);
  }
  const auto returned = [](const Thread& t) { return t.state == State::returned; };
  if (failure.empty() && !std::all_of(threads.begin(), threads.end(), returned)) failure = stuck_report();
}

std::string refused(const cudaLaunchConfig_t& config) {
  const uint64_t size = uint64_t{config.blockDim.x} * config.blockDim.y * config.blockDim.z;
  if (size == 0 || size > kMostThreads) return "a block of " + std::to_string(size) + " threads";
  if (uint64_t{config.gridDim.x} * config.gridDim.y * config.gridDim.z == 0) return "a grid without blocks";
  if (config.gridDim.x > 0x7FFFFFFFu || config.gridDim.y > 65535 || config.gridDim.z > 65535) return "too large a grid";
  if (config.dynamicSmemBytes > kDynamicSharedBytes) {
    return std::to_string(config.dynamicSmemBytes) + " bytes of dynamic shared memory";
  }
  return "";
}

// The indices of the blocks in the order in which they run.
std::vector<unsigned> block_order() {
  std::vector<unsigned> order(gridDim.x);
  for (unsigned i = 0; i < gridDim.x; ++i) order[i] = i;
  shuffle(order);
  return order;
}

}  // namespace

cudaError_t launch(const cudaLaunchConfig_t& config, const std::function<void()>& thread) {
  last_report = refused(config);
  if (!last_report.empty()) return cudaErrorInvalidConfiguration;
  gridDim = config.gridDim;
  gridDim.x = std::min(gridDim.x, most_blocks_of_a_launch);
  blockDim = config.blockDim;
  threads.resize(blockDim.x * blockDim.y * blockDim.z);
  body = &thread;
  failure.clear();
  dynamic_bytes = config.dynamicSmemBytes;
  for (const unsigned x : block_order()) {
    for (unsigned yz = 0; yz < gridDim.y * gridDim.z && failure.empty(); ++yz) {
      blockIdx = {x, yz % gridDim.y, yz / gridDim.y};
      run_block();
    }
  }
  if (!failure.empty()) {
    for (Thread& t : threads) forget_frames(t.fiber);
  }
  last_report = failure;
  return failure.empty() ? cudaSuccess : cudaErrorLaunchFailure;
}

void sync_block(std::source_location where) {
  Thread& own = threads[static_cast<size_t>(current)];
  own.state = State::at_barrier;
  own.meeting = {"__syncthreads", 0, where};
  const auto here = [&](const Thread& t) { return t.state == State::at_barrier && meets(t.meeting, own.meeting); };
  if (std::all_of(threads.begin(), threads.end(), here)) {
    for (int i = 0; i < static_cast<int>(threads.size()); ++i) make_ready(i);
  }
  yield();
}

uint64_t exchange(const Meeting& meeting, uint64_t value, int source) {
  const int lane = own_lane(), first = current - lane;
  Thread& own = threads[static_cast<size_t>(current)];
  if (!(meeting.mask >> lane & 1u)) fail(name(current) + " is not in the mask of its own " + describe(meeting));
  if (!(meeting.mask >> source & 1u)) {
    fail(name(current) + " reads lane " + std::to_string(source) + ", which is not in the mask, at " +
         describe(meeting));
  }
  own.state = State::in_warp;
  own.meeting = meeting;
  own.value = value;
  own.source = source;
  std::vector<int> lanes;
  for (int i = 0; i < kWarp; ++i) {
    if (!(meeting.mask >> i & 1u)) continue;
    const bool exists = first + i < static_cast<int>(threads.size());
    const Thread* other = exists ? &threads[static_cast<size_t>(first + i)] : nullptr;
    if (!other || other->state != State::in_warp || !meets(other->meeting, meeting)) {
      yield();
      return own.received;
    }
    lanes.push_back(first + i);
  }
  for (const int i : lanes) {
    Thread& t = threads[static_cast<size_t>(i)];
    t.received = threads[static_cast<size_t>(first + t.source)].value;
  }
  for (const int i : lanes) make_ready(i);
  yield();
  return own.received;
}

unsigned ballot(const Meeting& meeting, bool vote) {
  // One exchange per lane: slow, but it needs no second mechanism.
  unsigned votes = 0;
  for (int i = 0; i < kWarp; ++i) {
    if (meeting.mask >> i & 1u) votes |= static_cast<unsigned>(exchange(meeting, vote, i)) << i;
  }
  return votes;
}

void check_aligned(const void* address, size_t bytes) {
  const size_t past = reinterpret_cast<uintptr_t>(address) % bytes;
  if (past == 0) return;
  fail(name(current) + " moves " + std::to_string(bytes) + " bytes at an address " + std::to_string(past) +
       " past a multiple of that");
}

int own_lane() { return current % kWarp; }

void configure(uint64_t seed, unsigned most_blocks) {
  random_state = seed;
  most_blocks_of_a_launch = most_blocks;
  traffic = {};
}

}  // namespace emulator

const char* cudaGetErrorString(cudaError_t status) {
  return status == cudaSuccess ? "no error" : emulator::last_report.c_str();
}
cudaError_t cudaGetLastError() { return cudaSuccess; }
