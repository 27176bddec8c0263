// The functions that the tests call through ctypes: each op, on CPU memory. A call returns "" or the error of its
// launch.
#include <exception>
#include <string>

#include "cuda/backend.h"
#include "cuda_runtime.h"

void run_planted_bug(const char* kernel, const float* in, float* out, int64_t count, bool broken);

namespace {

template <class Call>
const char* report_of(const Call& call) {
  static std::string report;
  report.clear();
  try {
    call();
  } catch (const std::exception& error) {
    report = error.what();
  }
  return report.c_str();
}

}  // namespace

#define EMULATED_OP(op, Params)                                  \
  extern "C" const char* op(const zskd::Params* params) {        \
    return report_of([&] { zskd::cuda::op(*params, nullptr); }); \
  }                                                              \
  extern "C" int64_t op##_params_size() { return sizeof(zskd::Params); }

EMULATED_OP(soft_cross_entropy, RowLossParams)
EMULATED_OP(distillation_loss, RowLossParams)
EMULATED_OP(scale_grad, ScaleGradParams)
EMULATED_OP(dirichlet, DirichletParams)
EMULATED_OP(philox, PhiloxParams)
EMULATED_OP(impression_update, ImpressionUpdateParams)
EMULATED_OP(total_variation_grad, TotalVariationGradParams)
EMULATED_OP(dead_leaves, DeadLeavesParams)
EMULATED_OP(augment, AugmentParams)

extern "C" const char* planted_bug(const char* kernel, const float* in, float* out, int64_t count, bool broken) {
  return report_of([&] { run_planted_bug(kernel, in, out, count, broken); });
}

extern "C" void configure(uint64_t seed, unsigned most_blocks) { emulator::configure(seed, most_blocks); }
extern "C" emulator::Traffic traffic() { return emulator::traffic; }
