#pragma once

#include <cstddef>
#include <vector>

namespace lathe::report {

/// A curve: y over ascending x. A y that is not finite is a gap.
struct Series {
  std::vector<double> x;
  std::vector<double> y;
};

/// At most `max_points` of a curve's points, chosen so that it looks the same: of each of equally long stretches the
/// lowest and the highest point and the first gap, and always the curve's first and last point.
/// Needs x and y of the same length and max_points >= 8.
Series thin_out(const Series& series, size_t max_points);

/// The exponential moving average m_i = Σ_k (1 - a)^k y_(i-k) / Σ_k (1 - a)^k over the finite y, a = 2 / (span + 1),
/// and NaN where y is not finite.
std::vector<double> smooth(const std::vector<double>& y, double span);

}  // namespace lathe::report
