#include "lathe/recipe/recipe.h"

#include <algorithm>
#include <filesystem>
#include <set>
#include <sstream>

#include "lathe/recipe/checks.h"
#include "lathe/recipe/fields.h"

namespace lathe::recipe {
namespace {

using config::ReadContext;
using config::YamlNode;

Recipe bind_recipe(const YamlNode& root, const std::string& base, Purpose purpose) {
  if (!root.is_mapping()) {
    throw Error(ErrorKind::Config,
                Diagnostic{root.file, root.line, root.column, "", Diagnostic::expected("a mapping", root.describe()),
                           "see lathe show --schema"});
  }
  Recipe recipe;
  ReadContext context;
  config::Reader reader(root, "", base, context);
  recipe.visit(reader);
  reader.finish();
  recipe.places = context.places;
  // What is malformed or missing is complained about once: not again for what follows from it.
  std::set<std::string> complained;
  for (const Diagnostic& mistake : context.mistakes) {
    complained.insert(mistake.key);
    // and the keys that hold the mistaken value, up to the section
    for (size_t end = mistake.key.find_last_of(".["); end != std::string::npos && end > mistake.key.find('.');
         end = mistake.key.find_last_of(".[", end - 1))
      complained.insert(mistake.key.substr(0, end));
  }
  const auto add_new = [&](std::vector<Diagnostic> mistakes) {
    for (Diagnostic& mistake : mistakes) {
      const std::string section = mistake.key.substr(0, mistake.key.find('.'));
      const bool follows =
          complained.contains(mistake.key) || complained.contains(section) || complained.contains(section + ".type");
      if (!follows) context.mistakes.push_back(std::move(mistake));
    }
  };
  std::vector<Diagnostic> bad_combinations = check_combinations(recipe, root.file);
  std::set<std::string> keys;
  for (const Diagnostic& mistake : bad_combinations) keys.insert(mistake.key);
  add_new(std::move(bad_combinations));
  complained.merge(keys);
  add_new(check_support(recipe, root.file, purpose));
  if (!context.mistakes.empty()) {
    std::stable_sort(context.mistakes.begin(), context.mistakes.end(), [](const Diagnostic& a, const Diagnostic& b) {
      return std::pair(a.line, a.column) < std::pair(b.line, b.column);
    });
    throw Error(ErrorKind::Config, std::move(context.mistakes));
  }
  return recipe;
}

// A key to remove must be one that recipes have, given or not.
void check_removed_key(const std::string& key) {
  YamlNode root;
  root.kind = YamlNode::Kind::Mapping;
  config::apply_override(root, key + "=");
  Recipe recipe;
  ReadContext context;
  config::Reader reader(root, "", "", context);
  recipe.visit(reader);
  reader.finish();
  for (const Diagnostic& mistake : context.mistakes) {
    if (mistake.problem == "unknown key") throw Error(ErrorKind::Config, mistake);
  }
}

void apply_overrides(YamlNode& root, const std::vector<std::string>& overrides) {
  for (const std::string& argument : overrides) {
    config::apply_override(root, argument);
    if (argument.starts_with('~')) check_removed_key(argument.substr(1));
  }
}

// "a.b" -> the text after "a:" / "b:" of the resolved document, per leaf line.
std::map<std::string, std::string> leaves(const Recipe& recipe) {
  std::map<std::string, std::string> found;
  std::istringstream lines(to_yaml(recipe));
  std::vector<std::string> path;
  for (std::string line; std::getline(lines, line);) {
    const size_t indent = line.find_first_not_of(' ');
    const size_t colon = line.find(':');
    path.resize(indent / 2);
    path.push_back(line.substr(indent, colon - indent));
    found[join(path, ".")] = line.substr(colon + 1);
  }
  return found;
}

}  // namespace

arch::MlpExperts Moe::over(arch::MlpExperts base) const {
  base.num_experts = num_experts.value_or(base.num_experts);
  base.top_k = top_k.value_or(base.top_k);
  base.router = router.value_or(base.router);
  base.renormalise = renormalise.value_or(base.renormalise);
  base.shared_experts = shared_experts.value_or(base.shared_experts);
  base.capacity_factor = capacity_factor.value_or(base.capacity_factor);
  base.aux_loss_weight = aux_loss_weight.value_or(base.aux_loss_weight);
  base.z_loss_weight = z_loss_weight.value_or(base.z_loss_weight);
  base.bias_update_rate = bias_update_rate.value_or(base.bias_update_rate);
  base.jitter = jitter.value_or(base.jitter);
  return base;
}

Diagnostic Recipe::at(const std::string& key) const {
  const auto found = places.find(key);
  if (found == places.end()) return {"recipe", 0, 0, key, "", ""};
  return {found->second.file, found->second.line, found->second.column, key, "", ""};
}

std::string Data::field(const std::string& name) const {
  for (const auto& [own, theirs] : fields) {
    if (own == name) return theirs;
  }
  return name;
}

Recipe parse(const std::string& text, const std::string& file, const std::string& base,
             const std::vector<std::string>& overrides, Purpose purpose) {
  YamlNode root = config::parse_yaml(text, file);
  apply_overrides(root, overrides);
  return bind_recipe(root, base, purpose);
}

Recipe load(const std::string& file_or_name, const std::vector<std::string>& overrides, Purpose purpose) {
  std::error_code unreadable;
  if (!std::filesystem::exists(file_or_name, unreadable)) {
    if (unreadable && unreadable != std::errc::no_such_file_or_directory) {
      throw Error(ErrorKind::Config,
                  Diagnostic{file_or_name, 0, 0, "", "cannot be opened: " + unreadable.message(), ""});
    }
    if (const ReadyRecipe* ready = find_ready_recipe(file_or_name))
      return parse(ready->text, file_or_name, "", overrides, purpose);
    std::vector<std::string> names;
    for (const ReadyRecipe& ready : ready_recipes()) names.push_back(ready.name);
    throw Error(ErrorKind::Config, Diagnostic{file_or_name, 0, 0, "", "no such file, and no ready recipe of that name",
                                              suggest(file_or_name, names)});
  }
  YamlNode root = config::read_yaml_file(file_or_name);
  apply_overrides(root, overrides);
  const std::string base = std::filesystem::absolute(file_or_name).parent_path().string();
  if (find_invalid_utf8(base) != std::string::npos)
    throw Error(ErrorKind::Config, Diagnostic{file_or_name, 0, 0, "", "is in a directory whose name is not UTF-8", ""});
  return bind_recipe(root, base, purpose);
}

std::string to_yaml(const Recipe& recipe) {
  Recipe copy = recipe;
  config::Writer writer;
  copy.visit(writer);
  return writer.text();
}

std::string schema() {
  Recipe recipe;
  config::SchemaPrinter printer;
  recipe.visit(printer);
  return printer.text();
}

std::vector<std::string> changed_keys(const Recipe& a, const Recipe& b) {
  const auto of_a = leaves(a), of_b = leaves(b);
  std::vector<std::string> changed;
  for (const auto& [key, value] : of_a) {
    const auto found = of_b.find(key);
    if (found == of_b.end() || found->second != value) changed.push_back(key);
  }
  for (const auto& [key, value] : of_b) {
    if (!of_a.contains(key)) changed.push_back(key);
  }
  return changed;
}

const ReadyRecipe* find_ready_recipe(const std::string& name) {
  const auto& all = ready_recipes();
  const auto found = std::find_if(all.begin(), all.end(), [&](const ReadyRecipe& ready) { return ready.name == name; });
  return found == all.end() ? nullptr : &*found;
}

}  // namespace lathe::recipe
