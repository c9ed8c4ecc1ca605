#include "lathe/recipe/values.h"

#include <algorithm>

namespace lathe::config {
namespace {

bool read_count(const YamlNode& node, int64_t& count) {
  return Codec<int64_t>::read(node, count) && count >= 1 && static_cast<double>(count) <= recipe::kMaxCount;
}

std::string flow_text(const YamlNode& node) {
  std::string text;
  switch (node.kind) {
    case YamlNode::Kind::Scalar:
      return node.quoted ? "\"" + node.text + "\"" : node.text;
    case YamlNode::Kind::Sequence:
      for (const YamlNode& item : node.items) text += (text.empty() ? "" : ", ") + flow_text(item);
      return "[" + text + "]";
    case YamlNode::Kind::Mapping:
      break;
  }
  for (const YamlNode::Member& member : node.members)
    text += (text.empty() ? "" : ", ") + write_string(member.key) + ": " + flow_text(member.value);
  return "{" + text + "}";
}

}  // namespace

bool Codec<recipe::Names>::read(const YamlNode& node, recipe::Names& names) {
  if (node.kind == YamlNode::Kind::Sequence)
    return Codec<std::vector<std::string>>::read(node, names.value.emplace<0>()) && !node.items.empty();
  return Codec<std::string>::read(node, names.value.emplace<1>());
}

std::string Codec<recipe::Names>::write(const recipe::Names& names) {
  if (const auto* text = std::get_if<std::string>(&names.value)) return write_string(*text);
  return Codec<std::vector<std::string>>::write(std::get<0>(names.value));
}

bool Codec<recipe::BatchSize>::read(const YamlNode& node, recipe::BatchSize& size) {
  if (is_plain(node) && node.text == "auto") {
    size.samples.reset();
    return true;
  }
  return read_count(node, size.samples.emplace());
}

std::string Codec<recipe::BatchSize>::write(const recipe::BatchSize& size) {
  return size.samples ? std::to_string(*size.samples) : "auto";
}

bool Codec<recipe::ImageSize>::read(const YamlNode& node, recipe::ImageSize& size) {
  if (node.kind == YamlNode::Kind::Sequence) {
    return node.items.size() == 2 && read_count(node.items[0], size.height) && read_count(node.items[1], size.width);
  }
  const bool ok = read_count(node, size.height);
  size.width = size.height;
  return ok;
}

std::string Codec<recipe::ImageSize>::write(const recipe::ImageSize& size) {
  return "[" + std::to_string(size.height) + ", " + std::to_string(size.width) + "]";
}

bool Codec<recipe::Checkpointing>::read(const YamlNode& node, recipe::Checkpointing& checkpointing) {
  using Kind = recipe::Checkpointing::Kind;
  if (is_plain(node)) {
    if (node.text != "none" && node.text != "elementwise" && node.text != "full") return false;
    checkpointing.kind = node.text == "none" ? Kind::None : node.text == "full" ? Kind::Full : Kind::Elementwise;
    return true;
  }
  if (!node.is_mapping() || node.members.size() != 1) return false;
  const auto& [key, line, column, value] = node.members.front();
  if (key == "budget") {
    checkpointing.kind = Kind::Budget;
    if (!Codec<std::string>::read(value, checkpointing.budget)) return false;
    const auto bytes = parse_bytes(checkpointing.budget);
    checkpointing.budget_bytes = bytes.value_or(0);
    return bytes.has_value();
  }
  if (key != "every" && key != "layers") return false;
  checkpointing.kind = key == "every" ? Kind::Every : Kind::Layers;
  return read_count(value, checkpointing.count);
}

std::string Codec<recipe::Checkpointing>::write(const recipe::Checkpointing& checkpointing) {
  switch (checkpointing.kind) {
    case recipe::Checkpointing::Kind::None:
      return "none";
    case recipe::Checkpointing::Kind::Elementwise:
      return "elementwise";
    case recipe::Checkpointing::Kind::Full:
      return "full";
    case recipe::Checkpointing::Kind::Every:
      return "{every: " + std::to_string(checkpointing.count) + "}";
    case recipe::Checkpointing::Kind::Layers:
      return "{layers: " + std::to_string(checkpointing.count) + "}";
    case recipe::Checkpointing::Kind::Budget:
      break;
  }
  return "{budget: " + write_string(checkpointing.budget) + "}";
}

bool Codec<recipe::Device>::read(const YamlNode& node, recipe::Device& device) {
  device.text = node.text;
  if (!is_plain(node)) return false;
  int64_t index = 0;
  return node.text == "auto" || node.text == "cpu" || node.text == "cuda" ||
         (node.text.starts_with("cuda:") && parse_integer(node.text.substr(5), index) && index >= 0 && index < 1024);
}

bool Codec<recipe::FreeMapping>::read(const YamlNode& node, recipe::FreeMapping& mapping) {
  mapping.text = flow_text(node);
  mapping.json = to_json(node);
  return node.is_mapping();
}

}  // namespace lathe::config
