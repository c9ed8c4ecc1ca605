#pragma once

#include <functional>
#include <string>
#include <vector>

#include "lathe/base/error.h"

namespace lathe::app {

/// Results go to stdout; everything else to stderr, with control characters escaped.
void print_result(const std::string& text);
void print_error(const std::string& message);
void print_warning(const std::string& message);
void print_note(const std::string& message);

bool stderr_is_terminal();
/// Columns of the terminal; 0: unknown.
size_t stderr_width();

/// Opens /dev/null where a standard descriptor is closed, so that no file of a run takes its number; a write beyond the
/// limit of a file's size fails, as on a full disk, and does not kill.
void prepare_process();

/// Throws Error{Config} when there is something at `path` that an output would replace.
void require_absent(const std::string& path);

/// The same, but what is empty may be replaced, and what is such an output: it has the extension, and `mark` among its
/// first bytes.
void require_replaceable(const std::string& path, const std::string& extension, const std::string& mark = "");

/// Throws Error{Config} when writing `path` would replace one of the inputs: a file, or one in a directory.
void require_no_input(const std::string& path, const std::vector<std::string>& inputs);

/// Throws Error{Config} unless a file can be written to `path`, or replaced there: to be asked before a long run.
void require_writable(const std::string& path);

/// Prints one "error: ..." line per diagnostic, of many the first, and returns the exit code.
int report(const Error& error);

/// Runs `action` and turns what it throws into lines on stderr and an exit code. `other` may handle further kinds of
/// exception: it returns a code, or -1 for "not mine".
int run_reporting(const std::function<int()>& action, const std::function<int(const std::exception&)>& other = {});

}  // namespace lathe::app
