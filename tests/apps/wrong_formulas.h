#pragma once

#include <set>
#include <string>

/// Formulas of component cost, and those of routing's balance, each of which can be made wrong for the code that is
/// linked with this file: CMake has the linker lead calls to them (--wrap) through the functions here. Code and library
/// stay as they are. Beside them the exam's clock, which stands (times are not judged), and the laboratory of routing
/// collapse, which gives what it found the first time.
namespace lathe::app::practice {

struct Formulas {
  std::set<std::string> called;  ///< by name, since it was last cleared
  std::string wrong;             ///< the one that gives 2 % too much; empty: all are right
};
Formulas& formulas();

}  // namespace lathe::app::practice
