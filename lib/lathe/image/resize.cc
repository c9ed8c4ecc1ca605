#include "lathe/image/resize.h"

#include <algorithm>
#include <cmath>

namespace lathe::image {
namespace {

// Weights are integers of 22 fractional bits: 255 · Σ|weight| · 2^22 stays below 2^31 for both filters.
constexpr int kFractionBits = 22;

double weight_at(Filter filter, double x) {
  x = std::abs(x);
  if (filter == Filter::Bilinear) return x < 1 ? 1 - x : 0;
  constexpr double a = -0.5;  // Keys' cubic convolution
  if (x < 1) return ((a + 2) * x - (a + 3)) * x * x + 1;
  if (x < 2) return (((x - 5) * x + 8) * x - 4) * a;
  return 0;
}

// The input samples [first, first + weights.size()) of one output sample.
struct Taps {
  int64_t first;
  std::vector<int32_t> weights;
};

// Of the output samples [begin, begin + count).
std::vector<Taps> make_taps(int64_t in_size, int64_t out_size, Filter filter, int64_t begin, int64_t count) {
  const double scale = static_cast<double>(in_size) / static_cast<double>(out_size);
  const double stretch = std::max(scale, 1.0);
  const double support = (filter == Filter::Bilinear ? 1.0 : 2.0) * stretch;
  std::vector<Taps> all;
  for (int64_t out = begin; out < begin + count; ++out) {
    const double center = (static_cast<double>(out) + 0.5) * scale;
    const int64_t first = std::max<int64_t>(0, static_cast<int64_t>(center - support + 0.5));
    const int64_t last = std::min(in_size, static_cast<int64_t>(center + support + 0.5));
    std::vector<double> weights;
    double sum = 0;
    for (int64_t in = first; in < last; ++in) {
      weights.push_back(weight_at(filter, (static_cast<double>(in) - center + 0.5) * (1 / stretch)));
      sum += weights.back();
    }
    Taps taps{first, {}};
    for (const double weight : weights) {
      const double scaled = (sum == 0 ? weight : weight / sum) * (1 << kFractionBits);
      taps.weights.push_back(static_cast<int32_t>(scaled + (scaled < 0 ? -0.5 : 0.5)));
    }
    all.push_back(std::move(taps));
  }
  return all;
}

uint8_t to_byte(int32_t sum) { return static_cast<uint8_t>(std::clamp(sum >> kFractionBits, 0, 255)); }

constexpr int32_t kHalf = 1 << (kFractionBits - 1);

// The rows [first, last), each resized.
Picture resize_rows(const Picture& in, int64_t first, int64_t last, const std::vector<Taps>& all) {
  Picture out(last - first, static_cast<int64_t>(all.size()), in.channels);
  for (int64_t y = 0; y < out.height; ++y) {
    uint8_t* to = out.row(y);
    for (const Taps& taps : all) {
      for (int64_t c = 0; c < in.channels; ++c) {
        const uint8_t* sample = in.row(first + y) + taps.first * in.channels + c;
        int32_t sum = kHalf;
        for (const int32_t weight : taps.weights) {
          sum += weight * *sample;
          sample += in.channels;
        }
        *to++ = to_byte(sum);
      }
    }
  }
  return out;
}

// `in` begins with row `first` of the picture that the taps are for.
Picture resize_columns(const Picture& in, int64_t first, const std::vector<Taps>& all) {
  Picture out(static_cast<int64_t>(all.size()), in.width, in.channels);
  const auto row_bytes = static_cast<size_t>(in.width * in.channels);
  std::vector<int32_t> sums(row_bytes);
  for (int64_t y = 0; y < out.height; ++y) {
    const Taps& taps = all[static_cast<size_t>(y)];
    std::fill(sums.begin(), sums.end(), kHalf);
    for (size_t k = 0; k < taps.weights.size(); ++k) {
      const uint8_t* samples = in.row(taps.first - first + static_cast<int64_t>(k));
      const int32_t weight = taps.weights[k];
      for (size_t i = 0; i < row_bytes; ++i) sums[i] += weight * samples[i];
    }
    std::transform(sums.begin(), sums.end(), out.row(y), to_byte);
  }
  return out;
}

}  // namespace

Picture resize(const Picture& picture, int64_t height, int64_t width, Filter filter) {
  return resize(picture, height, width, filter, {0, 0, height, width});
}

Picture resize(const Picture& picture, int64_t height, int64_t width, Filter filter, const Window& window) {
  if (height == picture.height && width == picture.width) return crop(picture, window);
  const std::vector<Taps> rows = make_taps(picture.height, height, filter, window.top, window.height);
  const std::vector<Taps> columns = make_taps(picture.width, width, filter, window.left, window.width);
  const int64_t first = rows.front().first;
  const int64_t last = rows.back().first + static_cast<int64_t>(rows.back().weights.size());
  return resize_columns(resize_rows(picture, first, last, columns), first, rows);
}

Picture crop(const Picture& picture, const Window& window) {
  Picture out(window.height, window.width, picture.channels);
  for (int64_t y = 0; y < window.height; ++y) {
    const uint8_t* from = picture.row(window.top + y) + window.left * picture.channels;
    std::copy(from, from + window.width * picture.channels, out.row(y));
  }
  return out;
}

void flip(Picture& picture) {
  for (int64_t y = 0; y < picture.height; ++y) {
    uint8_t* row = picture.row(y);
    for (int64_t left = 0, right = picture.width - 1; left < right; ++left, --right)
      std::swap_ranges(row + left * picture.channels, row + (left + 1) * picture.channels,
                       row + right * picture.channels);
  }
}

}  // namespace lathe::image
