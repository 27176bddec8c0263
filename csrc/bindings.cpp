// The only interface between Python and C++: the extension module zskd_fast._C.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <torch/csrc/utils/pybind.h>
#include <torch/version.h>

#include <exception>

#include "cpu/isa.h"
#include "ops/check.h"
#include "ops/ops.h"

namespace py = pybind11;

namespace {

py::dict build_info() {
  py::dict info;
  info["torch"] = TORCH_VERSION;
  info["compiler"] = ZSKD_COMPILER;
  info["cuda"] = ZSKD_CUDA_VERSION;
  info["cuda_architectures"] = ZSKD_CUDA_ARCHITECTURES;
  info["isa"] = zskd::cpu::name(zskd::cpu::isa());
  return info;
}

// Tried before the translators of torch, in calls of this module only.
void translate(std::exception_ptr thrown) {
  try {
    std::rethrow_exception(thrown);
  } catch (const zskd::ops::ValueError& error) {
    py::set_error(PyExc_ValueError, error.what());
  } catch (const zskd::ops::TypeError& error) {
    py::set_error(PyExc_TypeError, error.what());
  }
}

}  // namespace

PYBIND11_MODULE(_C, m) {
  py::register_local_exception_translator(&translate);
  using release_gil = py::call_guard<py::gil_scoped_release>;
  m.def("soft_cross_entropy", &zskd::ops::soft_cross_entropy, release_gil());
  m.def("distillation_loss", &zskd::ops::distillation_loss, release_gil());
  m.def("scale_grad_", &zskd::ops::scale_grad_, release_gil());
  m.def("dirichlet", &zskd::ops::dirichlet, release_gil());
  m.def("philox", &zskd::ops::philox, release_gil());
  m.def("impression_update_", &zskd::ops::impression_update_, release_gil());
  m.def("total_variation_grad_", &zskd::ops::total_variation_grad_, release_gil());
  m.def("dead_leaves", &zskd::ops::dead_leaves, release_gil());
  m.def("augment", &zskd::ops::augment, release_gil());
  m.def("max_pool", &zskd::ops::max_pool, release_gil());
  m.def("build_info", &build_info);
}
