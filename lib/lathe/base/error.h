#pragma once

#include <stdexcept>
#include <string>
#include <vector>

namespace lathe {

/// What went wrong, as the command line's exit code tells it.
enum class ErrorKind {
  Run = 1,           ///< the run failed
  Config = 2,        ///< usage or recipe
  Data = 3,          ///< bad input file
  Resource = 4,      ///< not enough memory or disk
  Numeric = 5,       ///< non-finite numbers
  Internal = 70,     ///< our own bug; unreachable from input
  Interrupted = 75,  ///< stopped by a signal, state saved
};

/// One mistake at one place, printed as `FILE:LINE:COL: KEY: PROBLEM (HINT)`; empty or zero parts are left out.
/// `file` may be any place's name: a path, "override", "--option". `key` is a recipe key, a tensor or a JSON path.
struct Diagnostic {
  std::string file;
  int line = 0;    ///< 1-based; 0: unknown
  int column = 0;  ///< 1-based; 0: unknown
  std::string key;
  std::string problem;
  std::string hint;

  std::string to_string() const;

  /// The problem "expected X, got Y".
  static std::string expected(const std::string& expected, const std::string& got);
};

/// The only exception that the library throws on purpose (besides c10::ValueError from modules): a kind and one or more
/// diagnostics. what() has one line per diagnostic, without "error: ".
class Error : public std::runtime_error {
 public:
  Error(ErrorKind kind, Diagnostic diagnostic);
  /// Requires at least one diagnostic.
  Error(ErrorKind kind, std::vector<Diagnostic> diagnostics);

  ErrorKind kind() const { return kind_; }
  int exit_code() const { return static_cast<int>(kind_); }
  const std::vector<Diagnostic>& diagnostics() const { return diagnostics_; }

 private:
  ErrorKind kind_;
  std::vector<Diagnostic> diagnostics_;
};

/// A bad input file, as a whole: `FILE: PROBLEM (HINT)`.
Error data_error(const std::string& file, const std::string& problem, const std::string& hint = "");
/// A bad input file at a 1-based line.
Error data_error_at(const std::string& file, int line, const std::string& problem, const std::string& hint = "");
/// A bad tensor, or another named part, of an input file: `FILE: NAME: PROBLEM (HINT)`.
Error data_error_in(const std::string& file, const std::string& name, const std::string& problem,
                    const std::string& hint = "");

}  // namespace lathe
