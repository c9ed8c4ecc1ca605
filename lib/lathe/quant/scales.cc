#include "lathe/quant/scales.h"

#include <algorithm>
#include <cmath>
#include <cstring>

namespace lathe::quant {
namespace {

// torch.linspace(0.1, 1, count) in float32: from both ends towards the middle, each with one rounding.
std::vector<float> boundaries(int count) {
  const float start = 0.1f, end = 1, step = (end - start) / static_cast<float>(count - 1);
  std::vector<float> values(static_cast<size_t>(count));
  for (int i = 0; i < count; ++i) {
    values[static_cast<size_t>(i)] = i < count / 2 ? std::fma(step, static_cast<float>(i), start)
                                                   : std::fma(-step, static_cast<float>(count - 1 - i), end);
  }
  return values;
}

std::array<float, 256> make_dynamic_map() {
  std::array<float, 256> map{};
  size_t next = 0;
  for (int exponent = 0; exponent < 7; ++exponent) {
    const auto decade = static_cast<float>(std::pow(10.0, exponent - 6));
    const std::vector<float> ends = boundaries((1 << exponent) + 1);
    for (size_t i = 0; i + 1 < ends.size(); ++i) {
      const float value = decade * ((ends[i] + ends[i + 1]) / 2);
      map[next++] = value;
      map[next++] = -value;
    }
  }
  map[next++] = 0;
  map[next] = 1;
  std::sort(map.begin(), map.end());
  return map;
}

uint8_t nearest_code(const std::array<float, 256>& map, float x) {
  size_t above = 0;  // the number of values below x, by halving without branches
  for (size_t step = 128; step > 0; step /= 2) above += map[above + step - 1] < x ? step : 0;
  if (above == 0) return 0;
  if (map[above] < x) return 255;
  const auto distance = [x](float value) { return std::abs(static_cast<double>(value) - static_cast<double>(x)); };
  return static_cast<uint8_t>(distance(map[above - 1]) <= distance(map[above]) ? above - 1 : above);
}

}  // namespace

const std::array<float, 256>& dynamic_map() {
  static const std::array<float, 256> kMap = make_dynamic_map();
  return kMap;
}

void read_scales(const Scales& scales, int64_t first, int64_t count, float* out) {
  if (scales.absmax != nullptr) {
    std::memcpy(out, scales.absmax + first, static_cast<size_t>(count) * sizeof(float));
    return;
  }
  for (int64_t i = 0; i < count;) {
    const int64_t nested = (first + i) / scales.nested_blocksize;
    const int64_t until = std::min(count, (nested + 1) * scales.nested_blocksize - first);
    for (; i < until; ++i) out[i] = scales.map[scales.codes[first + i]] * scales.nested_absmax[nested];
  }
  // By itself, so that no compiler fuses the two roundings.
  for (int64_t i = 0; i < count; ++i) out[i] += scales.offset;
}

NestedScales nest_scales(std::span<const float> absmax) {
  const auto& map = dynamic_map();
  NestedScales nested;
  double sum = 0;
  for (const float value : absmax) sum += static_cast<double>(value);
  nested.offset = absmax.empty() ? 0 : static_cast<float>(sum / static_cast<double>(absmax.size()));
  nested.codes.reserve(absmax.size());
  for (size_t begin = 0; begin < absmax.size(); begin += kNestedBlocksize) {
    const auto block = absmax.subspan(begin, std::min<size_t>(kNestedBlocksize, absmax.size() - begin));
    float largest = 0;
    for (const float value : block) largest = std::max(largest, std::abs(value - nested.offset));
    nested.absmax.push_back(largest);
    const float reciprocal = largest == 0 ? 0 : 1 / largest;
    for (const float value : block) nested.codes.push_back(nearest_code(map, (value - nested.offset) * reciprocal));
  }
  return nested;
}

}  // namespace lathe::quant
