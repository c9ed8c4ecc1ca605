#include "expect_error.h"
#include "lathe/base/files.h"
#include "lathe/data/mixup.h"
#include "lathe/train/classifier_task.h"
#include "lathe/train/evaluate.h"
#include "tensor_expect.h"
#include "train/run_fixture.h"

namespace lathe::train {
namespace {

using testing::error_text;
using testing::expect_close;
using testing::expect_identical;
using ::testing::HasSubstr;

namespace fs = std::filesystem;

constexpr int kSamples = 30, kSide = 8;

// Pictures of three kinds: bright above, bright below, bright on the left.
void write_pictures(const testing::TemporaryDirectory& directory) {
  std::string images = {0, 0, 8, 3, 0, 0, 0, kSamples, 0, 0, 0, kSide, 0, 0, 0, kSide};
  std::string labels = {0, 0, 8, 1, 0, 0, 0, kSamples};
  for (int i = 0; i < kSamples; ++i) {
    labels += static_cast<char>(i % 3);
    for (int y = 0; y < kSide; ++y) {
      for (int x = 0; x < kSide; ++x) {
        const bool bright = i % 3 == 0 ? y < kSide / 2 : i % 3 == 1 ? y >= kSide / 2 : x < kSide / 2;
        images += static_cast<char>((bright ? 150 : 20) + (i * 13 + y * 7 + x * 5) % 60);
      }
    }
  }
  directory.write("train-images-idx3-ubyte", images);
  directory.write("train-labels-idx1-ubyte", labels);
}

class ImageTaskTest : public RunFixture {
 protected:
  ImageTaskTest() {
    write_pictures(directory_);
    directory_.write("recipe.yaml", R"(
model:
  task: image_classification
  init: random
  arch: {model_type: mixer, image_size: 8, num_channels: 1, patch_size: 4, num_blocks: 2, hidden_size: 12}
adapter: {type: none}
data:
  train: train-images-idx3-ubyte
  eval: train-images-idx3-ubyte
  labels: [above, below, left]
  label_smoothing: 0.1
  image: {mean: [0.4], std: [0.3], augment: [flip, crop, mixup]}
optimizer: {lr: 0.01, schedule: constant}
training: {max_steps: 9, batch_size: 4, gradient_accumulation_steps: 2, seed: 3, checkpoint_every_steps: 4}
output: {dir: placeholder}
)");
  }

  Evaluation evaluate_run(const std::string& run) const {
    const Classifier classifier = load_classifier((directory_ / (run + "/model")).string(), "");
    const recipe::Recipe r = recipe(run);
    return evaluate(classifier, data::open_image_evaluation(r, classifier.arch, *classifier.image, classifier.labels),
                    7, {});
  }
};

TEST_F(ImageTaskTest, BitsDoNotDependOnTheThreadsThatPrepare) {
  train("one");
  for (const int workers : {0, 3}) {
    const std::string run = "workers" + std::to_string(workers);
    train(run, {"data.num_workers=" + std::to_string(workers)});
    EXPECT_EQ(metrics(run), metrics("one"));
    EXPECT_EQ(model_bytes(run), model_bytes("one"));
  }
  train("other", {"training.seed=4"});
  EXPECT_NE(model_bytes("other"), model_bytes("one"));
}

TEST_F(ImageTaskTest, ResumesToTheSameBits) {
  train("straight");
  for (const int workers : {0, 2}) {
    fs::remove_all(directory_ / "cut");
    // The same run, cut back to its checkpoint before the last.
    train("cut", {"data.num_workers=" + std::to_string(workers)});
    fs::remove_all(directory_ / "cut/model");
    fs::remove(directory_ / "cut/evaluation.json");
    fs::remove_all(directory_ / "cut/checkpoints/step-9");
    ASSERT_TRUE(fs::exists(directory_ / "cut/checkpoints/step-8"));
    train("cut", {"data.num_workers=" + std::to_string(workers)}, /*resume=*/true);
    EXPECT_EQ(metrics("cut"), metrics("straight"));
    EXPECT_EQ(model_bytes("cut"), model_bytes("straight"));
    EXPECT_EQ(read_file(directory_ / "cut/evaluation.json", 1 << 20),
              read_file(directory_ / "straight/evaluation.json", 1 << 20));
  }
}

TEST_F(ImageTaskTest, LearnsAndPublishesWhatItMeasured) {
  train("run", {"training.max_steps=60", "data.image.augment=[]", "training.checkpoint_every_steps=0"});
  const Json last = metrics("run").back();
  EXPECT_EQ(last["accuracy"], 1.0);
  const Evaluation again = evaluate_run("run");
  EXPECT_NEAR(again.eval_loss, last["eval_loss"].get<double>(), 1e-6) << "other batches: other sums";
  const Json json = Json::parse(read_file(directory_ / "run/evaluation.json", 1 << 20));
  EXPECT_EQ(json["step"], 60);
  EXPECT_EQ(json["labels"], Json({"above", "below", "left"}));
  EXPECT_EQ(json["confusion"], Json({{10, 0, 0}, {0, 10, 0}, {0, 0, 10}}));
  EXPECT_EQ(json["worst"], Json::array());
}

TEST_F(ImageTaskTest, MistakesAreShownWithTheirPictures) {
  train("run", {"training.max_steps=1", "optimizer.lr=1e-9"});
  const Json json = Json::parse(read_file(directory_ / "run/evaluation.json", 1 << 20));
  const double accuracy = metrics("run").back()["accuracy"].get<double>();
  ASSERT_EQ(json["worst"].size(), static_cast<size_t>(std::lround(kSamples * (1 - accuracy))));
  ASSERT_GT(json["worst"].size(), 0u);
  const Json& worst = json["worst"][0];
  EXPECT_THAT(worst["place"].get<std::string>(), HasSubstr("train-images-idx3-ubyte: image "));
  EXPECT_TRUE(worst["picture"].get<std::string>().starts_with("iVBORw0KGgo")) << "the first bytes of a PNG";
  EXPECT_NE(worst["truth"], worst["predicted"]);
  EXPECT_NEAR(worst["truth_probability"].get<double>(), 1.0 / 3, 1e-3);
}

TEST_F(ImageTaskTest, MixupWeighsBothLosses) {
  const recipe::Recipe mixed = recipe("mixed", {"data.image.augment=[mixup]"}),
                       plain = recipe("plain", {"~data.image.augment"});
  const auto task = open_classifier_task(mixed);
  const recipe::ResolvedModel resolved = recipe::resolve_model(plain);
  const auto data = data::open_image_classification(plain, resolved);
  const Classifier classifier = build_classifier(plain, resolved, data.train.label_names());
  for (const auto& side : {&task->model(), static_cast<torch::nn::Module*>(classifier.model.get())}) {
    const at::NoGradGuard no_grad;
    for (Tensor& parameter : side->parameters()) parameter.copy_(testing::ramp(parameter.sizes(), 0.9).mul(0.3));
  }
  const std::vector<int64_t> samples = {4, 0, 17, 23, 11};
  const uint64_t key = 99;
  std::vector<image::Picture> pictures;
  std::vector<int64_t> labels;
  for (const int64_t sample : samples) {
    pictures.push_back(data.train.picture(sample));
    labels.push_back(data.train.label(sample));
  }
  const data::Mixup mixup = data::draw_mixup(0.2, 5, key);
  const Tensor pixels = make_pixels(pictures, data.preprocess), truth = at::tensor(labels, at::kLong),
               partners = at::tensor(mixup.partners, at::kLong);
  const Tensor logits =
      classifier.images().forward(mixup.weight * pixels + (1 - mixup.weight) * pixels.index_select(0, partners), {});
  const auto options = torch::nn::functional::CrossEntropyFuncOptions().reduction(torch::kSum).label_smoothing(0.1);
  const Tensor expected =
      mixup.weight * torch::nn::functional::cross_entropy(logits, truth, options) +
      (1 - mixup.weight) * torch::nn::functional::cross_entropy(logits, truth.index_select(0, partners), options);
  nn::Pass pass;
  pass.training = true;
  pass.key = key;
  const Task::BatchLoss loss = task->loss(samples, pass);
  expect_close(loss.sum, expected, 1e-6, 0);  // a sum of five terms of order 1, in other order
  EXPECT_EQ(loss.tokens, 5 * 4) << "patches";
}

TEST_F(ImageTaskTest, AdaptersKeepThePreprocessing) {
  train("base", {"training.max_steps=30", "data.image={mean: [0.4], std: [0.3]}"});
  const std::vector<std::string> lora = {
      "model={path: " + (directory_ / "base/model").string() + ", task: image_classification}",
      "adapter={type: lora, rank: 2, alpha: 4}", "data.image={mean: [0.25], std: [0.5], resize: bilinear}"};
  train("adapted", lora);
  const Classifier adapted =
      load_classifier((directory_ / "base/model").string(), (directory_ / "adapted/adapter").string());
  EXPECT_EQ(adapted.image->mean, std::vector<double>{0.25});
  EXPECT_EQ(adapted.image->interpolation, "bilinear");
  EXPECT_EQ(adapted.labels, (std::vector<std::string>{"above", "below", "left"}));
  const auto data = data::open_image_evaluation(recipe("adapted", lora), adapted.arch, *adapted.image, adapted.labels);
  EXPECT_NEAR(evaluate(adapted, data, 4, {}).eval_loss, metrics("adapted").back()["eval_loss"].get<double>(), 1e-6);
  const Classifier base = load_classifier((directory_ / "base/model").string(), "");
  EXPECT_EQ(base.image->mean, std::vector<double>{0.4});
}

TEST_F(ImageTaskTest, ACheckpointsLabelsGiveWayToOthers) {
  train("base");
  const std::string path = "model={path: " + (directory_ / "base/model").string() + ", task: image_classification}";
  const auto labels_of = [&](std::vector<std::string> overrides) {
    overrides.push_back(path);
    const recipe::Recipe r = recipe("unused", overrides);
    return data::open_image_classification(r, recipe::resolve_model(r)).train.label_names();
  };
  EXPECT_EQ(labels_of({"~data.labels"}), (std::vector<std::string>{"above", "below", "left"}));
  image::Picture grey(8, 8, 1);
  for (const char* name : {"above", "left"}) directory_.write(std::string("some/") + name + "/1.png", encode_png(grey));
  const std::vector<std::string> some = {"~data.labels", "~data.eval", "data.train=" + (directory_ / "some").string()};
  EXPECT_EQ(labels_of(some), (std::vector<std::string>{"above", "below", "left"})) << "two of its three";
  directory_.write("some/right/1.png", encode_png(grey));
  EXPECT_EQ(labels_of(some), (std::vector<std::string>{"above", "left", "right"})) << "one of them is new";
  EXPECT_THAT(error_text(ErrorKind::Data,
                         [&] {
                           labels_of({"~data.eval", some[2]});
                         }),
              HasSubstr("unknown label \"right\""));
}

}  // namespace
}  // namespace lathe::train
