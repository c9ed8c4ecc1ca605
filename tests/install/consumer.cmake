# cmake -DBUILD=<build> -DSOURCE=<root> -DCXX=<compiler> -P consumer.cmake: installs, then configures, builds and runs a consumer.
set(work "${BUILD}/consumer-test")
file(REMOVE_RECURSE "${work}")
function(run)
  execute_process(COMMAND ${ARGN} COMMAND_ERROR_IS_FATAL ANY)
endfunction()
run("${CMAKE_COMMAND}" --install "${BUILD}" --prefix "${work}/prefix")
run("${CMAKE_COMMAND}" -S "${SOURCE}/tests/install/missing" -B "${work}/missing" -G Ninja "-DCMAKE_PREFIX_PATH=${work}/prefix" "-DCMAKE_CXX_COMPILER=${CXX}")
run("${CMAKE_COMMAND}" -S "${SOURCE}/tests/install/consumer" -B "${work}/build" -G Ninja "-DCMAKE_PREFIX_PATH=${work}/prefix" "-DCMAKE_CXX_COMPILER=${CXX}"
    "-DEXAMPLE=${SOURCE}/apps/examples/lora_regression.cc" -DCMAKE_BUILD_TYPE=Release)
run("${CMAKE_COMMAND}" --build "${work}/build")
run("${work}/build/consumer")
# The installed programs run from where they are, and find each other.
run("${work}/prefix/bin/lathe" ls)
run("${work}/prefix/bin/lathe" doctor)
file(REMOVE_RECURSE "${work}")
