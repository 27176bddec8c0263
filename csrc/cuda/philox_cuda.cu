// Each thread computes the variates of one Philox block at a time.
#include "cuda/backend.h"
#include "cuda/memory.cuh"
#include "cuda/reduce.cuh"
#include "math/philox.h"
#include "math/variates.h"

namespace zskd::cuda {
namespace {

constexpr const char* kOp = "philox";
constexpr int kThreads = 256;
constexpr int kVariates = math::kVariatesPerBlock;

template <class T>
struct Noise {
  const int64_t* ids;
  T* out;
  int64_t ids_stride, rows, count, blocks_per_row;
  math::Halves seed;
  uint32_t stream;

  explicit Noise(const PhiloxParams& p)
      : ids(p.ids),
        out(static_cast<T*>(p.out)),
        ids_stride(p.ids_stride),
        rows(p.rows),
        count(p.count),
        blocks_per_row(ceil_div(p.count, kVariates)),
        seed(math::halves(p.seed)),
        stream(p.stream) {}
};

template <class T, Distribution distribution>
__device__ __forceinline__ void variates(math::PhiloxBlock words, T (&to)[kVariates]) {
  if constexpr (distribution == Distribution::normal) {
    math::normal_pair(words.w0, words.w1, &to[0], &to[1]);
    math::normal_pair(words.w2, words.w3, &to[2], &to[3]);
  } else {
    to[0] = math::uniform<T>(words.w0);
    to[1] = math::uniform<T>(words.w1);
    to[2] = math::uniform<T>(words.w2);
    to[3] = math::uniform<T>(words.w3);
  }
}

template <class T, Distribution distribution, bool kWide>
__global__ void __launch_bounds__(kThreads) fill(const Noise<T> p) {
  for (int64_t i = grid_thread(); i < p.rows * p.blocks_per_row; i += grid_threads()) {
    const int64_t row = divide(i, p.blocks_per_row);
    const int64_t block = i - row * p.blocks_per_row;
    const math::Halves id = math::halves(p.ids[row * p.ids_stride]);
    T values[kVariates];
    variates<T, distribution>(math::draw(p.seed, id, static_cast<uint32_t>(block), math::Purpose::stream, p.stream),
                              values);
    T* const to = p.out + row * p.count + kVariates * block;
    if constexpr (kWide) {
      store<kVariates>(to, values);
    } else {
#pragma unroll
      for (int j = 0; j < kVariates; ++j) {
        if (kVariates * block + j < p.count) store<1>(to + j, values + j);
      }
    }
  }
}

template <class T, Distribution distribution>
void run(const PhiloxParams& params, cudaStream_t stream) {
  const Noise<T> p(params);
  const bool wide = is_aligned(p.out, p.count, p.count, kVariates);
  const auto kernel = wide ? fill<T, distribution, true> : fill<T, distribution, false>;
  launch(kOp, kernel, p, p.rows * p.blocks_per_row, kThreads, kThreads, stream);
}

template <class T>
void run_typed(const PhiloxParams& p, cudaStream_t stream) {
  if (p.distribution == Distribution::normal) return run<T, Distribution::normal>(p, stream);
  run<T, Distribution::uniform>(p, stream);
}

}  // namespace

void philox(const PhiloxParams& p, Stream stream) {
  if (p.dtype == Dtype::f64) return run_typed<double>(p, stream);
  run_typed<float>(p, stream);
}

}  // namespace zskd::cuda
