# lathe::torch: LibTorch as one target, from CMAKE_PREFIX_PATH or from the environment that cmake/setup.sh makes.
# Also installed: a program that links Lathe finds LibTorch by the same file.
if(TARGET lathe::torch)
  return()
endif()

# Where setup.sh puts the wheel.
if(NOT "$ENV{LATHE_CACHE}" STREQUAL "")
  set(LATHE_CACHE_DIRECTORY "$ENV{LATHE_CACHE}")
elseif(NOT "$ENV{XDG_CACHE_HOME}" STREQUAL "")
  set(LATHE_CACHE_DIRECTORY "$ENV{XDG_CACHE_HOME}/lathe")
else()
  set(LATHE_CACHE_DIRECTORY "$ENV{HOME}/.cache/lathe")
endif()
file(GLOB _lathe_torch_hints "${LATHE_CACHE_DIRECTORY}/venv/lib/python3*/site-packages/torch")

# The CPU wheel has no static kineto, of which TorchConfig warns: any library that exists silences it.
find_path(LATHE_TORCH_SHARE NAMES Torch/TorchConfig.cmake PATH_SUFFIXES share/cmake HINTS ${CMAKE_PREFIX_PATH} ${_lathe_torch_hints})
mark_as_advanced(LATHE_TORCH_SHARE)
if(NOT LATHE_TORCH_SHARE)
  lathe_missing("Lathe needs LibTorch 2.13: run bash cmake/setup.sh, or pass -DCMAKE_PREFIX_PATH=<torch>/share/cmake")
  return()
endif()
cmake_path(GET LATHE_TORCH_SHARE PARENT_PATH _lathe_torch_root)
cmake_path(GET _lathe_torch_root PARENT_PATH _lathe_torch_root)
if(NOT kineto_LIBRARY)
  set(kineto_LIBRARY "${_lathe_torch_root}/lib/libtorch.so" CACHE INTERNAL "")
endif()
find_package(Torch 2.13 CONFIG REQUIRED PATHS "${LATHE_TORCH_SHARE}/Torch" NO_DEFAULT_PATH)
if(TARGET caffe2::mkl)  # MKL is inside libtorch_cpu; without this its usual folders enter the run path
  set_property(TARGET caffe2::mkl PROPERTY INTERFACE_LINK_DIRECTORIES "")
endif()

# at::parallel_for is header-only OpenMP: serial without -fopenmp. The wheel's own libgomp, by path, keeps one thread pool.
add_library(lathe::torch INTERFACE IMPORTED GLOBAL)
set_target_properties(lathe::torch PROPERTIES IMPORTED_GLOBAL TRUE)
target_compile_features(lathe::torch INTERFACE cxx_std_20)
target_compile_options(lathe::torch INTERFACE -fopenmp)
target_link_libraries(lathe::torch INTERFACE ${TORCH_LIBRARIES})
if(EXISTS "${_lathe_torch_root}/lib/libgomp.so.1")
  target_link_libraries(lathe::torch INTERFACE "${_lathe_torch_root}/lib/libgomp.so.1")
else()
  find_package(OpenMP REQUIRED COMPONENTS CXX)
  target_link_libraries(lathe::torch INTERFACE OpenMP::OpenMP_CXX)
endif()
