#include "lathe/base/error.h"

#include <utility>

namespace lathe {
namespace {

std::string join_lines(const std::vector<Diagnostic>& diagnostics) {
  std::string text;
  for (const Diagnostic& diagnostic : diagnostics) {
    if (!text.empty()) text += '\n';
    text += diagnostic.to_string();
  }
  return text;
}

}  // namespace

std::string Diagnostic::to_string() const {
  std::string text = file;
  if (line > 0) text += ":" + std::to_string(line);
  if (line > 0 && column > 0) text += ":" + std::to_string(column);
  if (!key.empty()) text += (text.empty() ? "" : ": ") + key;
  text += (text.empty() ? "" : ": ") + problem;
  if (!hint.empty()) text += " (" + hint + ")";
  return text;
}

std::string Diagnostic::expected(const std::string& expected, const std::string& got) {
  return "expected " + expected + ", got " + got;
}

Error::Error(ErrorKind kind, Diagnostic diagnostic) : Error(kind, std::vector<Diagnostic>{std::move(diagnostic)}) {}

Error::Error(ErrorKind kind, std::vector<Diagnostic> diagnostics)
    : std::runtime_error(join_lines(diagnostics)), kind_(kind), diagnostics_(std::move(diagnostics)) {}

Error data_error(const std::string& file, const std::string& problem, const std::string& hint) {
  return data_error_in(file, "", problem, hint);
}

Error data_error_at(const std::string& file, int line, const std::string& problem, const std::string& hint) {
  Diagnostic diagnostic;
  diagnostic.file = file;
  diagnostic.line = line;
  diagnostic.problem = problem;
  diagnostic.hint = hint;
  return {ErrorKind::Data, std::move(diagnostic)};
}

Error data_error_in(const std::string& file, const std::string& name, const std::string& problem,
                    const std::string& hint) {
  Diagnostic diagnostic;
  diagnostic.file = file;
  diagnostic.key = name;
  diagnostic.problem = problem;
  diagnostic.hint = hint;
  return {ErrorKind::Data, std::move(diagnostic)};
}

}  // namespace lathe
