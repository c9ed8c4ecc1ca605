#include "lathe/report/recipe_diff.h"

#include <algorithm>
#include <map>

namespace lathe::report {
namespace {

std::string_view trimmed(std::string_view text) {
  const size_t first = text.find_first_not_of(" \t\r");
  if (first == std::string_view::npos) return {};
  return text.substr(first, text.find_last_not_of(" \t\r") - first + 1);
}

// Where the key of a `key: value` line ends, or npos.
size_t key_end(std::string_view line) {
  if (line.starts_with("- ")) return std::string_view::npos;
  const size_t colon = line.find(": ");
  return colon == std::string_view::npos && line.ends_with(':') ? line.size() - 1 : colon;
}

}  // namespace

std::vector<std::pair<std::string, std::string>> recipe_keys(std::string_view text) {
  struct Parent {
    size_t indent;
    std::string key;
  };
  std::vector<Parent> parents;
  std::vector<std::pair<std::string, std::string>> keys;
  while (!text.empty()) {
    const size_t end = std::min(text.find('\n'), text.size());
    const std::string_view line = text.substr(0, end);
    text.remove_prefix(std::min(end + 1, text.size()));
    const std::string_view content = trimmed(line);
    if (content.empty() || content.starts_with('#')) continue;
    const size_t colon = key_end(content);
    if (colon == std::string_view::npos) {
      if (!keys.empty()) keys.back().second.append(keys.back().second.empty() ? "" : " ").append(content);
      continue;
    }
    const size_t indent = line.find_first_not_of(" \t");
    while (!parents.empty() && parents.back().indent >= indent) parents.pop_back();
    // A bound on depth keeps hostile text from growing paths without end.
    if (parents.size() > 32) continue;
    std::string path = parents.empty() ? "" : parents.back().key + ".";
    path += content.substr(0, colon);
    parents.push_back({indent, path});
    keys.emplace_back(std::move(path), trimmed(content.substr(colon + 1)));
  }
  return keys;
}

std::vector<RecipeDifference> recipe_differences(const std::vector<std::string>& recipes) {
  std::vector<RecipeDifference> rows;
  std::map<std::string, size_t> row_of;
  for (size_t i = 0; i < recipes.size(); ++i) {
    for (auto& [key, value] : recipe_keys(recipes[i])) {
      const auto [found, added] = row_of.try_emplace(key, rows.size());
      if (added) rows.push_back({key, std::vector<std::string>(recipes.size())});
      rows[found->second].values[i] = std::move(value);
    }
  }
  std::erase_if(rows, [](const RecipeDifference& row) {
    return std::all_of(row.values.begin(), row.values.end(),
                       [&row](const std::string& value) { return value == row.values.front(); });
  });
  return rows;
}

}  // namespace lathe::report
