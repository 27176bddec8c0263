# The CUDA backend: the target zskd_cuda_kernels has the object files, zskd_cuda_host has what the extension needs to use
# them. Needs ZSKD_NVCC; sets zskd_cuda_version and zskd_cuda_architectures. The top CMakeLists.txt includes this file if
# the CUDA backend is built.

# TORCH_CUDA_ARCH_LIST as for torch's own builds: numbers such as 8.0 or 9.0a, with +PTX to run on later devices too,
# separated by spaces, commas or semicolons.
if(NOT "$ENV{TORCH_CUDA_ARCH_LIST}" STREQUAL "")
  string(REGEX REPLACE "[ ,;]+" ";" zskd_cuda_architectures "$ENV{TORCH_CUDA_ARCH_LIST}")
else()
  include(${CMAKE_CURRENT_LIST_DIR}/architectures.cmake)
  zskd_default_architectures(${ZSKD_NVCC} zskd_cuda_architectures)
endif()
set(CMAKE_CUDA_ARCHITECTURES "")
foreach(architecture IN LISTS zskd_cuda_architectures)
  if(NOT architecture MATCHES "^([0-9]+)\\.([0-9]+[af]?)(\\+PTX)?$")
    message(FATAL_ERROR "zskd_fast: TORCH_CUDA_ARCH_LIST has '${architecture}', wanted numbers such as 8.0 or 9.0+PTX")
  endif()
  set(number "${CMAKE_MATCH_1}${CMAKE_MATCH_2}")
  list(APPEND CMAKE_CUDA_ARCHITECTURES "${number}-real")
  if(CMAKE_MATCH_3)
    list(APPEND CMAKE_CUDA_ARCHITECTURES "${number}-virtual")
  endif()
endforeach()
string(REPLACE ";" " " zskd_cuda_architectures "${zskd_cuda_architectures}")

set(CMAKE_CUDA_COMPILER "${ZSKD_NVCC}")
set(CMAKE_CUDA_HOST_COMPILER "${CMAKE_CXX_COMPILER}")
set(CMAKE_CUDA_RUNTIME_LIBRARY Shared)  # the one that torch has loaded
set(CMAKE_CUDA_STANDARD 20)
set(CMAKE_CUDA_STANDARD_REQUIRED ON)
set(CMAKE_CUDA_EXTENSIONS OFF)
enable_language(CUDA)
set(zskd_cuda_version "${CMAKE_CUDA_COMPILER_VERSION}")

add_library(zskd_cuda_kernels OBJECT
  csrc/cuda/soft_cross_entropy_cuda.cu
  csrc/cuda/distillation_loss_cuda.cu
  csrc/cuda/dirichlet_cuda.cu
  csrc/cuda/philox_cuda.cu
  csrc/cuda/impression_update_cuda.cu
  csrc/cuda/total_variation_grad_cuda.cu
  csrc/cuda/dead_leaves_cuda.cu
  csrc/cuda/augment_cuda.cu
  csrc/cuda/scale_grad_cuda.cu)
target_include_directories(zskd_cuda_kernels PRIVATE csrc)
# No fast-math and no contraction: a multiply-add is fused only where the source calls fma, as on the CPU, so that a draw
# has the same bits. Warning 1675 is about the unroll pragmas of csrc/math, which are for the host compiler.
target_compile_options(zskd_cuda_kernels PRIVATE
  -O3 --fmad=false -diag-suppress=1675 $<$<BOOL:${ZSKD_WERROR}>:-Werror=all-warnings>)

find_library(ZSKD_CUDART cudart REQUIRED HINTS ${CMAKE_CUDA_IMPLICIT_LINK_DIRECTORIES})
add_library(zskd_cuda_host INTERFACE)
target_compile_definitions(zskd_cuda_host INTERFACE ZSKD_WITH_CUDA)
target_include_directories(zskd_cuda_host SYSTEM INTERFACE ${CMAKE_CUDA_TOOLKIT_INCLUDE_DIRECTORIES})
target_link_libraries(zskd_cuda_host INTERFACE c10_cuda ${ZSKD_CUDART})
