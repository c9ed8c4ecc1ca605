#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

namespace lathe::app {

/// What the user asked for: one verb and its options. Both programs parse the same words.
struct CommandLine {
  std::string verb;
  std::string recipe;  ///< a recipe, a run directory, a path, a question or a name: the verb's first word
  std::vector<std::string> overrides;  ///< key=value, ~key
  std::string destination;             ///< cp
  std::vector<std::string> runs;       ///< report
  std::string model, adapter;
  std::optional<std::string> text;
  std::string ids, jsonl, pixels, out;
  std::vector<std::string> images;
  std::string compute = "float32";
  std::string quant_type;
  int64_t experts = 8, top_k = 2;
  int64_t blocksize = 64;
  bool double_quant = false;
  bool requantize = false;
  std::vector<std::string> skip_modules = {"classifier", "score", "lm_head", "head"};
  bool resume = false;
  int64_t profile_steps = 0;
  bool data = false;
  bool json = false;
  bool measure = false;
  bool schema = false;
  bool truncate = false;
  bool decode = false;
  bool no_special = false;
  bool full = false;
  std::string variant;
  bool debug = false;
};

/// Parses argv. Prints help (exit code 0) or a usage error (2) and returns that code; nothing when there is a verb to
/// run.
std::optional<int> parse_command_line(int argc, char** argv, CommandLine& line);

/// Whether the verb is run by lathe-torch.
bool needs_torch(const std::string& verb);

}  // namespace lathe::app
