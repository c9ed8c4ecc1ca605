#pragma once

#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace lathe::report {

/// The keys of a recipe in order, with their values: {"optimizer.lr", "0.002"}. A line that is no `key: value` (an item
/// of a list, a continued text) belongs to the key above it. Reads any text; understands what `lathe train` writes.
std::vector<std::pair<std::string, std::string>> recipe_keys(std::string_view text);

/// A key whose value differs between recipes: one value per recipe, empty where a recipe lacks the key.
struct RecipeDifference {
  std::string key;
  std::vector<std::string> values;
};

std::vector<RecipeDifference> recipe_differences(const std::vector<std::string>& recipes);

}  // namespace lathe::report
