#pragma once

#include <string>
#include <vector>

#include "lathe/recipe/recipe.h"

namespace lathe::recipe {

/// The mistakes that no key has alone: combinations that exclude or require each other. `file` is the document's name.
std::vector<Diagnostic> check_combinations(const Recipe& recipe, const std::string& file);

/// One diagnostic for each key whose value Lathe knows but cannot do yet.
std::vector<Diagnostic> check_support(const Recipe& recipe, const std::string& file, Purpose purpose);

}  // namespace lathe::recipe
