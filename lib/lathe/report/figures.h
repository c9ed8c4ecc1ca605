#pragma once

#include <optional>
#include <string>
#include <vector>

#include "lathe/report/run.h"

namespace lathe::report {

/// One number that sums a run up.
struct Figure {
  enum class Better { Neither, Lower, Higher };

  std::string label;
  std::string text;  ///< the number as people read it, with its unit
  double value = 0;
  Better better = Better::Neither;
  std::string place = {};  ///< where the run had it, "step 300", when that is not the end
};

/// A run's figures in the order of the page: loss, the best of each measure, how even the
/// experts' loads ended, steps, tokens, time, memory. What the run
/// has not recorded is left out.
std::vector<Figure> final_figures(const Run& run);

/// 0.021736 -> "0.02174", 6510.7 -> "6511", 1.5e-7 -> "1.5e-07": four significant digits.
std::string format_number(double value);
/// 112.4 -> "1 min 52 s".
std::string format_seconds(double seconds);
/// A number, or bytes in binary units when the name ends in "bytes".
std::string format_named(const std::string& name, double value);

}  // namespace lathe::report
