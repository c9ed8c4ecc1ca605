#include "lathe/models/quantize_directory.h"

#include <algorithm>
#include <set>
#include <utility>

#include "lathe/arch/linear_weights.h"
#include "lathe/arch/targets.h"
#include "lathe/base/error.h"
#include "lathe/base/files.h"
#include "lathe/models/load.h"
#include "lathe/models/quantize.h"

namespace lathe::models {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kWeight = ".weight";

std::string module_of(const std::string& weight) { return weight.substr(0, weight.size() - kWeight.size()); }

class DirectoryQuantizer {
 public:
  DirectoryQuantizer(const formats::ModelDirectory& model, const nn::NF4LinearOptions& options,
                     const std::vector<std::string>& skip, const fs::path& out)
      : model_(model), options_(options), skip_(skip), out_(out), linears_(arch::linear_weights(model)) {
    check_stored();
  }

  QuantizedDirectory run() {
    Json weight_map = Json::object();
    const auto& tensors = model_.tensors();
    for (size_t first = 0, last = 0; first < tensors.size(); first = last) {
      while (last < tensors.size() && tensors[last].file == tensors[first].file) ++last;
      write_file({tensors.begin() + static_cast<ptrdiff_t>(first), tensors.begin() + static_cast<ptrdiff_t>(last)},
                 weight_map);
    }
    if (model_.weights_path().ends_with(".json")) {
      const Json index = {{"metadata", {{"total_size", result_.bytes_after}}}, {"weight_map", std::move(weight_map)}};
      write_file_atomically(out_ / fs::path(model_.weights_path()).filename(), index.dump(2) + "\n");
    }
    write_config();
    formats::copy_companions(model_.path(), out_);
    return result_;
  }

 private:
  void check_stored() const {
    for (const formats::FourBitWeight& weight : model_.four_bit_weights()) {
      const formats::FourBitState& state = weight.state;
      if (state.quant_type == quant::quant_type_name(options_.type()) && state.blocksize == options_.blocksize() &&
          state.nested == options_.double_quant())
        continue;
      throw data_error_in(weight.weight.file, formats::tensor_label(weight.weight.info.name),
                          "is in four bits already: " + state.quant_type + ", blocks of " +
                              std::to_string(state.blocksize) + (state.nested ? ", scales quantised" : ""),
                          "ask for the same, or start from the dense model");
    }
  }

  bool is_quantised(const formats::TensorLocation& tensor) const {
    return linears_.contains(tensor.info.name) && model_.find_four_bit(tensor.info.name) == nullptr &&
           !arch::is_within_any(module_of(tensor.info.name), skip_);
  }

  void write_file(const std::vector<formats::TensorLocation>& locations, Json& weight_map) {
    io::ModelTensors files;
    io::NamedTensors written;
    for (const formats::TensorLocation& location : locations) {
      const std::string& name = location.info.name;
      result_.bytes_before += location.info.num_bytes();
      if (is_quantised(location)) {
        for (auto& part : quantised(location, files)) written.push_back(std::move(part));
        continue;
      }
      if (model_.find_four_bit(name) != nullptr) ++result_.num_kept;
      if (linears_.contains(name) && model_.find_four_bit(name) == nullptr) dense_.insert(module_of(name));
      written.emplace_back(name, files.tensor(location));
    }
    const std::string file = fs::path(locations.front().file).filename();
    for (const auto& [name, tensor] : written) {
      weight_map[name] = file;
      result_.bytes_after += tensor.nbytes();
    }
    io::write_safetensors(out_ / file, written);
  }

  io::NamedTensors quantised(const formats::TensorLocation& location, io::ModelTensors& files) {
    const std::vector<int64_t>& shape = location.info.shape;
    if (shape.size() != 2)
      throw data_error_in(location.file, formats::tensor_label(location.info.name),
                          Diagnostic::expected("two sizes", formats::shape_text(shape)));
    nn::NF4Linear layer(shape[1], shape[0], /*bias=*/false, options_);
    quantize_from_file(*layer, location, files);
    ++result_.num_weights;
    last_ = four_bit_state(*layer);
    return four_bit_tensors(location.info.name, *layer);
  }

  void write_config() const {
    Json config = read_json_file(model_.config_path());
    if (!model_.four_bit_weights().empty() && result_.num_weights == 0) {
      write_file_atomically(out_ / "config.json", config.dump(2) + "\n");
      return;
    }
    // transformers compares with the paths of its own class by their ends; a file may have its prefix or not.
    std::set<std::string> skip(skip_.begin(), skip_.end());
    for (std::string path : dense_) {
      for (const std::string_view prefix : {"bert.", "model."}) {
        if (path.starts_with(prefix)) path.erase(0, prefix.size());
      }
      skip.insert(path);
    }
    config["quantization_config"] = formats::quantization_config(last_, {skip.begin(), skip.end()});
    write_file_atomically(out_ / "config.json", config.dump(2) + "\n");
  }

  const formats::ModelDirectory& model_;
  const nn::NF4LinearOptions& options_;
  const std::vector<std::string>& skip_;
  const fs::path& out_;
  std::set<std::string> linears_, dense_;
  formats::FourBitState last_;
  QuantizedDirectory result_;
};

}  // namespace

QuantizedDirectory quantize_directory(const formats::ModelDirectory& model, const nn::NF4LinearOptions& options,
                                      const std::vector<std::string>& skip, const fs::path& out) {
  return DirectoryQuantizer(model, options, skip, out).run();
}

}  // namespace lathe::models
