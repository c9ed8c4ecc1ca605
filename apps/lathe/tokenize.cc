#include "console.h"
#include "lathe/base/files.h"
#include "lathe/base/json.h"
#include "lathe/formats/model_directory.h"
#include "lathe/text/tokenizer.h"
#include "verbs.h"

namespace lathe::app {
namespace {

std::vector<int64_t> read_ids(const Json& json, const std::string& file, int line) {
  std::vector<int64_t> ids;
  const auto fail = [&](const Json& what) {
    throw data_error_at(file, line, Diagnostic::expected("an array of ids", describe(what)));
  };
  if (!json.is_array()) fail(json);
  for (const Json& id : json) {
    if (!id.is_number_unsigned() || id.get<uint64_t>() > static_cast<uint64_t>(INT64_MAX)) fail(id);
    ids.push_back(id.get<int64_t>());
  }
  return ids;
}

}  // namespace

int run_tokenize(const CommandLine& line) {
  const auto tokenizer = text::Tokenizer::from_file(formats::resolve_model_path(line.model) + "/tokenizer.json");
  const MappedFile file(line.jsonl);
  std::string_view rest(reinterpret_cast<const char*>(file.bytes().data()), file.bytes().size());
  std::string out;
  for (int number = 1; !rest.empty(); ++number) {
    const size_t end = std::min(rest.find('\n'), rest.size());
    std::string_view row = rest.substr(0, end);
    rest.remove_prefix(std::min(end + 1, rest.size()));
    if (row.ends_with('\r')) row.remove_suffix(1);
    if (row.empty()) continue;
    const Json json = parse_json(row, line.jsonl, {.max_depth = 16}, number);
    if (line.decode) {
      out += Json(tokenizer.decode(read_ids(json, line.jsonl, number))).dump();
    } else {
      const auto* text = json.is_object() && json.contains("text") && json["text"].is_string()
                             ? json["text"].get_ptr<const std::string*>()
                             : nullptr;
      if (text == nullptr)
        throw data_error_at(line.jsonl, number,
                            Diagnostic::expected("an object with the string field text", describe(json)));
      out += Json(tokenizer.encode(*text, {.special_tokens = !line.no_special}).ids).dump();
    }
    out += '\n';
    if (out.size() > (1 << 20)) {
      print_result(out);
      out.clear();
    }
  }
  print_result(out);
  return 0;
}

}  // namespace lathe::app
