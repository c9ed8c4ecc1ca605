# lathe_add_component(<name> [TORCH] DEPENDS <components> [PRIVATE_LIBRARIES <targets>] [PUBLIC_LIBRARIES <targets>]
#                     HEADERS <files> [SOURCES <files>] [KERNELS <files>])
#   One folder, one static library lathe::<name>. DEPENDS is required, empty or not: the calls are the architecture diagram.
#   TORCH     links LibTorch and reuses the one precompiled header.
#   KERNELS   sources without torch headers, compiled on their own.
# lathe_add_test(<component> SOURCES <files> [LIBRARIES <targets>]): one test program of a component, one ctest entry test.<component>.

add_library(lathe_warnings INTERFACE)
target_compile_options(lathe_warnings INTERFACE -Wall -Wextra -Wpedantic
  # GCC 12 reports std::string's own concatenation (GCC bug 105651).
  $<$<CXX_COMPILER_ID:GNU>:-Wno-restrict;-Wno-stringop-overflow;-Wno-stringop-overread;-Wno-array-bounds>
  $<$<BOOL:${LATHE_DEVELOPER}>:-Werror>)

if(LATHE_TORCH)
  file(WRITE "${PROJECT_BINARY_DIR}/lathe_pch.cc" "")
  add_library(lathe_pch OBJECT "${PROJECT_BINARY_DIR}/lathe_pch.cc")
  target_link_libraries(lathe_pch PRIVATE lathe::torch lathe_warnings)  # -Wpedantic changes a predefined macro
  if(LATHE_PCH)
    target_precompile_headers(lathe_pch PRIVATE <torch/torch.h>)
  endif()
endif()

function(lathe_use_pch target)
  if(LATHE_PCH)
    target_precompile_headers(${target} REUSE_FROM lathe_pch)
    target_compile_options(${target} PRIVATE $<$<CXX_COMPILER_ID:GNU>:-Werror=invalid-pch>)
  endif()
endfunction()

function(lathe_add_component name)
  cmake_parse_arguments(PARSE_ARGV 1 arg "TORCH" "" "DEPENDS;PRIVATE_LIBRARIES;PUBLIC_LIBRARIES;HEADERS;SOURCES;KERNELS")
  if(NOT DEFINED arg_DEPENDS AND NOT "DEPENDS" IN_LIST ARGN)
    message(FATAL_ERROR "lathe_add_component(${name}): DEPENDS is missing")
  endif()
  set_property(GLOBAL APPEND PROPERTY LATHE_COMPONENTS ${name})
  set_property(GLOBAL PROPERTY LATHE_DEPENDS_${name} "${arg_DEPENDS}")
  set_property(GLOBAL PROPERTY LATHE_USES_TORCH_${name} "${arg_TORCH}")
  if(arg_TORCH AND NOT LATHE_TORCH)
    return()
  endif()
  list(TRANSFORM arg_HEADERS PREPEND "${name}/")
  list(TRANSFORM arg_SOURCES PREPEND "${name}/")
  list(TRANSFORM arg_KERNELS PREPEND "${name}/")
  set(target lathe_${name})
  set(scope PUBLIC)
  if(arg_SOURCES OR arg_KERNELS)
    add_library(${target} STATIC ${arg_SOURCES} ${arg_KERNELS})
    target_link_libraries(${target} PRIVATE $<BUILD_INTERFACE:lathe_warnings> ${arg_PRIVATE_LIBRARIES})
  else()
    add_library(${target} INTERFACE)
    set(scope INTERFACE)
  endif()
  add_library(lathe::${name} ALIAS ${target})
  set_target_properties(${target} PROPERTIES EXPORT_NAME ${name} VERIFY_INTERFACE_HEADER_SETS ${LATHE_DEVELOPER})
  target_sources(${target} ${scope} FILE_SET HEADERS BASE_DIRS "${PROJECT_SOURCE_DIR}/lib" FILES ${arg_HEADERS})
  target_compile_features(${target} ${scope} cxx_std_20)
  target_link_libraries(${target} ${scope} ${arg_PUBLIC_LIBRARIES})
  foreach(dependency IN LISTS arg_DEPENDS)
    target_link_libraries(${target} ${scope} lathe::${dependency})
  endforeach()
  if(arg_TORCH)
    target_link_libraries(${target} ${scope} lathe::torch)
    lathe_use_pch(${target})
  endif()
  set_source_files_properties(${arg_KERNELS} PROPERTIES SKIP_PRECOMPILE_HEADERS ON SKIP_UNITY_BUILD_INCLUSION ON)
  set_property(GLOBAL APPEND PROPERTY LATHE_TARGETS ${target})
endfunction()

function(lathe_add_test component)
  cmake_parse_arguments(PARSE_ARGV 1 arg "" "" "SOURCES;LIBRARIES")
  if(NOT TARGET lathe::${component})  # a LibTorch component in a build without it
    return()
  endif()
  set(target lathe_${component}_test)
  add_executable(${target} ${arg_SOURCES})
  target_link_libraries(${target} PRIVATE lathe::${component} lathe_warnings lathe_testing ${arg_LIBRARIES})
  get_property(uses_torch GLOBAL PROPERTY LATHE_USES_TORCH_${component})
  if(uses_torch)
    lathe_use_pch(${target})
  endif()
  add_test(NAME test.${component} COMMAND ${target})
  # Passive waiting: tests share the machine, and libgomp's spinning barriers would cost them a scheduler quantum each.
  set_tests_properties(test.${component} PROPERTIES ENVIRONMENT "OMP_WAIT_POLICY=passive" TIMEOUT 600)
endfunction()
