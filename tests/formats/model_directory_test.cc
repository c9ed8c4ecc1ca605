#include "lathe/formats/model_directory.h"

#include <cstdlib>
#include <filesystem>
#include <optional>

#include "expect_error.h"
#include "formats/mutations.h"
#include "formats/safetensors_bytes.h"
#include "lathe/base/files.h"
#include "temporary_directory.h"

namespace lathe::formats {
namespace {

using ::testing::AllOf;
using ::testing::EndsWith;
using testing::error_text;
using ::testing::HasSubstr;
using testing::mutated;
using testing::safetensors_bytes;
using testing::TemporaryDirectory;

constexpr const char* kIndexName = "model.safetensors.index.json";
constexpr const char* kShard1 = "model-00001-of-00002.safetensors";
constexpr const char* kShard2 = "model-00002-of-00002.safetensors";

std::string model_refusal(const std::string& path) {
  return error_text(ErrorKind::Data, [&] { ModelDirectory::open(path); });
}

/// A directory of two shards: a and b in the first, c in the second.
class ShardedModel : public ::testing::Test {
 protected:
  void SetUp() override {
    directory_.write("config.json", "{}");
    directory_.write(kShard1, safetensors_bytes({{"a", {2, 3}}, {"b", {}}}));
    directory_.write(kShard2, safetensors_bytes({{"c", {4}}}));
    write_map(map("a", kShard1) + "," + map("b", kShard1) + "," + map("c", kShard2));
  }
  static std::string map(const std::string& name, const std::string& shard) {
    return "\"" + name + "\":\"" + shard + "\"";
  }
  void write_map(const std::string& map) {
    directory_.write(kIndexName, R"({"metadata":{"total_size":44},"weight_map":{)" + map + "}}");
  }
  std::string open_refusal() { return model_refusal(directory_.path().string()); }

  TemporaryDirectory directory_;
};

TEST_F(ShardedModel, FindsEveryTensorInItsShard) {
  const ModelDirectory model = ModelDirectory::open(directory_.path().string());
  ASSERT_EQ(model.tensors().size(), 3U);
  EXPECT_EQ(model.tensors()[0].info.name, "a");
  EXPECT_THAT(model.weights_path(), EndsWith(kIndexName));
  EXPECT_THAT(model.config_path(), EndsWith("/config.json"));
  ASSERT_NE(model.find("c"), nullptr);
  EXPECT_EQ(model.find("c")->info.shape, (std::vector<int64_t>{4}));
  EXPECT_THAT(model.find("c")->file, EndsWith(kShard2));
  EXPECT_EQ(model.find("d"), nullptr);
}

TEST_F(ShardedModel, FollowsShardsThatAreLinks) {
  const TemporaryDirectory blobs;
  const std::string blob = blobs.write("blob", safetensors_bytes({{"c", {4}}}));
  std::filesystem::remove(directory_ / kShard2);
  std::filesystem::create_symlink(blob, directory_ / kShard2);
  EXPECT_NE(ModelDirectory::open(directory_.path().string()).find("c"), nullptr);
}

TEST_F(ShardedModel, PrefersTheSingleFileAsTransformersDoes) {
  directory_.write("model.safetensors", safetensors_bytes({{"whole", {1}}}));
  const ModelDirectory model = ModelDirectory::open(directory_.path().string());
  EXPECT_EQ(model.tensors().size(), 1U);
  EXPECT_NE(model.find("whole"), nullptr);
}

TEST_F(ShardedModel, NeverLeavesItsDirectory) {
  for (const char* shard : {"../x.safetensors", "/etc/x.safetensors", "sub/x.safetensors", "..", ".", "",
                            "..\\\\x.safetensors", "x\\u0000.safetensors", ".safetensors", "x.bin"}) {
    write_map(map("a", shard));
    EXPECT_THAT(open_refusal(), AllOf(HasSubstr("index.json: weight_map.a: expected a plain file name ending in "
                                                ".safetensors, got \"")))
        << shard;
  }
  write_map("\"a\":1");
  EXPECT_THAT(open_refusal(), EndsWith("weight_map.a: expected a plain file name ending in .safetensors, got 1"));
}

TEST_F(ShardedModel, NamesEveryTensorThatIndexAndShardsDisagreeOn) {
  write_map(map("a", kShard1) + "," + map("c", kShard1) + "," + map("d", kShard2));
  const std::string dir = directory_.path().string() + "/";
  const std::string placed = std::string(": is not placed here by ") + kIndexName;
  const std::string missing = std::string(": is missing, although ") + kIndexName + " places it here";
  EXPECT_EQ(open_refusal(), dir + kShard1 + ": b" + placed + "\n" + dir + kShard1 + ": c" + missing + "\n" + dir +
                                kShard2 + ": c" + placed + "\n" + dir + kShard2 + ": d" + missing);
}

TEST_F(ShardedModel, NeedsEveryShard) {
  std::filesystem::remove(directory_ / kShard2);
  EXPECT_THAT(open_refusal(), EndsWith(std::string(kShard2) + ": no such file (" + kIndexName + " names this shard)"));
}

TEST_F(ShardedModel, RefusesOrReadsAThousandMutationsOfTheIndex) {
  const std::string original = read_file(directory_ / kIndexName, 1 << 16);
  int accepted = 0;
  for (uint64_t i = 0; i < 1000; ++i) {
    directory_.write(kIndexName, mutated(original, make_key(i)));
    try {
      EXPECT_EQ(ModelDirectory::open(directory_.path().string()).tensors().size(), 3U);
      ++accepted;
    } catch (const Error& error) {
      ASSERT_EQ(error.kind(), ErrorKind::Data) << error.what();
    }
  }
  EXPECT_GT(accepted, 30);
  EXPECT_LT(accepted, 500);
}

TEST_F(ShardedModel, RefusesAnIndexWithoutTensors) {
  write_map("");
  EXPECT_THAT(open_refusal(), EndsWith("index.json: weight_map: names no tensor"));
  directory_.write(kIndexName, "{}");
  EXPECT_THAT(open_refusal(), EndsWith("index.json: weight_map: expected an object, got nothing"));
  write_map(map("a", kShard1) + "," + map("a", kShard2));
  EXPECT_THAT(open_refusal(), HasSubstr("index.json:1: duplicate key \"a\""));
}

TEST(ModelDirectory, SaysWhatIsMissing) {
  const TemporaryDirectory directory;
  const std::string path = directory.path().string();
  EXPECT_EQ(model_refusal(path + "/none"), path + "/none: no such directory");
  EXPECT_EQ(model_refusal(path), path + "/config.json: no such file (a model directory holds config.json)");
  const std::string config = directory.write("config.json", "{}");
  EXPECT_EQ(model_refusal(config), config + ": expected a model directory, got a file");
  EXPECT_EQ(model_refusal(path), path + ": expected model.safetensors or model.safetensors.index.json, got neither");
  directory.write("pytorch_model.bin", "PK\x03\x04");
  EXPECT_THAT(model_refusal(path),
              AllOf(HasSubstr("/pytorch_model.bin: holds pickled weights, which can run code when read"),
                    HasSubstr(".save_pretrained(NEW_DIR)")));
}

TEST(ModelDirectory, SurvivesPathsThatNoFileCanHave) {
  EXPECT_THAT(model_refusal(std::string(100000, 'x')), HasSubstr("no such directory"));
  EXPECT_THAT(model_refusal(""), HasSubstr("no such directory"));
}

class Environment {
 public:
  void set(const char* name, const std::string& value) {
    const char* old = std::getenv(name);
    saved_.emplace_back(name, old == nullptr ? std::nullopt : std::optional<std::string>(old));
    if (value.empty()) {
      ::unsetenv(name);
    } else {
      ::setenv(name, value.c_str(), 1);
    }
  }
  ~Environment() {
    for (auto it = saved_.rbegin(); it != saved_.rend(); ++it) {
      if (it->second) {
        ::setenv(it->first, it->second->c_str(), 1);
      } else {
        ::unsetenv(it->first);
      }
    }
  }

 private:
  std::vector<std::pair<const char*, std::optional<std::string>>> saved_;
};

TEST(ResolveModelPath, LooksWhereThePythonPackageLooks) {
  const TemporaryDirectory directory;
  const std::string revision(40, 'a');
  for (const char* cache : {"first", "second", "home/hub", "xdg/huggingface/hub", "user/.cache/huggingface/hub"}) {
    directory.write(std::string(cache) + "/models--org--name/refs/main", revision + "\n");
    directory.write(std::string(cache) + "/models--org--name/snapshots/" + revision + "/config.json", "{}");
  }
  const auto expect_cache = [&](const std::string& cache) {
    EXPECT_EQ(resolve_model_path("hf:org/name"),
              (directory.path() / cache / "models--org--name/snapshots" / revision).string());
  };
  Environment environment;
  environment.set("HF_HUB_CACHE", (directory / "first").string());
  environment.set("HUGGINGFACE_HUB_CACHE", (directory / "second").string());
  environment.set("HF_HOME", (directory / "home").string());
  environment.set("XDG_CACHE_HOME", (directory / "xdg").string());
  environment.set("HOME", (directory / "user").string());
  expect_cache("first");
  environment.set("HF_HUB_CACHE", "");
  expect_cache("second");
  environment.set("HUGGINGFACE_HUB_CACHE", "");
  expect_cache("home/hub");
  environment.set("HF_HOME", "");
  expect_cache("xdg/huggingface/hub");
  environment.set("XDG_CACHE_HOME", "");
  expect_cache("user/.cache/huggingface/hub");
}

TEST(ResolveModelPath, RefusesWhatTheCacheDoesNotHold) {
  const TemporaryDirectory directory;
  Environment environment;
  environment.set("HF_HUB_CACHE", directory.path().string());
  const auto text = [](const std::string& path) {
    return error_text(ErrorKind::Data, [&] { resolve_model_path(path); });
  };
  EXPECT_EQ(text("hf:org/name"), "hf:org/name: is not in the local Hugging Face cache " + directory.path().string() +
                                     " (Lathe downloads nothing; fetch it with: hf download org/name)");
  for (const char* path : {"hf:", "hf:name", "hf:org/", "hf:/name", "hf:org/name/more", "hf:../..", "hf:org/..",
                           "hf:org/a--b", "hf:org/a b", "hf:-x/name"}) {
    EXPECT_THAT(text(path), HasSubstr("expected hf:org/name, got ")) << path;
  }
  const std::string reference = directory.write("models--org--name/refs/main", "../../../etc");
  EXPECT_EQ(text("hf:org/name"), reference + ": expected a commit, got \"../../../etc\"");
  directory.write("models--org--name/refs/main", "abc123");
  EXPECT_THAT(text("hf:org/name"), HasSubstr("snapshots/abc123: no such directory"));
}

TEST(ResolveModelPath, LeavesOtherPathsAlone) { EXPECT_EQ(resolve_model_path("models/hf:x"), "models/hf:x"); }

}  // namespace
}  // namespace lathe::formats
