// A program to build with AddressSanitizer and UndefinedBehaviorSanitizer, which end the process at the first error:
//   sweep ops          runs every op, type and kernel on heap memory of exactly the size that it may access
//   sweep bug NAME     runs a planted bug that the build without sanitizers cannot detect
// It does not check the results; the build without sanitizers does.
#include <cstdio>
#include <memory>
#include <string>
#include <vector>

#include "cuda/backend.h"
#include "cuda_runtime.h"

void run_planted_bug(const char* kernel, const float* in, float* out, int64_t count, bool broken);

namespace {

using namespace zskd;

constexpr Dtype kDtypes[] = {Dtype::f32, Dtype::f64, Dtype::f16, Dtype::bf16};
constexpr int64_t kClasses[] = {1, 2, 3, 7, 8, 10, 20, 31, 32, 33, 100, 128, 257, 513, 1000, 1025, 1032, 4097, 16385};

int64_t bytes_of(Dtype dtype) { return dtype == Dtype::f64 ? 8 : dtype == Dtype::f32 ? 4 : 2; }
Dtype accumulate(Dtype dtype) { return dtype == Dtype::f64 ? dtype : Dtype::f32; }

// `count` elements that end where their allocation ends. All bytes are 0x3A: a small positive number in every type.
class Buffer {
 public:
  Buffer(int64_t count, Dtype dtype, int64_t offset = 0)
      : memory_(static_cast<size_t>((count + offset) * bytes_of(dtype)), 0x3A), first_(offset * bytes_of(dtype)) {}
  void* data() { return memory_.data() + first_; }

 private:
  std::vector<unsigned char> memory_;
  int64_t first_;
};

void row_loss(void (*op)(const RowLossParams&, cuda::Stream), Dtype a_dtype, Dtype b_dtype, Dtype grad_dtype,
              int64_t classes, int64_t offset) {
  const int64_t rows = classes > 1000 ? 2 : classes > 32 ? 5 : 67;
  Buffer a(rows * classes, a_dtype, offset), b(rows * classes, b_dtype), loss(rows, accumulate(a_dtype)),
      grad(rows * classes, grad_dtype);
  op({a.data(), b.data(), classes, classes, a_dtype, b_dtype, grad_dtype, loss.data(), grad.data(), rows, classes, 4.0,
      1.0},
     nullptr);
}

void scale_grad(Dtype dtype, int64_t size, int64_t offset) {
  Buffer grad(size, dtype, offset), weight(1, dtype);
  cuda::scale_grad({grad.data(), weight.data(), dtype, size}, nullptr);
}

void dirichlet(Dtype dtype, int64_t classes) {
  const int64_t rows = 3;
  Buffer concentration(rows * classes, dtype), ids(rows, Dtype::f64), out(rows * classes, dtype);
  cuda::dirichlet({concentration.data(), classes, dtype, static_cast<const int64_t*>(ids.data()), 1, 7, out.data(),
                   classes % 2 == 0, rows, classes},
                  nullptr);
}

void philox(Dtype dtype, Distribution distribution, int64_t count) {
  const int64_t rows = 3;
  Buffer ids(rows, Dtype::f64), out(rows * count, dtype);
  cuda::philox({static_cast<const int64_t*>(ids.data()), 1, 7, 1, distribution, dtype, out.data(), rows, count},
               nullptr);
}

void impression_update(Dtype dtype, int64_t size, int64_t channels) {
  Buffer x(size, dtype), grad(size, dtype), m(size, accumulate(dtype)), v(size, accumulate(dtype));
  const std::vector<double> lo(static_cast<size_t>(channels), -1), hi(static_cast<size_t>(channels), 1);
  const double lr = 0.1, step = 3;
  ImpressionUpdateParams p = {x.data(), grad.data(),     m.data(), v.data(), dtype, size, lo.data(), hi.data(),
                              channels, size / channels, 0.1,      0.9,      0.999, 1e-8, 1e-3,      1e-3,
                              3};
  p.device_bounds = channels > 1;
  if (size % 2 == 0) p.device_lr = &lr, p.device_step = &step;
  cuda::impression_update(p, nullptr);
}

void total_variation_grad(Dtype dtype, int64_t height, int64_t width, int64_t pixel_stride) {
  const int64_t planes = 2, size = planes * height * width * pixel_stride;
  Buffer grad(size, dtype), x(size, dtype);
  cuda::total_variation_grad({grad.data(), x.data(), dtype, planes, height, width * pixel_stride, pixel_stride, 1e-3},
                             nullptr);
}

void dead_leaves(int64_t leaves, int64_t channels, int64_t height, int64_t width) {
  const int64_t images = 2;
  Buffer numbers(images * leaves * (5 + channels), Dtype::f32), out(images * channels * height * width, Dtype::f32);
  cuda::dead_leaves({static_cast<const float*>(numbers.data()), static_cast<float*>(out.data()), images, leaves,
                     channels, height, width},
                    nullptr);
}

void augment(bool moves, int64_t channels, int64_t height, int64_t width, int64_t offset) {
  const int64_t rows = 3, size = rows * channels * height * width;
  Buffer x(size, Dtype::f32, offset), positions(rows, Dtype::f64), out(size, Dtype::f32);
  const math::Augmentation numbers = {{1, 2}, 3, moves, 0.5f, 0.3f, 0.3f, 0.5f, 0.5f, 0.1f, 0.0f, 0.0f, 1.0f};
  cuda::augment({static_cast<const float*>(x.data()), static_cast<const int64_t*>(positions.data()), 1,
                 static_cast<float*>(out.data()), rows, channels, height, width, numbers},
                nullptr);
}

void all_ops() {
  for (const Dtype dtype : kDtypes) {
    for (const int64_t classes : kClasses) {
      for (const Dtype other : {dtype, accumulate(dtype)}) {
        for (const int64_t offset : {0, 1}) {
          row_loss(cuda::soft_cross_entropy, dtype, other, dtype, classes, offset);
          row_loss(cuda::distillation_loss, dtype, other, accumulate(dtype), classes, offset);
        }
      }
      dirichlet(dtype, classes);
      impression_update(dtype, 3 * classes, classes % 3 == 0 ? 3 : 1);
    }
  }
  for (const Dtype dtype : kDtypes) {
    for (const int64_t width : {1, 2, 5, 8, 32}) {
      for (const int64_t height : {1, 2, 6}) {
        for (const int64_t channels : {1, 3}) total_variation_grad(dtype, height, width, channels);
      }
    }
  }
  for (const int64_t classes : {5056, 5057, 11200, 11201}) {
    dirichlet(Dtype::f32, classes);
    dirichlet(Dtype::f64, classes);
  }
  for (const int64_t leaves : {1, 10, 128, 300}) {
    for (const int64_t width : {1, 5, 32, 130}) dead_leaves(leaves, leaves % 3 + 1, 5, width);
  }
  for (const int64_t width : {1, 5, 32, 430}) {
    for (const int64_t offset : {0, 1}) {
      for (const int64_t channels : {1, 3}) augment(true, channels, 5, width, offset);
      augment(false, 1, 1, width, offset);
    }
  }
  for (const Dtype dtype : {Dtype::f32, Dtype::f64}) {
    for (const int64_t count : {1, 4, 5, 1023, 1024}) {
      for (const int64_t offset : {0, 1}) scale_grad(dtype, count, offset);
      for (const Distribution d : {Distribution::uniform, Distribution::normal}) philox(dtype, d, count);
    }
  }
}

void bug(const char* name) {
  const int64_t count = 128;
  const std::unique_ptr<float[]> in(new float[count]()), out(new float[count]());
  run_planted_bug(name, in.get(), out.get(), count, false);
  std::puts("the right kernel ran");
  std::fflush(stdout);
  run_planted_bug(name, in.get(), out.get(), count, true);
}

}  // namespace

int main(int argc, char** argv) {
  emulator::configure(1, ~0u);
  if (argc == 3 && std::string(argv[1]) == "bug") {
    bug(argv[2]);
  } else {
    all_ops();
  }
  std::puts("nothing found");
}
