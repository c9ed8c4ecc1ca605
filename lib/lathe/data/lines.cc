#include "lathe/data/lines.h"

#include <algorithm>
#include <string_view>
#include <utility>

#include "lathe/base/files.h"

namespace lathe::data {
namespace {

// One field from `at`, which ends behind it; adds the lines that it spans.
std::string read_field(std::string_view text, size_t& at, int& line, const std::string& file) {
  if (at == text.size() || text[at] != '"') {
    const size_t end = std::min(text.find_first_of(",\r\n\"", at), text.size());
    if (end < text.size() && text[end] == '"') throw data_error_at(file, line, "a quote inside of a field");
    const std::string field(text.substr(at, end - at));
    at = end;
    return field;
  }
  const int first_line = line;
  std::string field;
  for (++at; at < text.size(); ++at) {
    if (text[at] == '"' && (at + 1 == text.size() || text[at + 1] != '"')) break;
    if (text[at] == '"') ++at;
    if (text[at] == '\n') ++line;
    field += text[at];
  }
  if (at == text.size()) throw data_error_at(file, first_line, "a quote that is not closed");
  ++at;
  return field;
}

}  // namespace

void Mistakes::add(Diagnostic mistake) {
  if (!is_full()) {
    first_.push_back(std::move(mistake));
  } else {
    ++more_;
  }
}

void Mistakes::throw_if_any() {
  if (first_.empty()) return;
  std::string& hint = first_.back().hint;
  if (more_ > 0) hint += (hint.empty() ? "" : "; ") + std::to_string(more_) + " more lines are wrong";
  throw Error(ErrorKind::Data, std::move(first_));
}

void for_each_json_line(const std::string& path, Mistakes& mistakes,
                        const std::function<void(const JsonObject& line, int number)>& use) {
  const MappedFile file(path);
  const std::string_view all(reinterpret_cast<const char*>(file.bytes().data()), file.bytes().size());
  int number = 0;
  for (size_t begin = 0; begin < all.size();) {
    const size_t end = std::min(all.find('\n', begin), all.size());
    std::string_view text = all.substr(begin, end - begin);
    begin = end + 1;
    ++number;
    if (text.ends_with('\r')) text.remove_suffix(1);
    if (text.empty()) continue;
    try {
      const Json json = parse_json(text, path, {.max_depth = 16}, number);
      use(JsonObject(json, path), number);
    } catch (const Error& error) {
      Diagnostic diagnostic = error.diagnostics().front();
      diagnostic.line = number;
      mistakes.add(std::move(diagnostic));
    }
  }
}

std::string read_label(const JsonObject& line, const std::string& field) {
  const Json* value = line.find(field);
  if (value != nullptr && value->is_string()) return value->get<std::string>();
  if (value != nullptr && value->is_number_integer()) return value->dump();
  throw line.error(field,
                   Diagnostic::expected("a string or an integer", value == nullptr ? "nothing" : describe(*value)));
}

std::vector<CsvRow> parse_csv(std::string_view text, const std::string& file) {
  std::vector<CsvRow> rows;
  int line = 1;
  for (size_t at = 0; at < text.size(); ++line) {
    CsvRow row{line, {}};
    row.fields.push_back(read_field(text, at, line, file));
    while (at < text.size() && text[at] == ',') row.fields.push_back(read_field(text, ++at, line, file));
    if (at < text.size() && text[at] == '\r') ++at;
    if (at < text.size() && text[at] != '\n')
      throw data_error_at(file, line, "text after a quoted field or a lone \\r");
    ++at;
    if (row.fields.size() > 1 || !row.fields.front().empty()) rows.push_back(std::move(row));
  }
  return rows;
}

}  // namespace lathe::data
