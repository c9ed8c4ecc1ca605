#include "lathe/report/series.h"

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>

namespace lathe::report {

Series thin_out(const Series& series, size_t max_points) {
  const size_t size = series.x.size();
  if (size <= max_points) return series;
  const size_t stretches = (max_points - 2) / 3;
  const size_t inner = size - 2;
  Series thin;
  const auto keep = [&](size_t i) {
    thin.x.push_back(series.x[i]);
    thin.y.push_back(series.y[i]);
  };
  keep(0);
  for (size_t stretch = 0; stretch < stretches; ++stretch) {
    const size_t begin = 1 + stretch * inner / stretches;
    const size_t end = 1 + (stretch + 1) * inner / stretches;
    size_t low = end, high = end, gap = end;
    for (size_t i = begin; i < end; ++i) {
      if (!std::isfinite(series.y[i])) {
        if (gap == end) gap = i;
        continue;
      }
      if (low == end || series.y[i] < series.y[low]) low = i;
      if (high == end || series.y[i] > series.y[high]) high = i;
    }
    std::array<size_t, 3> chosen = {low, high, gap};
    std::sort(chosen.begin(), chosen.end());
    const auto last = std::unique(chosen.begin(), chosen.end());
    std::for_each(chosen.begin(), last, [&](size_t i) {
      if (i < end) keep(i);
    });
  }
  keep(size - 1);
  return thin;
}

std::vector<double> smooth(const std::vector<double>& y, double span) {
  const double retained = 1 - 2 / (span + 1);
  double sum = 0, weight = 0;
  std::vector<double> means;
  means.reserve(y.size());
  for (const double value : y) {
    if (std::isfinite(value)) {
      sum = retained * sum + value;
      weight = retained * weight + 1;
      means.push_back(sum / weight);
    } else {
      means.push_back(std::numeric_limits<double>::quiet_NaN());
    }
  }
  return means;
}

}  // namespace lathe::report
