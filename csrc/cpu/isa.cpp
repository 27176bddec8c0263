#include "cpu/isa.h"

#include <cstdlib>
#include <stdexcept>
#include <string>

namespace zskd::cpu {
namespace {

bool is_supported(Isa isa) {
#if defined(ZSKD_X86)
  switch (isa) {
    case Isa::baseline: return true;
    case Isa::avx2: return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
    case Isa::avx512:
      return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
             __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl");
  }
  return false;
#else
  return isa == Isa::baseline;
#endif
}

Isa choose() {
  const char* forced = std::getenv("ZSKD_FAST_ISA");
  for (const Isa isa : {Isa::avx512, Isa::avx2, Isa::baseline}) {
    if (forced && *forced) {
      if (std::string(forced) != name(isa)) continue;
      if (is_supported(isa)) return isa;
      throw std::runtime_error(std::string("ZSKD_FAST_ISA=") + forced + ": this machine or build has no " + forced);
    }
    if (is_supported(isa)) return isa;
  }
  throw std::runtime_error(std::string("ZSKD_FAST_ISA=") + forced + ": wanted baseline, avx2 or avx512");
}

}  // namespace

Isa isa() {
  static const Isa chosen = choose();
  return chosen;
}

const char* name(Isa isa) {
  switch (isa) {
    case Isa::baseline: return "baseline";
    case Isa::avx2: return "avx2";
    case Isa::avx512: return "avx512";
  }
  return "";
}

}  // namespace zskd::cpu
