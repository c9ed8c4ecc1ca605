#include "lathe/config/yaml.h"

#include <yaml-cpp/eventhandler.h>
#include <yaml-cpp/exceptions.h>
#include <yaml-cpp/parser.h>

#include <algorithm>
#include <filesystem>
#include <sstream>
#include <utility>

#include "lathe/base/error.h"
#include "lathe/base/files.h"
#include "lathe/base/text.h"

namespace lathe::config {
namespace {

constexpr uint64_t kMaxBytes = 256 << 10;
constexpr size_t kMaxDepth = 32;

[[noreturn]] void fail(const std::string& file, int line, int column, const std::string& problem,
                       const std::string& hint = "") {
  throw Error(ErrorKind::Config, Diagnostic{file, line, column, "", problem, hint});
}

// An upper bound of the nesting, without recursion: open flow brackets plus the block levels that indentation and
// dashes open.
void check_nesting(std::string_view text, const std::string& file) {
  std::vector<size_t> block_columns;
  size_t flow = 0;
  int line = 1;
  char quote_mark = 0;
  bool line_start = true;
  size_t column = 0;
  bool comment = false;
  char before = '\n';
  for (const char c : text) {
    ++column;
    const bool after_blank = before == '\n' || before == ' ' || before == '\t';
    before = c;
    if (c == '\n') {
      ++line;
      column = 0;
      line_start = true;
      comment = false;
      continue;
    }
    comment = comment || (c == '#' && after_blank && quote_mark == 0);
    if (comment) continue;
    if (quote_mark != 0) {
      if (c == quote_mark) quote_mark = 0;
      continue;
    }
    if (line_start && c != ' ') {
      while (!block_columns.empty() && block_columns.back() >= column) block_columns.pop_back();
      block_columns.push_back(column);
      line_start = c == '-' || c == '?';  // a compact "- - -" opens a level for each dash
    }
    if (c == '[' || c == '{') ++flow;
    if ((c == ']' || c == '}') && flow > 0) --flow;
    if (flow > 0 && (c == '"' || c == '\'')) quote_mark = c;
    if (flow + block_columns.size() > kMaxDepth + 1)
      fail(file, line, static_cast<int>(column), "nested more than 32 deep");
  }
}

// The first bracket without its end in a value that begins with one; '\0': there is none.
char unclosed_bracket(std::string_view value) {
  std::string open;
  char quote_mark = 0;
  for (const char c : value) {
    if (quote_mark != 0 || c == '"' || c == '\'') {
      quote_mark = quote_mark == 0 ? c : quote_mark == c ? '\0' : quote_mark;
    } else if (c == '[' || c == '{') {
      open += c;
    } else if (open.empty()) {
      return 0;
    } else if (c == ']' || c == '}') {
      if (open.back() != (c == ']' ? '[' : '{')) break;
      open.pop_back();
    }
  }
  return open.empty() ? '\0' : open.back();
}

// Builds the tree from the parser's events and notes what a recipe may not hold.
class TreeBuilder : public YAML::EventHandler {
 public:
  TreeBuilder(std::string file, std::string_view text) : file_(std::move(file)), text_(text) {}

  YamlNode root;
  std::vector<Diagnostic> mistakes;
  bool has_root = false;

  void OnDocumentStart(const YAML::Mark&) override {}
  void OnDocumentEnd() override {}
  void OnNull(const YAML::Mark& mark, YAML::anchor_t anchor) override {
    add(mark, "?", anchor, YamlNode::Kind::Scalar, "");
  }
  void OnAlias(const YAML::Mark& mark, YAML::anchor_t) override {
    complain_about_alias(mark);
    add(mark, "?", 0, YamlNode::Kind::Scalar, "");
  }
  void OnScalar(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
                const std::string& value) override {
    add(mark, tag, anchor, YamlNode::Kind::Scalar, value);
  }
  void OnSequenceStart(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
                       YAML::EmitterStyle::value) override {
    open(add(mark, tag, anchor, YamlNode::Kind::Sequence, ""));
  }
  void OnSequenceEnd() override { close(); }
  void OnMapStart(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor,
                  YAML::EmitterStyle::value) override {
    open(add(mark, tag, anchor, YamlNode::Kind::Mapping, ""));
  }
  void OnMapEnd() override { close(); }

 private:
  struct Level {
    YamlNode* node;
    bool has_key = false;
    YamlNode::Member pending;
  };

  // The first only: a bomb of aliases is one mistake.
  void complain_about_alias(const YAML::Mark& mark) {
    if (!std::exchange(has_aliases_, true))
      complain(mark, "anchors and aliases are not allowed", "write the values out");
  }

  void complain(const YAML::Mark& mark, std::string problem, std::string hint) {
    mistakes.push_back({file_, mark.line + 1, mark.column + 1, "", std::move(problem), std::move(hint)});
  }

  // Puts a node where the parser is: the root, the next item or the value of the last key. A key is no node: null.
  YamlNode* add(const YAML::Mark& mark, const std::string& tag, YAML::anchor_t anchor, YamlNode::Kind kind,
                const std::string& value) {
    if (anchor != 0) complain_about_alias(mark);
    if (!tag.empty() && tag != "?" && tag != "!") complain(mark, "tags are not allowed", "");
    if (tag == "!" && !is_closed(static_cast<size_t>(mark.pos))) complain(mark, "quotes without their end", "");
    YamlNode node;
    node.kind = kind;
    node.file = file_;
    node.line = mark.line + 1;
    node.column = mark.column + 1;
    node.text = value;
    node.quoted = tag == "!";
    if (levels_.empty()) {
      has_root = true;
      root = std::move(node);
      return &root;
    }
    Level& level = levels_.back();
    if (level.node->kind == YamlNode::Kind::Sequence) return &level.node->items.emplace_back(std::move(node));
    if (!level.has_key) {
      if (kind != YamlNode::Kind::Scalar) {
        complain(mark, "a key must be a word", "");
        throw Error(ErrorKind::Config, mistakes);  // what follows has no place in the tree
      }
      level.has_key = true;
      level.pending = {value, node.line, node.column, {}};
      return nullptr;
    }
    level.has_key = false;
    const bool duplicate = level.node->find(level.pending.key) != nullptr;
    if (duplicate) {
      mistakes.push_back(
          {file_, level.pending.line, level.pending.column, printable(level.pending.key), "duplicate key", ""});
    } else if (level.pending.key == "<<") {
      mistakes.push_back({file_, level.pending.line, level.pending.column, "<<", "merge keys are not allowed",
                          "write the values out"});
    }
    level.pending.value = std::move(node);
    level.node->members.push_back(std::move(level.pending));
    return &level.node->members.back().value;
  }
  void open(YamlNode* node) { levels_.push_back({node, false, {}}); }
  void close() { levels_.pop_back(); }

  // Whether the quotes that begin at `place` end: the parser takes the end of the file for them.
  bool is_closed(size_t place) const {
    if (place >= text_.size() || (text_[place] != '"' && text_[place] != '\'')) return true;
    const char mark = text_[place];
    for (size_t i = place + 1; i < text_.size(); ++i) {
      if (mark == '"' && text_[i] == '\\') {
        ++i;
      } else if (text_[i] == mark) {
        if (mark == '"' || i + 1 >= text_.size() || text_[i + 1] != mark) return true;
        ++i;  // '' stands for one
      }
    }
    return false;
  }

  std::string file_;
  std::string_view text_;
  bool has_aliases_ = false;
  std::vector<Level> levels_;
};

}  // namespace

const YamlNode* YamlNode::find(std::string_view key) const {
  const auto found =
      std::find_if(members.begin(), members.end(), [&](const Member& member) { return member.key == key; });
  return found == members.end() ? nullptr : &found->value;
}

std::string YamlNode::describe() const {
  if (kind == Kind::Sequence) {
    const auto nested =
        std::find_if(items.begin(), items.end(), [](const YamlNode& item) { return item.kind != Kind::Scalar; });
    return nested == items.end() ? "a list" : "a list that holds " + nested->describe();
  }
  if (kind == Kind::Mapping) {
    const bool small = members.size() == 1 && members[0].value.kind == Kind::Scalar && members[0].key.size() <= 32;
    return small ? "{" + printable(members[0].key) + ": " + members[0].value.describe() + "}" : "a mapping";
  }
  if (text.empty() && !quoted) return "nothing";
  const bool number = !quoted && text.find_first_not_of("+-0123456789.eE") == std::string::npos;
  return number ? text : quote(text);
}

YamlNode parse_yaml(std::string_view text, const std::string& file) {
  if (text.size() > kMaxBytes) {
    fail(file, 0, 0,
         Diagnostic::expected("at most " + std::to_string(kMaxBytes) + " bytes",
                              std::to_string(text.size()) + " bytes"));
  }
  if (text.find('\0') != std::string_view::npos || find_invalid_utf8(text) != std::string_view::npos) {
    fail(file, 0, 0, Diagnostic::expected("UTF-8 text", "binary data"));
  }
  check_nesting(text, file);
  std::istringstream stream{std::string(text)};
  TreeBuilder builder(file, text);
  try {
    YAML::Parser parser(stream);
    parser.HandleNextDocument(builder);
    TreeBuilder second(file, text);
    if (parser.HandleNextDocument(second))
      fail(file, second.root.line, second.root.column, "a second document is not allowed");
  } catch (const YAML::Exception& error) {
    fail(file, error.mark.line + 1, error.mark.column + 1, "bad YAML: " + error.msg);
  }
  if (!builder.mistakes.empty()) throw Error(ErrorKind::Config, builder.mistakes);
  if (!builder.has_root) fail(file, 0, 0, "is empty");
  return std::move(builder.root);
}

Json to_json(const YamlNode& node) {
  if (node.kind == YamlNode::Kind::Sequence) {
    Json list = Json::array();
    for (const YamlNode& item : node.items) list.push_back(to_json(item));
    return list;
  }
  if (node.is_mapping()) {
    Json object = Json::object();
    for (const YamlNode::Member& member : node.members) object[member.key] = to_json(member.value);
    return object;
  }
  // A plain scalar that JSON reads as a number, true, false or null is that.
  const Json value = node.quoted ? Json() : Json::parse(node.text, nullptr, /*allow_exceptions=*/false);
  return node.quoted || value.is_discarded() || value.is_structured() || value.is_string() ? Json(node.text) : value;
}

YamlNode read_yaml_file(const std::string& path) {
  if (std::filesystem::is_directory(path)) fail(path, 0, 0, Diagnostic::expected("a YAML file", "a directory"));
  try {
    return parse_yaml(read_file(path, kMaxBytes), path);
  } catch (const Error& error) {
    // A recipe that cannot be read is a mistake in usage, not in data.
    throw Error(ErrorKind::Config, error.diagnostics());
  }
}

void apply_override(YamlNode& root, const std::string& argument) {
  const bool removes = argument.starts_with('~');
  const size_t equals = argument.find('=');
  const std::string path = removes ? argument.substr(1) : argument.substr(0, equals);
  if (path.empty() || removes == (equals != std::string::npos)) {
    fail("override", 0, 0, Diagnostic::expected("key=value or ~key", quote(argument)),
         "for example training.batch_size=8");
  }
  if (("." + path + ".").find("..") != std::string::npos)
    fail("override", 0, 0, quote(argument) + ": a part of the key is empty");
  if (!root.is_mapping()) {
    fail(root.file, root.line, root.column, Diagnostic::expected("a mapping", root.describe()),
         "see lathe show --schema");
  }
  YamlNode* node = &root;
  std::istringstream parts(path);
  std::vector<std::string> keys;
  for (std::string key; std::getline(parts, key, '.');) keys.push_back(key);
  for (size_t i = 0; i < keys.size(); ++i) {
    if (!node->is_mapping()) fail("override", 0, 0, quote(argument) + ": " + quote(keys[i - 1]) + " is not a mapping");
    auto found = std::find_if(node->members.begin(), node->members.end(),
                              [&](const YamlNode::Member& member) { return member.key == keys[i]; });
    const bool last = i + 1 == keys.size();
    if (removes && last) {
      if (found != node->members.end()) node->members.erase(found);
      return;
    }
    if (found == node->members.end()) {
      if (removes) return;
      YamlNode child;
      child.kind = YamlNode::Kind::Mapping;
      child.file = "override";
      node->members.push_back({keys[i], 0, 0, std::move(child)});
      found = std::prev(node->members.end());
    }
    node = &found->value;
  }
  const std::string value = argument.substr(equals + 1);
  if (const char bracket = unclosed_bracket(value); bracket != 0)
    fail("override", 0, 0, quote(argument) + ": the bracket " + bracket + " is not closed");
  *node = value.empty() ? YamlNode{} : parse_yaml(value, "override");
  const auto mark = [](auto&& self, YamlNode& marked) -> void {
    marked.file = "override";
    marked.line = marked.column = 0;
    for (YamlNode& item : marked.items) self(self, item);
    for (YamlNode::Member& member : marked.members) {
      member.line = member.column = 0;
      self(self, member.value);
    }
  };
  mark(mark, *node);
}

}  // namespace lathe::config
