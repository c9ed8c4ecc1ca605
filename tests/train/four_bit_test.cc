// Training on a checkpoint that is in four bits already.
#include <cmath>
#include <filesystem>

#include "expect_error.h"
#include "lathe/models/quantize.h"
#include "lathe/models/quantize_directory.h"
#include "lathe/train/save.h"
#include "small_bert.h"
#include "train/run_fixture.h"

namespace lathe::train {
namespace {

using testing::error_text;
using ::testing::HasSubstr;

namespace fs = std::filesystem;

/// The small BERT, dense in "model" and quantised in "four", and a recipe for both.
class FourBitTraining : public RunFixture {
 protected:
  FourBitTraining() {
    const auto dense = formats::ModelDirectory::open(testing::write_small_bert(directory_));
    fs::create_directories(directory_ / "four");
    models::quantize_directory(dense, nn::NF4LinearOptions().double_quant(true), {"classifier"}, directory_ / "four");
    directory_.write("train.jsonl",
                     "{\"text\": \"a b c\", \"label\": \"no\"}\n{\"text\": \"x y z q\", \"label\": \"yes\"}\n");
    directory_.write("recipe.yaml", R"(
model: {path: four, task: classification}
adapter: {type: lora, rank: 2, alpha: 4, target_modules: [query, value]}
data: {train: train.jsonl, eval: train.jsonl}
optimizer: {lr: 0.01}
training: {max_steps: 4, batch_size: 2, seed: 3}
output: {dir: placeholder}
)");
  }

  std::string refusal(ErrorKind kind, const std::vector<std::string>& overrides) {
    return error_text(kind, [&] { train("refused", overrides); });
  }
  const std::string dense_path_ = "model.path=" + (directory_ / "model").string();
};

TEST_F(FourBitTraining, GivesTheBitsOfQuantisingWhileLoading) {
  train("stored");
  train("repeated", {"quant={type: nf4, double_quant: true}"});
  train("loaded", {dense_path_, "quant={type: nf4, double_quant: true}"});
  train("dense", {dense_path_});
  EXPECT_TRUE(adapter_bytes("stored") == adapter_bytes("loaded"));
  EXPECT_TRUE(adapter_bytes("stored") == adapter_bytes("repeated"));
  EXPECT_FALSE(adapter_bytes("stored") == adapter_bytes("dense"));
}

TEST_F(FourBitTraining, LeavesTheCheckpointAsItIs) {
  const std::string before = read_file(directory_ / "four/model.safetensors", 1 << 24);
  train("run");
  EXPECT_TRUE(read_file(directory_ / "four/model.safetensors", 1 << 24) == before);
}

TEST_F(FourBitTraining, MergesIntoTheDecodedBase) {
  train("run", {"output.merged=true"});
  const std::vector<text::Encoding> encodings = {{{2, 5, 9, 3}, {0, 0, 0, 0}, false}};
  const Classifier adapted = load_classifier((directory_ / "four").string(), (directory_ / "run/adapter").string());
  const Classifier merged = load_classifier((directory_ / "run/model").string(), "");
  // Two orders of the same sums.
  testing::expect_close(predict_logits(merged, encodings), predict_logits(adapted, encodings), 1e-5, 1e-6);
  EXPECT_FALSE(read_json_file((directory_ / "run/model/config.json").string()).contains("quantization_config"));
}

TEST_F(FourBitTraining, RequantisesOnDemandAndTellsTheLoss) {
  train("run");
  const Classifier adapted = load_classifier((directory_ / "four").string(), (directory_ / "run/adapter").string());
  fs::create_directories(directory_ / "again");
  const double lost = save_requantised(adapted, (directory_ / "again").string());
  const auto before = formats::ModelDirectory::open((directory_ / "four").string());
  const auto after = formats::ModelDirectory::open((directory_ / "again").string());
  EXPECT_EQ(after.four_bit_weights().size(), before.four_bit_weights().size());
  // The same by the weights of the written files.
  double missed = 0, update = 0;
  io::ModelTensors files;
  for (const auto& [path, layer] : adapters::lora_layers(*adapted.model)) {
    const Tensor base = models::stored_layer(*before.find_four_bit(path + ".weight"), files)->dense_weight();
    const Tensor now = models::stored_layer(*after.find_four_bit(path + ".weight"), files)->dense_weight();
    missed += (now - base - layer->update()).to(at::kDouble).square().sum().item<double>();
    update += layer->update().to(at::kDouble).square().sum().item<double>();
  }
  EXPECT_NEAR(lost, std::sqrt(missed / update), 1e-4);
  EXPECT_GT(lost, 0.05);
  EXPECT_EQ(load_classifier((directory_ / "again").string(), "").labels, (std::vector<std::string>{"no", "yes"}));
}

TEST_F(FourBitTraining, TrainsAHeadThatIsInFourBits) {
  train("run", {"output.merged=true"});
  fs::create_directories(directory_ / "whole");
  models::quantize_directory(formats::ModelDirectory::open((directory_ / "run/model").string()), {}, {},
                             directory_ / "whole");
  ASSERT_NE(formats::ModelDirectory::open((directory_ / "whole").string()).find_four_bit("classifier.weight"), nullptr);
  train("on", {"model.path=" + (directory_ / "whole").string()});
  const Classifier adapted = load_classifier((directory_ / "whole").string(), (directory_ / "on/adapter").string());
  EXPECT_EQ(adapted.labels, (std::vector<std::string>{"no", "yes"}));
}

TEST_F(FourBitTraining, RefusesARecipeThatDoesNotFit) {
  EXPECT_THAT(refusal(ErrorKind::Config, {"adapter={type: none}"}),
              HasSubstr("adapter.type: none needs dense weights: the checkpoint is in four bits"));
  for (const char* quant : {"quant={type: fp4, double_quant: true}", "quant={type: nf4}",
                            "quant={type: nf4, double_quant: true, blocksize: 128}"}) {
    EXPECT_THAT(refusal(ErrorKind::Config, {quant}),
                HasSubstr("quant.type: differs from the checkpoint, which is in four bits already"));
  }
}

}  // namespace
}  // namespace lathe::train
