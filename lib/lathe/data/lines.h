#pragma once

#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "lathe/base/error.h"
#include "lathe/base/json.h"

namespace lathe::data {

/// The mistakes of data files: the first ten are told, the others counted.
class Mistakes {
 public:
  void add(Diagnostic mistake);
  /// Whether further ones are only counted: their words need no work.
  bool is_full() const { return first_.size() == kTold; }
  /// Throws Error{Data} when there are any.
  void throw_if_any();

 private:
  static constexpr size_t kTold = 10;

  std::vector<Diagnostic> first_;
  size_t more_ = 0;
};

/// Calls `use` with each JSON object of a JSONL file and its line's number. Lines end at '\n'; a '\r' before it is
/// dropped; empty lines are passed over. What a line, or `use`, throws as an Error goes to `mistakes` with the line.
void for_each_json_line(const std::string& path, Mistakes& mistakes,
                        const std::function<void(const JsonObject& line, int number)>& use);

/// A label as text: a string, or an integer in decimal. Throws Error{Data} for anything else.
std::string read_label(const JsonObject& line, const std::string& field);

/// The rows of a CSV file (RFC 4180: fields in double quotes may hold commas, line ends and doubled quotes; rows end
/// at "\n" or "\r\n"), each with the line that it begins on; empty lines are passed over.
struct CsvRow {
  int line;
  std::vector<std::string> fields;
};
/// Throws Error{Data} with `file` and the line for a quote that is not closed or stands inside a field.
std::vector<CsvRow> parse_csv(std::string_view text, const std::string& file);

}  // namespace lathe::data
