#pragma once

#include <string>
#include <vector>

#include "lathe/arch/arch.h"
#include "lathe/base/error.h"
#include "lathe/formats/adapter_directory.h"

namespace lathe::arch {

/// A linear layer that an adapter wraps, with its own rank and alpha.
struct Target {
  LinearSpec linear;
  int64_t rank;
  double alpha;
};

/// The layers that `config` means among `linears`, in their order, by PEFT's rules:
///   target_modules   a string matches whole paths (Python's re.fullmatch); a list matches a path that equals an item
///   or
///                    ends with "." + item; "all-linear": every layer but the head; absent: the family's default
///   exclude_modules  the same rule, tested first
///   modules_to_save  and what is inside of them is never a target; with task_type SEQ_CLS the head is among them
///   rank_pattern, alpha_pattern   the first key whose `(.*\.)?(KEY)$` matches from the start of the path
/// Regular expressions are PCRE2's, which reads what Python's re reads, with limits on the work of a match.
/// Throws Error{Config} with `place` when nothing matches, when a regular expression is malformed or runs too long,
/// and, with `every_name` (for what a user wrote: PEFT itself lets it pass), when an item of target_modules matches
/// nothing.
std::vector<Target> match_targets(const std::vector<LinearSpec>& linears, const formats::AdapterConfig& config,
                                  const Arch& arch, const Diagnostic& place, bool every_name);

/// Whether `path` equals `name` or ends with "." + name.
bool matches_module_name(const std::string& path, const std::string& name);

/// Whether one of the names matches `path` or a module around it.
bool is_within_any(const std::string& path, const std::vector<std::string>& names);

}  // namespace lathe::arch
