#include "math/dirichlet.h"

#include "ops/allocate.h"
#include "ops/dispatch.h"
#include "ops/ops.h"

namespace zskd::ops {
namespace {

constexpr const char* kOp = "dirichlet";
constexpr Backends<DirichletParams> kBackends = ZSKD_BACKENDS(dirichlet);
constexpr int64_t kMostClasses = int64_t{1} << 32;  // the index of a class in a Philox counter has 32 bits

void check_concentration_shape(const at::Tensor& concentration, const at::Tensor& ids) {
  ZSKD_CHECK(concentration.dim() == 1 || concentration.dim() == 2, kOp, ": concentration has shape ",
             concentration.sizes(), ", wanted [K] or [N, K]");
  ZSKD_CHECK(concentration.size(-1) > 0, kOp, ": concentration has shape ", concentration.sizes(),
             ", wanted at least one class");
  ZSKD_CHECK(concentration.size(-1) <= kMostClasses, kOp, ": concentration has shape ", concentration.sizes(),
             ", wanted at most 2^32 classes");
  ZSKD_CHECK(concentration.dim() == 1 || concentration.size(0) == ids.size(0), kOp, ": concentration has ",
             concentration.size(0), " rows, wanted ", ids.size(0), " as ids");
}

template <class T>
void check_concentration(int64_t row, int64_t c, double value) {
  ZSKD_CHECK(math::is_valid_concentration(static_cast<T>(value)), kOp, ": concentration[", row, ", ", c, "] is ", value,
             ", wanted a finite number of at least ", math::Concentration<T>::kLowest);
}

void check_concentration_values(const DirichletParams& p, const at::Tensor& rows) {
  const int64_t row = cpu::first_invalid_concentration(p);
  if (row < 0) return;
  const at::Tensor values = rows.select(0, row).to(at::kDouble);
  const auto check = p.dtype == Dtype::f64 ? check_concentration<double> : check_concentration<float>;
  for (int64_t c = 0; c < p.classes; ++c) check(row, c, values[c].item<double>());
}

}  // namespace

at::Tensor dirichlet(const at::Tensor& concentration, const at::Tensor& ids, int64_t seed, bool log) {
  check_dense(kOp, "concentration", concentration);
  check_ids(kOp, ids, &concentration);
  check_concentration_shape(concentration, ids);
  check_backend(kOp, "concentration", concentration);
  ZSKD_CHECK(seed >= 0, kOp, ": seed is ", seed, ", wanted 0 or more");

  const int64_t rows = ids.size(0), classes = concentration.size(-1);
  const at::Tensor matrix = concentration.dim() == 1 ? concentration.expand({rows, classes}) : concentration;
  const at::Tensor dense = with_dense_rows(matrix);
  const at::Tensor out = empty_output({rows, classes}, concentration.options());

  DirichletParams p;
  p.dtype = dtype_of(kOp, "concentration", dense);
  p.concentration = dense.const_data_ptr();
  p.concentration_stride = dense.stride(0);
  p.ids = ids.const_data_ptr<int64_t>();
  p.ids_stride = ids.stride(0);
  p.seed = seed;
  p.out = out.mutable_data_ptr();
  p.log = log;
  p.rows = rows;
  p.classes = classes;
  if (rows == 0) return out;
  // Not on a CUDA device: an error would have to wait for the device. There an invalid row becomes NaN.
  if (dense.is_cpu()) check_concentration_values(p, dense);
  run(kBackends, p, out);
  return out;
}

}  // namespace zskd::ops
