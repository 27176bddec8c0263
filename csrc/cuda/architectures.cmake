# Sets `result` to the architectures of a build for which TORCH_CUDA_ARCH_LIST names none, in its notation: from the T4 on
# one per generation, as far as this nvcc knows them, and +PTX for later devices. A device runs the code of its own major
# version and a minor version no higher than its own; nvcc 13 knows no device before 7.5.
function(zskd_default_architectures nvcc result)
  execute_process(COMMAND ${nvcc} --list-gpu-arch OUTPUT_VARIABLE listed ERROR_QUIET)
  string(REGEX MATCHALL "compute_[0-9]+" listed "${listed}")
  set(architectures "")
  foreach(number IN ITEMS 75 80 86 89 90 100 120)
    if("compute_${number}" IN_LIST listed)
      string(REGEX REPLACE "([0-9])$" ".\\1" architecture "${number}")
      list(APPEND architectures "${architecture}")
    endif()
  endforeach()
  if(NOT architectures)
    message(FATAL_ERROR "zskd_fast: ${nvcc} --list-gpu-arch names none of 75 80 86 89 90 100 120; "
                        "set TORCH_CUDA_ARCH_LIST, for example to 8.0")
  endif()
  list(JOIN architectures ";" architectures)
  set(${result} "${architectures}+PTX" PARENT_SCOPE)
endfunction()
