// The instruction set that the kernels use: the best one that this machine has, or the one named by the environment
// variable ZSKD_FAST_ISA (baseline, avx2 or avx512). The variable is read once.
#pragma once

namespace zskd::cpu {

enum class Isa { baseline, avx2, avx512 };

Isa isa();  // throws std::runtime_error if ZSKD_FAST_ISA is not one of them, or is one that this machine lacks
const char* name(Isa isa);

}  // namespace zskd::cpu
