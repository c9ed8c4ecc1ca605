#pragma once

#include <functional>
#include <string>
#include <vector>

#include "lathe/arch/arch.h"
#include "lathe/base/error.h"
#include "lathe/formats/adapter_directory.h"

namespace lathe::arch {

/// A linear layer that an adapter wraps, or a tensor of all experts, with its own rank and alpha.
struct Target {
  LinearSpec linear;
  int64_t rank;
  double alpha;
};

/// Who says what is a target, for messages: a recipe (Config) or an adapter's file (Data).
struct TargetsOrigin {
  ErrorKind kind;
  std::function<Diagnostic(const std::string& key)> at;  ///< the place of a key of adapter_config.json

  bool is_recipe() const { return kind == ErrorKind::Config; }
};

/// The adapter_config.json of `directory`.
TargetsOrigin origin_of_adapter(const std::string& directory);

/// The layers that `config` means among `linears`, in their order, then among `parameters` (tensors of all experts), by
/// PEFT's rules:
///   target_modules   a string matches whole paths (Python's re.fullmatch); a list matches a path that equals an item
///   or
///                    ends with "." + item; "all-linear": every layer but the head; absent: the family's default
///   exclude_modules  the same rule, tested first
///   target_parameters   a parameter that equals an item or ends with "." + item; its experts are then no layers
///   modules_to_save  and what is inside of them is never a target; with task_type SEQ_CLS the head is among them
///   rank_pattern, alpha_pattern   the first key whose `(.*\.)?(KEY)$` matches from the start of the path
/// Regular expressions are PCRE2's, which reads what Python's re reads, with limits on the work of a match.
/// Throws Error of the origin's kind when nothing matches, when a regular expression is malformed or runs too long,
/// and, for what a recipe says (in files PEFT itself lets it pass), when an item of target_modules or a pattern matches
/// nothing; always when one of target_parameters does.
std::vector<Target> match_targets(const std::vector<LinearSpec>& linears, const formats::AdapterConfig& config,
                                  const Arch& arch, const TargetsOrigin& origin,
                                  const std::vector<LinearSpec>& parameters = {});
/// The targets in a classifier, its experts included. Throws likewise, also for more experts than can be listed.
std::vector<Target> classifier_targets(const Arch& arch, int64_t num_labels, const formats::AdapterConfig& config,
                                       const TargetsOrigin& origin);

/// Whether `path` equals `name` or ends with "." + name.
bool matches_module_name(const std::string& path, const std::string& name);

/// Whether one of the names matches `path` or a module around it.
bool is_within_any(const std::string& path, const std::vector<std::string>& names);

}  // namespace lathe::arch
