// Elements are drawn in chunks that fit into the first-level cache. A chunk may hold elements of many rows, so that all
// SIMD lanes are used for any K. The few elements that the squeeze test does not accept are gathered and tried again. A
// chunk of short rows is stored class by class with one row in each lane, so that a sum over classes adds vectors.
#include "cpu/kernels.h"
#include "cpu/philox_lanes.h"
#include "cpu/storage.h"
#include "cpu/transpose.h"
#include "math/dirichlet.h"

namespace zskd::cpu::ZSKD_ISA {
namespace {

constexpr int64_t kChunk = 1024;       // elements
constexpr int kGroup = 32;             // elements whose acceptance is tested together
constexpr int64_t kShortClasses = 32;  // a row with at most this many classes is short
using math::kPartialSums;

// Elements to draw. One array per field, so that a SIMD load reads adjacent values.
template <class A>
struct Elements {
  alignas(64) uint32_t id_low[kChunk] = {}, id_high[kChunk] = {}, index[kChunk] = {};
  alignas(64) uint32_t w0[kChunk], w1[kChunk], w2[kChunk], w3[kChunk];
  alignas(64) A alpha[kChunk], log_gamma[kChunk], accepted[kChunk];
  int32_t origin[kChunk], picked[kChunk];
  int64_t count = 0;

  Elements() {
    for (int32_t i = 0; i < kChunk; ++i) origin[i] = i;
  }

  void set(int64_t at, math::Halves id, int64_t class_index, A concentration) {
    id_low[at] = id.low;
    id_high[at] = id.high;
    index[at] = static_cast<uint32_t>(class_index);
    alpha[at] = concentration;
  }

  // One bit for each of the kGroup elements from `first` on: 1 if it is not accepted.
  uint32_t open_bits(int64_t first) const {
    uint32_t bits = 0;
#pragma omp simd reduction(| : bits)
    for (int i = 0; i < kGroup; ++i) bits |= static_cast<uint32_t>(accepted[first + i] == A(0)) << i;
    return count - first < kGroup ? bits & ((1u << (count - first)) - 1) : bits;
  }

  // Keeps the elements of `from` that are not accepted. `from` may be *this.
  void take_open(const Elements& from) {
    int64_t open = 0;
    for (int64_t first = 0; first < from.count; first += kGroup) {
      for (uint32_t bits = from.open_bits(first); bits != 0; bits &= bits - 1) {
        picked[open++] = static_cast<int32_t>(first) + __builtin_ctz(bits);
      }
    }
    for (int64_t i = 0; i < open; ++i) {
      const int32_t at = picked[i];
      set(i, {from.id_low[at], from.id_high[at]}, from.index[at], from.alpha[at]);
      origin[i] = from.origin[at];
    }
    count = open;
  }

  template <bool exact>
  void attempt(math::Halves seed, uint32_t number) {
    const uint32_t last = math::last_word(math::Purpose::gamma, number);
    philox_blocks({id_low, id_high, index, last}, seed, {w0, w1, w2, w3}, count);
    const int64_t tried = count;
#pragma omp simd
    for (int64_t i = 0; i < tried; ++i) {
      const auto result = math::attempt_log_gamma<A, exact>(alpha[i], {w0[i], w1[i], w2[i], w3[i]});
      log_gamma[i] = result.log_gamma;
      accepted[i] = result.accepted;
    }
  }
};

template <class A>
void draw(Elements<A>& chunk, Elements<A>& open, math::Halves seed) {
  chunk.template attempt<false>(seed, 0);
  open.take_open(chunk);
  for (uint32_t number = 0; open.count > 0; ++number) {
    open.template attempt<true>(seed, number);
    // Later attempts overwrite earlier ones; the last attempt is the accepted one.
    for (int64_t i = 0; i < open.count; ++i) chunk.log_gamma[open.origin[i]] = open.log_gamma[i];
    open.take_open(open);
  }
}

// The order of the additions is the one that math::kPartialSums defines; it does not depend on the SIMD width.
template <class A>
A row_sum(const A* values, int64_t count) {
  alignas(64) A sums[kPartialSums] = {};
  int64_t c = 0;
  for (; c + kPartialSums <= count; c += kPartialSums) {
#pragma omp simd
    for (int l = 0; l < kPartialSums; ++l) sums[l] += values[c + l];
  }
  for (int l = 0; c + l < count; ++l) sums[l] += values[c + l];
  for (int width = kPartialSums / 2; width > 0; width /= 2) {
    for (int l = 0; l < width; ++l) sums[l] += sums[l + width];
  }
  return sums[0];
}

template <class A, class T>
void normalize_row(const A* log_gamma, A* exponential, int64_t classes, bool log, T* out) {
  A max = -math::infinity<A>();
#pragma omp simd reduction(max : max)
  for (int64_t c = 0; c < classes; ++c) max = math::at_least(max, log_gamma[c]);
#pragma omp simd
  for (int64_t c = 0; c < classes; ++c) exponential[c] = math::exp_nonpositive(log_gamma[c] - max);
  const A sum = row_sum(exponential, classes);
  const A log_sum = math::log_normal(sum);
  if (log) {
#pragma omp simd
    for (int64_t c = 0; c < classes; ++c) store(out + c, (log_gamma[c] - max) - log_sum);
  } else {
#pragma omp simd
    for (int64_t c = 0; c < classes; ++c) store(out + c, exponential[c] / sum);
  }
}

// The same in place for `rows` short rows, where log_gamma[c * rows + r] is class c of row r.
template <class A>
void normalize_columns(A* log_gamma, int64_t rows, int64_t classes, bool log) {
  alignas(64) A max[kChunk], exponential[kChunk], sums[kChunk];
  for (int64_t r = 0; r < rows; ++r) max[r] = log_gamma[r];
  for (int64_t c = 1; c < classes; ++c) {
#pragma omp simd
    for (int64_t r = 0; r < rows; ++r) max[r] = math::at_least(max[r], log_gamma[c * rows + r]);
  }
  for (int64_t c = 0; c < classes; ++c) {
#pragma omp simd
    for (int64_t r = 0; r < rows; ++r) {
      log_gamma[c * rows + r] -= max[r];
      sums[c * rows + r] = exponential[c * rows + r] = math::exp_nonpositive(log_gamma[c * rows + r]);
    }
  }
  for (int64_t width = kPartialSums; width > 0; width /= 2) {
    for (int64_t c = 0; c < width && c + width < classes; ++c) {
#pragma omp simd
      for (int64_t r = 0; r < rows; ++r) sums[c * rows + r] += sums[(c + width) * rows + r];
    }
  }
  if (log) {
#pragma omp simd
    for (int64_t r = 0; r < rows; ++r) sums[r] = math::log_normal(sums[r]);
    for (int64_t c = 0; c < classes; ++c) {
#pragma omp simd
      for (int64_t r = 0; r < rows; ++r) log_gamma[c * rows + r] -= sums[r];
    }
  } else {
    for (int64_t c = 0; c < classes; ++c) {
#pragma omp simd
      for (int64_t r = 0; r < rows; ++r) log_gamma[c * rows + r] = exponential[c * rows + r] / sums[r];
    }
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

  const T* concentration_of(int64_t row) const { return concentration + row * p.concentration_stride; }

  void short_rows(int64_t first, int64_t count) {
    chunk.count = count * p.classes;
    rows_to_columns(concentration_of(first), p.concentration_stride, count, p.classes, count, chunk.alpha);
    for (int64_t r = 0; r < count; ++r) {
      const math::Halves id = math::halves(p.ids[(first + r) * p.ids_stride]);
      chunk.id_low[r] = id.low;
      chunk.id_high[r] = id.high;
      chunk.index[r] = 0;
    }
    for (int64_t c = 1; c < p.classes; ++c) {
#pragma omp simd
      for (int64_t r = 0; r < count; ++r) {
        chunk.id_low[c * count + r] = chunk.id_low[r];
        chunk.id_high[c * count + r] = chunk.id_high[r];
        chunk.index[c * count + r] = static_cast<uint32_t>(c);
      }
    }
    draw(chunk, open, seed);
    normalize_columns(chunk.log_gamma, count, p.classes, p.log);
    columns_to_rows(chunk.log_gamma, count, count, p.classes, out + first * p.classes);
  }

  // `scratch` holds 2 * classes values.
  void long_row(int64_t row, A* scratch) {
    const T* alpha = concentration_of(row);
    const math::Halves id = math::halves(p.ids[row * p.ids_stride]);
    for (int64_t first = 0; first < p.classes; first += kChunk) {
      chunk.count = p.classes - first < kChunk ? p.classes - first : kChunk;
      for (int64_t i = 0; i < chunk.count; ++i) {
        chunk.set(i, id, first + i, load(alpha + first + i));
      }
      draw(chunk, open, seed);
      for (int64_t c = 0; c < chunk.count; ++c) scratch[first + c] = chunk.log_gamma[c];
    }
    normalize_row(scratch, scratch + p.classes, p.classes, p.log, out + row * p.classes);
  }

  void run(int64_t begin, int64_t end, A* scratch) {
    const bool side_by_side = p.classes <= kShortClasses;
    const int64_t rows =
        side_by_side ? kChunk / p.classes / kPartialSums * kPartialSums : 1;  // a multiple of the SIMD width
    for (int64_t row = begin; row < end; row += rows) {
      if (side_by_side) {
        short_rows(row, end - row < rows ? end - row : rows);
      } else {
        long_row(row, scratch);
      }
    }
  }
};

template <class T>
void sample(const DirichletParams& p, int64_t begin, int64_t end, void* scratch) {
  Sampler<T> sampler(p);
  sampler.run(begin, end, static_cast<accumulate_t<T>*>(scratch));
}

template <class T>
bool has_invalid(const T* alpha, int64_t count) {
  int32_t invalid = 0;
#pragma omp simd reduction(| : invalid)
  for (int64_t i = 0; i < count; ++i) invalid |= !math::is_valid_concentration(load(alpha + i));
  return invalid != 0;
}

// Dense rows are looked at many at a time: a loop over each short row took a sixth of the time of all draws.
template <class T>
int64_t first_invalid(const DirichletParams& p, int64_t begin, int64_t end) {
  const T* alpha = static_cast<const T*>(p.concentration);
  const int64_t stride = p.concentration_stride;
  const int64_t together = stride == p.classes && p.classes > 0 && p.classes < kChunk ? kChunk / p.classes : 1;
  for (int64_t row = begin; row < end; row += together) {
    const int64_t rows = end - row < together ? end - row : together;
    if (!has_invalid(alpha + row * stride, rows * p.classes)) continue;
    while (!has_invalid(alpha + row * stride, p.classes)) ++row;
    return row;
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
