#pragma once

#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "lathe/base/json.h"

namespace lathe::config {

/// One node of a YAML document with its place. Mappings keep their order and have no key twice.
struct YamlNode {
  enum class Kind { Scalar, Sequence, Mapping };

  struct Member;

  Kind kind = Kind::Scalar;
  std::string file;             ///< the place's name in messages: the file, or "override"
  int line = 0;                 ///< 1-based; 0 for an override
  int column = 0;               ///< 1-based
  std::string text;             ///< of a scalar
  bool quoted = false;          ///< a scalar in quotes: always a string
  std::vector<YamlNode> items;  ///< of a sequence
  std::vector<Member> members;  ///< of a mapping

  bool is_mapping() const { return kind == Kind::Mapping; }
  const YamlNode* find(std::string_view key) const;
  /// How a message shows the node: `"text"`, `16`, `a list`, `a mapping`, `nothing`.
  std::string describe() const;
};

struct YamlNode::Member {
  std::string key;
  int line = 0;
  int column = 0;
  YamlNode value;
};

/// Parses one strict YAML document: at most 256 KiB of UTF-8 text, nested at most 32 deep, no anchors, aliases, tags,
/// duplicate or merge keys, no second document. Size and nesting are checked before the parser sees the text. Throws
/// Error{Config} with every mistake that could be found.
YamlNode parse_yaml(std::string_view text, const std::string& file);

/// The node as JSON: plain scalars become numbers, true, false and null where they read so, all else strings.
Json to_json(const YamlNode& node);

/// Reads and parses a file.
YamlNode read_yaml_file(const std::string& path);

/// Applies `a.b=value` (the value is YAML) or `~a.b` (removes a key) to a tree.
/// Throws Error{Config} when the argument has neither form, its value is no YAML, or a level of its path is not a
/// mapping.
void apply_override(YamlNode& root, const std::string& argument);

}  // namespace lathe::config
