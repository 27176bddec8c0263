// Rows are cut into chunks that stay in the first-level cache. Within a chunk the elements of all its rows lie side by
// side, so that the lanes are full for any K; the few that the squeeze test leaves open are gathered and tried again.
#include "cpu/kernels.h"
#include "cpu/storage.h"
#include "math/dirichlet.h"

namespace zskd::cpu::ZSKD_ISA {
namespace {

constexpr int64_t kChunk = 512;  // elements
constexpr int kLanes = 16;       // partial sums of a row: part of the definition of a draw, the same in every backend

// Elements to draw, field by field, so that the lanes load what lies side by side.
template <class A>
struct Elements {
  alignas(64) uint32_t id_low[kChunk], id_high[kChunk], index[kChunk];
  alignas(64) A alpha[kChunk], log_gamma[kChunk], accepted[kChunk];
  int32_t position[kChunk];  // in the chunk, of an element that is tried again
  int64_t count = 0;

  void add(math::Halves id, uint32_t class_index, A concentration, int32_t at) {
    id_low[count] = id.low;
    id_high[count] = id.high;
    index[count] = class_index;
    alpha[count] = concentration;
    position[count] = at;
    ++count;
  }

  template <bool exact>
  void attempt(math::Halves seed, uint32_t number) {
    const int64_t tried = count;
#pragma omp simd
    for (int64_t i = 0; i < tried; ++i) {
      const auto result = math::attempt_log_gamma<A, exact>(alpha[i], seed, {id_low[i], id_high[i]}, index[i], number);
      log_gamma[i] = result.log_gamma;
      accepted[i] = result.accepted;
    }
  }
};

template <class A>
void draw(Elements<A>& chunk, Elements<A>& open, math::Halves seed) {
  chunk.template attempt<false>(seed, 0);
  open.count = 0;
  for (int32_t i = 0; i < chunk.count; ++i) {
    if (chunk.accepted[i] == A(0)) open.add({chunk.id_low[i], chunk.id_high[i]}, chunk.index[i], chunk.alpha[i], i);
  }
  for (uint32_t number = 0; open.count > 0; ++number) {
    open.template attempt<true>(seed, number);
    const int64_t tried = open.count;
    open.count = 0;
    for (int64_t i = 0; i < tried; ++i) {
      chunk.log_gamma[open.position[i]] = open.log_gamma[i];  // the last attempt is the accepted one
      if (open.accepted[i] == A(0)) {
        open.add({open.id_low[i], open.id_high[i]}, open.index[i], open.alpha[i], open.position[i]);
      }
    }
  }
}

// Sixteen partial sums, then halves: the order of the additions does not depend on the width of the machine's lanes.
template <class A, class F>
A lane_sum(int64_t count, F value) {
  alignas(64) A lanes[kLanes] = {};
  int64_t c = 0;
  for (; c + kLanes <= count; c += kLanes) {
#pragma omp simd
    for (int l = 0; l < kLanes; ++l) lanes[l] += value(c + l);
  }
  for (int l = 0; c + l < count; ++l) lanes[l] += value(c + l);
  for (int width = kLanes / 2; width > 0; width /= 2) {
    for (int l = 0; l < width; ++l) lanes[l] += lanes[l + width];
  }
  return lanes[0];
}

template <class A, class T>
void normalise_row(A* log_gamma, int64_t classes, bool log, T* out) {
  A max = -math::infinity<A>();
#pragma omp simd reduction(max : max)
  for (int64_t c = 0; c < classes; ++c) max = math::at_least(max, log_gamma[c]);
  if (log) {
    const A sum = lane_sum<A>(classes, [&](int64_t c) { return math::exp(log_gamma[c] - max); });
    const A log_sum = math::log_normal(sum);
#pragma omp simd
    for (int64_t c = 0; c < classes; ++c) store(out + c, (log_gamma[c] - max) - log_sum);
  } else {
#pragma omp simd
    for (int64_t c = 0; c < classes; ++c) log_gamma[c] = math::exp(log_gamma[c] - max);
    const A sum = lane_sum<A>(classes, [&](int64_t c) { return log_gamma[c]; });
#pragma omp simd
    for (int64_t c = 0; c < classes; ++c) store(out + c, log_gamma[c] / sum);
  }
}

template <class T>
struct Sampler {
  using A = accumulate_t<T>;
  const DirichletParams& p;
  const T* concentration;
  T* out;
  math::Halves seed;
  Elements<A> chunk, open;

  explicit Sampler(const DirichletParams& params)
      : p(params),
        concentration(static_cast<const T*>(params.concentration)),
        out(static_cast<T*>(params.out)),
        seed(math::halves(params.seed)) {}

  // Classes [first, last) of a row.
  void add(int64_t row, int64_t first, int64_t last) {
    const T* alpha = concentration + row * p.concentration_stride;
    const math::Halves id = math::halves(p.ids[row * p.ids_stride]);
    for (int64_t c = first; c < last; ++c) chunk.add(id, static_cast<uint32_t>(c), load(alpha + c), 0);
  }

  void short_rows(int64_t begin, int64_t end) {
    const int64_t rows = kChunk / p.classes;
    for (int64_t row = begin; row < end; row += rows) {
      const int64_t count = end - row < rows ? end - row : rows;
      chunk.count = 0;
      for (int64_t r = 0; r < count; ++r) add(row + r, 0, p.classes);
      draw(chunk, open, seed);
      for (int64_t r = 0; r < count; ++r) {
        normalise_row(chunk.log_gamma + r * p.classes, p.classes, p.log, out + (row + r) * p.classes);
      }
    }
  }

  void long_row(int64_t row, A* log_gamma) {
    for (int64_t first = 0; first < p.classes; first += kChunk) {
      chunk.count = 0;
      add(row, first, p.classes - first < kChunk ? p.classes : first + kChunk);
      draw(chunk, open, seed);
      for (int64_t c = 0; c < chunk.count; ++c) log_gamma[first + c] = chunk.log_gamma[c];
    }
    normalise_row(log_gamma, p.classes, p.log, out + row * p.classes);
  }

  void run(int64_t begin, int64_t end, A* scratch) {
    if (p.classes <= kChunk) return short_rows(begin, end);
    for (int64_t row = begin; row < end; ++row) long_row(row, scratch);
  }
};

template <class T>
void sample(const DirichletParams& p, int64_t begin, int64_t end, void* scratch) {
  Sampler<T> sampler(p);
  sampler.run(begin, end, static_cast<accumulate_t<T>*>(scratch));
}

template <class T>
int64_t first_invalid(const DirichletParams& p, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row) {
    const T* alpha = static_cast<const T*>(p.concentration) + row * p.concentration_stride;
    int32_t invalid = 0;
#pragma omp simd reduction(| : invalid)
    for (int64_t c = 0; c < p.classes; ++c) invalid |= !math::is_valid_concentration(load(alpha + c));
    if (invalid) return row;
  }
  return -1;
}

}  // namespace

void dirichlet(const DirichletParams& p, int64_t begin, int64_t end, void* scratch) {
  switch (p.dtype) {
    case Dtype::f32: return sample<float>(p, begin, end, scratch);
    case Dtype::f64: return sample<double>(p, begin, end, scratch);
    case Dtype::f16: return sample<Half>(p, begin, end, scratch);
    case Dtype::bf16: return sample<BFloat16>(p, begin, end, scratch);
  }
}

int64_t first_invalid_concentration(const DirichletParams& p, int64_t begin, int64_t end) {
  switch (p.dtype) {
    case Dtype::f32: return first_invalid<float>(p, begin, end);
    case Dtype::f64: return first_invalid<double>(p, begin, end);
    case Dtype::f16: return first_invalid<Half>(p, begin, end);
    case Dtype::bf16: return first_invalid<BFloat16>(p, begin, end);
  }
  return -1;
}

}  // namespace zskd::cpu::ZSKD_ISA
