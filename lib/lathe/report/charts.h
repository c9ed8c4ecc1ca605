#pragma once

#include <string>
#include <vector>

#include "lathe/report/run.h"
#include "lathe/report/series.h"

namespace lathe::report {

/// A curve of a chart.
struct Curve {
  enum class Kind {
    Raw,     ///< faint: there is a smoothed one over it
    Line,    ///< the curve itself
    Points,  ///< few values, each marked
    Limit,   ///< a dashed level
  };

  std::string label = {};
  size_t run = 0;  ///< index of the run, which gives the colour
  Kind kind = Kind::Line;
  Series series = {};
};

struct Chart {
  std::string id = {};  ///< names its element in the page: [a-z_]
  std::string title = {};
  std::string note = {};  ///< a sentence below the title, may be empty
  std::string y_label = {};
  std::string x_label = "step";  ///< charts of one x label share cursor and zoom; x are whole numbers
  bool bytes = false;            ///< y in binary units
  bool from_zero = false;        ///< the y axis begins at 0
  std::vector<Curve> curves = {};
};

/// The charts that the runs have values for, each with all runs: loss, lr, grad_norm, throughput, memory, how even the
/// experts' loads are, then one per measure of the evaluations. No curve has more than 2,000 points.
std::vector<Chart> make_charts(const std::vector<Run>& runs);

}  // namespace lathe::report
