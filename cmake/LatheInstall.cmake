# Install and export: find_package(lathe) gives lathe::<component> and lathe::lathe.
include(CMakePackageConfigHelpers)
get_property(targets GLOBAL PROPERTY LATHE_TARGETS)
install(TARGETS ${targets} EXPORT lathe-targets FILE_SET HEADERS)
set(package_dir "${CMAKE_INSTALL_LIBDIR}/cmake/lathe")
install(EXPORT lathe-targets NAMESPACE lathe:: DESTINATION "${package_dir}")
configure_package_config_file(cmake/lathe-config.cmake.in "${PROJECT_BINARY_DIR}/lathe-config.cmake" INSTALL_DESTINATION "${package_dir}")
write_basic_package_version_file("${PROJECT_BINARY_DIR}/lathe-config-version.cmake" COMPATIBILITY SameMinorVersion)
install(FILES "${PROJECT_BINARY_DIR}/lathe-config.cmake" "${PROJECT_BINARY_DIR}/lathe-config-version.cmake"
  cmake/LatheTorch.cmake cmake/LatheDependencies.cmake DESTINATION "${package_dir}")
