#include "lathe/recipe/checks.h"

namespace lathe::recipe {

// What has not landed yet. A task that lands one deletes its line.
std::vector<Diagnostic> check_support(const Recipe& recipe, const std::string& file, Purpose purpose) {
  std::vector<Diagnostic> mistakes;
  const auto unsupported = [&](bool used, const std::string& key, const std::string& supported) {
    if (!used) return;
    Diagnostic diagnostic = recipe.at(key);
    if (diagnostic.line == 0 && diagnostic.file == "recipe") diagnostic.file = file;
    diagnostic.problem = "is not supported yet";
    diagnostic.hint = "supported: " + supported;
    mistakes.push_back(std::move(diagnostic));
  };
  const auto& [model, adapter, quant, data, optimizer, training, output, places] = recipe;
  // A plan reckons with decoders, and with every sample as long as the recipe allows: packed, or of whatever format.
  const bool runs = purpose == Purpose::Run;
  unsupported(runs && model.task == Task::CausalLm, "model.task", "classification, image_classification");
  unsupported(adapter.type == AdapterType::DoRA, "adapter.type", "lora, none");
  unsupported(adapter.init != AdapterInit::Default, "adapter.init", "default");
  const bool unread = data.format >= DataFormat::Messages && data.format <= DataFormat::Text;
  unsupported(runs && unread, "data.format", "auto, text_label, tokens, idx, image_folder, image_list");
  unsupported(runs && data.packing, "data.packing", "false");
  unsupported(training.device.text.starts_with("cuda"), "training.device", "auto, cpu");
  return mistakes;
}

}  // namespace lathe::recipe
