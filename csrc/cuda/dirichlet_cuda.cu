// A block draws elements into shared memory, one per thread, so that all lanes are busy for any number of classes. Then
// groups of sixteen lanes each normalize a row. Sums are added in the order that math::kPartialSums defines, and the
// file is compiled without contraction, so that a draw has the same bits on every device and on the CPU.
#include "cuda/backend.h"
#include "cuda/memory.cuh"
#include "cuda/reduce.cuh"
#include "math/dirichlet.h"

namespace zskd::cuda {
namespace {

constexpr const char* kOp = "dirichlet";
constexpr int kThreads = 128;
using math::kPartialSums;
constexpr int kGroups = kThreads / kPartialSums;
constexpr int kChunk = 1024;  // elements in shared memory
// A block takes as many short rows as fit into this many elements, or one row. A larger number would mean fewer blocks.
constexpr int kElementsPerBlock = 2 * kThreads;
// The variates of a longer row are held in dynamic shared memory, beside a chunk and a few numbers, up to this many.
template <class A>
constexpr int64_t kHeldClasses = kSharedBytes / static_cast<int64_t>(sizeof(A)) - kChunk - 2 * kWarp;
static_assert(kChunk % kPartialSums == 0, "a thread keeps its partial sum from chunk to chunk");
static_assert(kChunk % kThreads == 0, "an element belongs to the same thread in every pass over a row");

template <class T>
struct Sampler {
  using A = accumulate_t<T>;

  const T* concentration;
  const int64_t* ids;
  T* out;
  int64_t concentration_stride, ids_stride, rows, classes;
  math::Halves seed;
  bool log;
  int rows_per_block;

  explicit Sampler(const DirichletParams& p)
      : concentration(static_cast<const T*>(p.concentration)),
        ids(p.ids),
        out(static_cast<T*>(p.out)),
        concentration_stride(p.concentration_stride),
        ids_stride(p.ids_stride),
        rows(p.rows),
        classes(p.classes),
        seed(math::halves(p.seed)),
        log(p.log),
        rows_per_block(static_cast<int>(p.classes < kElementsPerBlock ? kElementsPerBlock / p.classes : 1)) {}

  // log Gamma of one element; NaN if the concentration is invalid, because no attempt would ever be accepted.
  __device__ A log_gamma(int64_t row, int64_t c) const {
    A alpha;
    load<1>(concentration + row * concentration_stride + c, &alpha);
    if (!math::is_valid_concentration(alpha)) return math::infinity<A>() - math::infinity<A>();
    const math::Halves id = math::halves(ids[row * ids_stride]);
    const auto words = [&](uint32_t attempt) {
      return math::draw(seed, id, static_cast<uint32_t>(c), math::Purpose::gamma, attempt);
    };
    const math::GammaAttempt<A> quick = math::attempt_log_gamma<A, false>(alpha, words(0));
    if (quick.accepted == A(1)) return quick.log_gamma;
    for (uint32_t number = 0;; ++number) {
      const math::GammaAttempt<A> attempt = math::attempt_log_gamma<A, true>(alpha, words(number));
      if (attempt.accepted == A(1)) return attempt.log_gamma;
    }
  }

  // `value` is log Gamma minus the maximum of the row, `exponential` is exp(value).
  __device__ void write(int64_t row, int64_t c, A value, A exponential, A sum) const {
    const A y = log ? value - math::log_positive(sum) : exponential / sum;
    store<1>(out + row * classes + c, &y);
  }
};

// Normalizes one row with a group of sixteen lanes. A group without a row passes 0 classes, because all lanes of a warp
// must take part in the shuffles.
template <class T, class A>
__device__ void normalize_row(const Sampler<T>& p, int64_t row, const A* log_gamma, int classes) {
  const int lane = threadIdx.x % kPartialSums;
  A max = -math::infinity<A>();
  for (int c = lane; c < classes; c += kPartialSums) max = math::at_least(max, log_gamma[c]);
  max = group_max(max, kPartialSums);
  A sum = 0;
  for (int c = lane; c < classes; c += kPartialSums) sum += math::exp_nonpositive(log_gamma[c] - max);
  sum = group_sum(sum, kPartialSums);
  for (int c = lane; c < classes; c += kPartialSums) {
    const A value = log_gamma[c] - max;
    p.write(row, c, value, math::exp_nonpositive(value), sum);
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads) short_rows(const Sampler<T> p) {
  using A = accumulate_t<T>;
  static __shared__ A log_gamma[kChunk];
  const int classes = static_cast<int>(p.classes);
  for (int64_t first = int64_t{blockIdx.x} * p.rows_per_block; first < p.rows;
       first += int64_t{gridDim.x} * p.rows_per_block) {
    const int rows = static_cast<int>(p.rows - first < p.rows_per_block ? p.rows - first : p.rows_per_block);
    for (int i = threadIdx.x; i < rows * classes; i += kThreads) {
      log_gamma[i] = p.log_gamma(first + i / classes, i % classes);
    }
    __syncthreads();
    for (int begin = 0; begin < rows; begin += kGroups) {
      const int r = begin + static_cast<int>(threadIdx.x) / kPartialSums;
      normalize_row(p, first + r, log_gamma + r * classes, r < rows ? classes : 0);
    }
    __syncthreads();  // all threads have read log_gamma before the next rows overwrite it
  }
}

template <class A>
__device__ A block_max(A value) {
  static __shared__ A maxima[kThreads / kWarp];
  value = group_max(value, kWarp);
  if (threadIdx.x % kWarp == 0) maxima[threadIdx.x / kWarp] = value;
  __syncthreads();
  for (int i = 0; i < kThreads / kWarp; ++i) value = math::at_least(value, maxima[i]);
  __syncthreads();
  return value;
}

// The variates of a row that one block samples. A held row keeps them in shared memory, where each thread reads only
// what it has written: element c belongs to thread c % kThreads in every pass.
template <class T, bool kHeld>
struct LongRow {
  using A = accumulate_t<T>;

  const Sampler<T>& p;
  int64_t row;

  __device__ static A* held() { return reinterpret_cast<A*>(dynamic_shared_memory); }
  __device__ A first_draw(int64_t c) const {
    const A value = p.log_gamma(row, c);
    if constexpr (kHeld) held()[c] = value;
    return value;
  }
  __device__ A drawn(int64_t c) const {
    if constexpr (kHeld) return held()[c];
    return p.log_gamma(row, c);
  }
};

// The sum of exp(log Gamma - max) over a row of any length; every thread of the block gets it.
template <class Row, class A>
__device__ A long_row_sum(const Row& row, int64_t classes, A max) {
  static __shared__ A exponential[kChunk];
  static __shared__ A total;
  A sum = 0;  // in each of the first sixteen threads: its partial sum
  for (int64_t first = 0; first < classes; first += kChunk) {
    const int count = static_cast<int>(classes - first < kChunk ? classes - first : kChunk);
    for (int i = threadIdx.x; i < count; i += kThreads)
      exponential[i] = math::exp_nonpositive(row.drawn(first + i) - max);
    __syncthreads();
    if (threadIdx.x < kPartialSums) {
      for (int i = threadIdx.x; i < count; i += kPartialSums) sum += exponential[i];
    }
    __syncthreads();
  }
  sum = group_sum(sum, kPartialSums);
  if (threadIdx.x == 0) total = sum;
  __syncthreads();
  return total;
}

// A row that does not even fit into dynamic shared memory is drawn three times: for its maximum, for its sum and for
// the output. This needs no memory for the draws.
template <class T, bool kHeld>
__global__ void __launch_bounds__(kThreads) long_rows(const Sampler<T> p) {
  using A = accumulate_t<T>;
  for (int64_t n = blockIdx.x; n < p.rows; n += gridDim.x) {
    const LongRow<T, kHeld> row = {p, n};
    A max = -math::infinity<A>();
    for (int64_t c = threadIdx.x; c < p.classes; c += kThreads) max = math::at_least(max, row.first_draw(c));
    max = block_max(max);
    const A sum = long_row_sum(row, p.classes, max);
    for (int64_t c = threadIdx.x; c < p.classes; c += kThreads) {
      const A value = row.drawn(c) - max;
      p.write(n, c, value, math::exp_nonpositive(value), sum);
    }
  }
}

template <class T>
void sample(const DirichletParams& params, cudaStream_t stream) {
  using A = accumulate_t<T>;
  const Sampler<T> p(params);
  if (p.classes <= kChunk) return launch(kOp, short_rows<T>, p, p.rows, p.rows_per_block, kThreads, stream);
  if (p.classes > kHeldClasses<A>) return launch(kOp, long_rows<T, false>, p, p.rows, 1, kThreads, stream);
  const int64_t bytes = p.classes * static_cast<int64_t>(sizeof(A));
  launch(kOp, long_rows<T, true>, p, p.rows, 1, kThreads, stream, bytes);
}

}  // namespace

void dirichlet(const DirichletParams& p, Stream stream) {
  switch (p.dtype) {
    case Dtype::f32: return sample<float>(p, stream);
    case Dtype::f64: return sample<double>(p, stream);
    case Dtype::f16: return sample<Half>(p, stream);
    case Dtype::bf16: return sample<BFloat16>(p, stream);
  }
}

}  // namespace zskd::cuda
