# cmake -DDIRECTORY=<recipes> -DOUTPUT=<file.cc> -P EmbedRecipes.cmake: the ready recipes as one C++ source.
file(GLOB_RECURSE files RELATIVE "${DIRECTORY}" "${DIRECTORY}/*.yaml")
list(SORT files)
set(rows "")
foreach(file IN LISTS files)
  file(READ "${DIRECTORY}/${file}" text)
  string(REGEX MATCH "^# ([^\n]*)" unused "${text}")
  set(purpose "${CMAKE_MATCH_1}")
  string(REGEX REPLACE "\\.yaml$" "" name "${file}")
  string(APPEND rows "      {\"${name}\", R\"~~(${purpose})~~\", R\"~~(${text})~~\"},\n")
endforeach()
file(WRITE "${OUTPUT}.new" "// Generated from recipes/ by cmake/EmbedRecipes.cmake.
#include \"lathe/recipe/recipe.h\"

namespace lathe::recipe {

const std::vector<ReadyRecipe>& ready_recipes() {
  static const std::vector<ReadyRecipe> recipes = {
${rows}  };
  return recipes;
}

}  // namespace lathe::recipe
")
file(COPY_FILE "${OUTPUT}.new" "${OUTPUT}" ONLY_IF_DIFFERENT)
