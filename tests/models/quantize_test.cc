#include "lathe/models/quantize.h"

#include <filesystem>

#include "expect_error.h"
#include "lathe/base/files.h"
#include "lathe/models/bert.h"
#include "lathe/models/load.h"
#include "lathe/models/quantize_directory.h"
#include "small_bert.h"

namespace lathe::models {
namespace {

using ::testing::ElementsAre;
using testing::error_text;
using testing::expect_identical;
using ::testing::HasSubstr;
using testing::TemporaryDirectory;

namespace fs = std::filesystem;

constexpr const char* kQuery = "bert.encoder.layer.1.attention.self.query.weight";

std::map<std::string, at::Tensor> tensors_of(const std::string& file) {
  const auto list = io::TensorFile(file).tensors();
  return {list.begin(), list.end()};
}

/// The small BERT, quantised into "four".
class QuantizeDirectory : public ::testing::Test {
 protected:
  QuantizeDirectory() : dense_(testing::write_small_bert(directory_)) {}

  std::string quantize(const std::string& from, const std::string& name, const nn::NF4LinearOptions& options,
                       const std::vector<std::string>& skip = {}) {
    const fs::path out = directory_ / name;
    fs::create_directories(out);
    done_ = quantize_directory(formats::ModelDirectory::open(from), options, skip, out);
    return out.string();
  }
  std::string weights(const std::string& name) const { return (directory_ / (name + "/model.safetensors")).string(); }

  // A classifier whose weights come from `path`, in four bits but for `skip`.
  std::shared_ptr<TextClassifier> load(const std::string& path, const std::vector<std::string>& skip = {}) {
    opened_.push_back(formats::ModelDirectory::open(path));
    const auto arch = arch::read_model_config(opened_.back().config_path()).arch;
    auto model = build_text_classifier(arch, 2);
    const auto match = arch::match_checkpoint(opened_.back(), arch, 2);
    quantize_stored_slots(*model, match, skip);
    load_weights(*model, match, 7);
    return model;
  }

  TemporaryDirectory directory_;
  std::string dense_;
  QuantizedDirectory done_;
  std::vector<formats::ModelDirectory> opened_;
};

const nn::NF4LinearOptions kNested = nn::NF4LinearOptions().blocksize(32).double_quant(true);

TEST_F(QuantizeDirectory, KeepsEverythingButTheLinearWeights) {
  quantize(dense_, "four", kNested, {"pooler", "layer.2.output.dense"});
  EXPECT_EQ(done_.num_weights, 17);
  const auto before = tensors_of(weights("model")), after = tensors_of(weights("four"));
  for (const auto& [name, tensor] : before) {
    if (after.contains(name + ".absmax")) continue;
    expect_identical(after.at(name), tensor);
  }
  for (const char* name : {"bert.pooler.dense.weight", "bert.encoder.layer.2.output.dense.weight"})
    EXPECT_FALSE(after.contains(std::string(name) + ".absmax")) << name;
  EXPECT_TRUE(after.contains("bert.encoder.layer.2.attention.output.dense.weight.nested_absmax"));
  EXPECT_TRUE(fs::exists(directory_ / "four/tokenizer.json"));
  const Json config = read_json_file((directory_ / "four/config.json").string());
  EXPECT_EQ(config["hidden_size"], 16);
  EXPECT_EQ(config["quantization_config"]["bnb_4bit_use_double_quant"], true);
  EXPECT_THAT(config["quantization_config"]["llm_int8_skip_modules"],
              ElementsAre("encoder.layer.2.output.dense", "layer.2.output.dense", "pooler", "pooler.dense"));
}

TEST_F(QuantizeDirectory, WritesWhatQuantisingWhileLoadingHolds) {
  for (const auto& options : {nn::NF4LinearOptions(), kNested, nn::NF4LinearOptions().type(quant::QuantType::FP4)}) {
    fs::remove_all(directory_ / "four");
    const auto stored = load(quantize(dense_, "four", options));
    const auto model = formats::ModelDirectory::open(dense_);
    const auto arch = arch::read_model_config(model.config_path()).arch;
    const auto on_the_fly = build_text_classifier(arch, 2);
    quantize_slots(*on_the_fly, options, {"classifier"});
    load_weights(*on_the_fly, arch::match_checkpoint(model, arch, 2), 7);
    const auto buffers = on_the_fly->named_buffers();
    ASSERT_EQ(buffers.size(), stored->named_buffers().size());
    for (const auto& item : stored->named_buffers()) expect_identical(item.value(), buffers[item.key()]);
    const TokenBatch batch = pack_tokens({{2, 5, 9, 11, 3}}, {{0, 0, 0, 0, 0}});
    expect_identical(stored->forward(batch, {}), on_the_fly->forward(batch, {}));
  }
}

TEST_F(QuantizeDirectory, CopiesWhatIsInFourBitsByteForByte) {
  quantize(quantize(dense_, "four", kNested, {"classifier"}), "again", kNested, {"classifier"});
  EXPECT_EQ(done_.num_weights, 0);
  EXPECT_EQ(done_.num_kept, 19);
  for (const char* name : {"/model.safetensors", "/config.json"})
    EXPECT_EQ(read_file(directory_ / (std::string("again") + name), 1 << 24),
              read_file(directory_ / (std::string("four") + name), 1 << 24));
  const std::string four = (directory_ / "four").string();
  EXPECT_THAT(error_text(ErrorKind::Data, [&] { quantize(four, "x", nn::NF4LinearOptions()); }),
              HasSubstr("is in four bits already: nf4, blocks of 32, scales quantised (ask for the same"));
}

// Once in use, forward and backward, the layers still hold the file's bytes.
TEST_F(QuantizeDirectory, LeavesTheStoredBytesAlone) {
  const auto model = load(quantize(dense_, "four", kNested));
  model->forward(pack_tokens({{2, 5, 9, 11, 3}}, {{0, 0, 0, 0, 0}}), {}).sum();
  auto before = tensors_of(weights("four"));
  int64_t compared = 0;
  for (const nn::NamedSlot& named : nn::named_slots(*model)) {
    const auto* layer = dynamic_cast<const nn::NF4LinearImpl*>(named.slot->module().get());
    if (layer == nullptr) continue;
    for (const auto& [name, tensor] : four_bit_tensors(named.path + ".weight", *layer)) {
      expect_identical(tensor, before.at(name));
      ++compared;
    }
  }
  EXPECT_EQ(compared, 19 * 6);
}

TEST_F(QuantizeDirectory, DecodesAWeightThatStaysDense) {
  const std::string four = quantize(dense_, "four", kNested);
  const auto quantised = load(four), decoded = load(four, {"layer.1.attention.self.query"});
  const auto slot = [](const auto& model) {
    for (const nn::NamedSlot& named : nn::named_slots(*model)) {
      if (named.path + ".weight" == kQuery) return named.slot->module();
    }
    return std::shared_ptr<nn::LinearBase>();
  };
  EXPECT_NE(dynamic_cast<nn::LinearImpl*>(slot(decoded).get()), nullptr);
  expect_identical(slot(decoded)->dense_weight(), slot(quantised)->dense_weight());
}

TEST_F(QuantizeDirectory, RefusesAScaleThatIsNotFinite) {
  const std::string four = quantize(dense_, "four", kNested);
  for (const std::string part : {".nested_absmax", ".quant_map", ".nested_quant_map"}) {
    const std::string name = kQuery + part;
    auto tensors = io::TensorFile(weights("four")).tensors();
    for (auto& [key, tensor] : tensors) {
      tensor = tensor.clone();
      if (key == name) tensor[0] = NAN;
    }
    const std::string broken = (directory_ / "broken").string();
    fs::create_directories(broken);
    io::write_safetensors(broken + "/model.safetensors", tensors);
    fs::copy_file(four + "/config.json", broken + "/config.json", fs::copy_options::overwrite_existing);
    EXPECT_THAT(error_text(ErrorKind::Data, [&] { load(broken); }),
                HasSubstr(name + ": has a value that is not finite"));
  }
}

TEST_F(QuantizeDirectory, RefusesAFamilyThatItDoesNotKnow) {
  directory_.write("model/config.json", R"({"model_type": "t5"})");
  EXPECT_THAT(error_text(ErrorKind::Data, [&] { quantize(dense_, "four", kNested); }),
              HasSubstr("model_type: \"t5\" is not supported in four bits (supported: bert, llama, mistral"));
}

/// A decoder's tensors in two shards.
TEST_F(QuantizeDirectory, GoesThroughADecoderShardByShard) {
  const fs::path from = directory_ / "llama";
  fs::create_directories(from);
  const auto ramp = [](int64_t rows, int64_t columns) { return testing::ramp({rows, columns}).to(at::kBFloat16); };
  io::write_safetensors(
      from / "model-00001-of-00002.safetensors",
      {{"model.embed_tokens.weight", ramp(30, 8)}, {"model.layers.0.self_attn.q_proj.weight", ramp(8, 8)}});
  io::write_safetensors(from / "model-00002-of-00002.safetensors",
                        {{"model.layers.0.mlp.down_proj.weight", ramp(8, 20)}, {"lm_head.weight", ramp(30, 8)}});
  directory_.write("llama/config.json", R"({"model_type": "llama"})");
  Json map = Json::object();
  for (const char* name : {"model.embed_tokens.weight", "model.layers.0.self_attn.q_proj.weight"})
    map[name] = "model-00001-of-00002.safetensors";
  for (const char* name : {"model.layers.0.mlp.down_proj.weight", "lm_head.weight"})
    map[name] = "model-00002-of-00002.safetensors";
  directory_.write("llama/model.safetensors.index.json", Json{{"weight_map", map}}.dump());
  const std::string four = quantize(from.string(), "four", kNested, {"lm_head"});
  const auto model = formats::ModelDirectory::open(four);
  ASSERT_EQ(model.four_bit_weights().size(), 2U);
  EXPECT_EQ(model.four_bit_weights()[0].state.dtype, formats::Dtype::BF16);
  EXPECT_EQ(model.shape_of("model.layers.0.mlp.down_proj.weight"), (std::vector<int64_t>{8, 20}));
  EXPECT_EQ(model.find_four_bit("lm_head.weight"), nullptr);
  EXPECT_EQ(fs::path(model.find("lm_head.weight")->file).filename(), "model-00002-of-00002.safetensors");
  const Json index = read_json_file((directory_ / "four/model.safetensors.index.json").string());
  EXPECT_EQ(index["metadata"]["total_size"], done_.bytes_after);
}

}  // namespace
}  // namespace lathe::models
