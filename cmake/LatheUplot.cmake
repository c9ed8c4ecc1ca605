# uPlot, the plotting library inside the pages of `lathe report`: LATHE_UPLOT_DIR, where cmake/setup.sh has put it. Only the build needs it.
find_path(LATHE_UPLOT_DIR uPlot.iife.min.js NO_DEFAULT_PATH
  PATHS "$ENV{LATHE_CACHE}/uplot-1.6.32" "$ENV{XDG_CACHE_HOME}/lathe/uplot-1.6.32" "$ENV{HOME}/.cache/lathe/uplot-1.6.32")
mark_as_advanced(LATHE_UPLOT_DIR)
if(NOT LATHE_UPLOT_DIR)
  message(FATAL_ERROR "Lathe needs uPlot 1.6.32: bash cmake/setup.sh")
endif()
