#include "lathe/recipe/checks.h"

namespace lathe::recipe {

// What has not landed yet. A task that lands one deletes its line.
std::vector<Diagnostic> check_support(const Recipe& recipe, const std::string& file) {
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
  unsupported(model.task != Task::Classification, "model.task", "classification");
  unsupported(model.moe.has_value(), "model.moe", "none");
  unsupported(adapter.type == AdapterType::DoRA, "adapter.type", "lora, none");
  unsupported(adapter.init != AdapterInit::Default, "adapter.init", "default");
  unsupported(quant.type != QuantType::None && model.task != Task::Classification, "quant.type", "none for this task");
  const bool text_format =
      data.format == DataFormat::Auto || data.format == DataFormat::TextLabel || data.format == DataFormat::Tokens;
  unsupported(!text_format, "data.format", "auto, text_label, tokens");
  unsupported(data.packing, "data.packing", "false");
  unsupported(data.num_workers != 1, "data.num_workers", "1");
  unsupported(data.image.has_value(), "data.image", "none");
  unsupported(training.device.text.starts_with("cuda"), "training.device", "auto, cpu");
  return mistakes;
}

}  // namespace lathe::recipe
