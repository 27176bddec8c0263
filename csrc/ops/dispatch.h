// Calls the backend of the device that a tensor is on. For a CUDA device this sets the current device and passes its
// current stream.
#pragma once

#include "cpu/backend.h"
#include "cuda/backend.h"
#include "ops/check.h"

#if defined(ZSKD_WITH_CUDA)
#include <c10/cuda/CUDAGuard.h>
#include <c10/cuda/CUDAStream.h>
#endif

namespace zskd::ops {

template <class Params>
struct Backends {
  void (*cpu)(const Params&);
  void (*cuda)(const Params&, cuda::Stream);
};

#if defined(ZSKD_WITH_CUDA)
#define ZSKD_BACKENDS(op) {cpu::op, cuda::op}
#else
#define ZSKD_BACKENDS(op) {cpu::op, nullptr}
#endif

inline void check_backend(const char* op, const char* argument, const at::Tensor& tensor) {
#if defined(ZSKD_WITH_CUDA)
  ZSKD_CHECK_TYPE(tensor.is_cpu() || tensor.is_cuda(), op, ": ", argument, " is on ", tensor.device(),
                  ", wanted cpu or cuda");
#else
  ZSKD_CHECK_TYPE(tensor.is_cpu(), op, ": ", argument, " is on ", tensor.device(),
                  ", but this build of zskd_fast has the CPU backend only");
#endif
}

// On a CUDA device the work is only queued on the stream: the function returns before it is done.
template <class Params>
void run(const Backends<Params>& backends, const Params& p, const at::Tensor& like) {
  if (like.is_cpu()) return backends.cpu(p);
#if defined(ZSKD_WITH_CUDA)
  const c10::cuda::CUDAGuard guard(like.device());
  backends.cuda(p, c10::cuda::getCurrentCUDAStream().stream());
#endif
}

}  // namespace zskd::ops
