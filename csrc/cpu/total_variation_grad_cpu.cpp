// Each row of pixels is copied into a scratch row, in the type of the computation and with a pixel repeated at both of
// its ends. All neighbors of a pixel then lie at fixed distances, so that one loop without special cases computes a
// row.
#include "cpu/kernels.h"
#include "cpu/storage.h"
#include "math/total_variation_grad.h"

namespace zskd::cpu::ZSKD_ISA {
namespace {

constexpr int64_t kSlots = 3;  // the rows above, of and below the pixels

template <class T>
struct Scratch {
  using A = accumulate_t<T>;
  const T* x;
  A* memory;
  int64_t length, next;

  A* slot(int64_t row) const { return memory + row % kSlots * (length + 2 * next) + next; }

  void read(int64_t row) const {
    const T* const from = x + row * length;
    A* const to = slot(row);
#pragma omp simd
    for (int64_t j = 0; j < length; ++j) to[j] = load(from + j);
    for (int64_t j = 0; j < next; ++j) {
      to[j - next] = to[j];
      to[length + j] = to[length - next + j];
    }
  }
};

template <class T>
void add_rows(const TotalVariationGradParams& p, int64_t begin, int64_t end, void* memory) {
  using A = accumulate_t<T>;
  const int64_t length = p.row_length, next = p.pixel_stride;
  const Scratch<T> rows = {static_cast<const T*>(p.x), static_cast<A*>(memory), length, next};
  const auto scale = static_cast<A>(2 * p.weight);
  for (int64_t row = begin; row < end; ++row) {
    const int64_t i = row % p.height;
    const bool first = i == 0, last = i == p.height - 1;
    if (row == begin && !first) rows.read(row - 1);
    if (row == begin || first) rows.read(row);
    if (!last) rows.read(row + 1);
    const A* const own = rows.slot(row);
    const A* const above = first ? own : rows.slot(row - 1);
    const A* const below = last ? own : rows.slot(row + 1);
    T* const grad = static_cast<T*>(p.grad) + row * length;
#pragma omp simd
    for (int64_t j = 0; j < length; ++j) {
      const A differences = math::neighbor_differences(own[j], above[j], below[j], own[j - next], own[j + next]);
      store(grad + j, load(grad + j) + scale * differences);
    }
  }
}

}  // namespace

void total_variation_grad(const TotalVariationGradParams& p, int64_t begin, int64_t end, void* scratch) {
  switch (p.dtype) {
    case Dtype::f32: return add_rows<float>(p, begin, end, scratch);
    case Dtype::f64: return add_rows<double>(p, begin, end, scratch);
    case Dtype::f16: return add_rows<Half>(p, begin, end, scratch);
    case Dtype::bf16: return add_rows<BFloat16>(p, begin, end, scratch);
  }
}

}  // namespace zskd::cpu::ZSKD_ISA
