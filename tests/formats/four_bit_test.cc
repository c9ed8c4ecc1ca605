#include "lathe/formats/four_bit.h"

#include <functional>
#include <map>

#include "expect_error.h"
#include "lathe/base/text.h"
#include "lathe/formats/model_directory.h"
#include "temporary_directory.h"

namespace lathe::formats {
namespace {

using ::testing::AllOf;
using testing::error_text;
using ::testing::HasSubstr;
using testing::TemporaryDirectory;

constexpr const char* kState = "w.weight.quant_state.bitsandbytes__nf4";

/// The dtype, shape and bytes of a tensor in a file.
struct Part {
  Dtype dtype;
  std::vector<int64_t> shape;
  std::string bytes = {};
};

/// A directory with one weight [6, 50] in blocks of 64, its scales quantised: 150 bytes, five scales.
class FourBitDirectory : public ::testing::Test {
 protected:
  FourBitDirectory() {
    state_.shape = {6, 50};
    state_.dtype = Dtype::BF16;
    state_.nested = true;
    state_.nested_offset = 0.375f;
    parts_ = {{"w.weight", {Dtype::U8, {150, 1}}},
              {"w.weight.absmax", {Dtype::U8, {5}}},
              {"w.weight.quant_map", {Dtype::F32, {16}}},
              {"w.weight.nested_absmax", {Dtype::F32, {1}}},
              {"w.weight.nested_quant_map", {Dtype::F32, {256}}}};
    set_state(quant_state_text(state_));
    config_ = R"({"quantization_config": {"load_in_4bit": true, "quant_method": "bitsandbytes"}})";
  }
  void set_state(const std::string& text) { parts_[kState] = {Dtype::U8, {static_cast<int64_t>(text.size())}, text}; }
  /// quant_state's text with one piece replaced.
  void edit_state(const std::string& from, const std::string& to) {
    std::string text = quant_state_text(state_);
    ASSERT_NE(text.find(from), std::string::npos) << text;
    set_state(text.replace(text.find(from), from.size(), to));
  }
  ModelDirectory open() {
    std::vector<TensorInfo> infos;
    for (const auto& [name, part] : parts_) infos.push_back({name, part.dtype, part.shape, 0, 0});
    std::string file = make_safetensors_header(infos, {});
    for (const TensorInfo& info : infos) {
      std::string bytes = parts_[info.name].bytes;
      bytes.resize(info.num_bytes());
      file += bytes;
    }
    directory_.write("config.json", config_);
    directory_.write("model.safetensors", file);
    return ModelDirectory::open(directory_.path().string());
  }
  std::string refusal() {
    std::string text = error_text(ErrorKind::Data, [&] { open(); });
    const std::string prefix = directory_.path().string() + "/";
    for (size_t at = text.find(prefix); at != std::string::npos; at = text.find(prefix)) text.erase(at, prefix.size());
    return text;
  }

  FourBitState state_;
  std::map<std::string, Part> parts_;
  std::string config_;
  TemporaryDirectory directory_;
};

TEST_F(FourBitDirectory, GivesStateShapeAndEveryPart) {
  const ModelDirectory model = open();
  ASSERT_EQ(model.four_bit_weights().size(), 1U);
  const FourBitWeight& weight = *model.find_four_bit("w.weight");
  EXPECT_EQ(weight.state, state_);
  EXPECT_EQ(model.shape_of("w.weight"), (std::vector<int64_t>{6, 50}));
  EXPECT_EQ(weight.parts().size(), 6U);
  EXPECT_EQ(weight.num_bytes(), 150U + 5 + 64 + 4 + 1024 + quant_state_text(state_).size());
  EXPECT_EQ(model.find_four_bit("other"), nullptr);
}

// From a file that bitsandbytes 0.50.2 wrote.
TEST(QuantStateText, IsWhatPythonWrites) {
  FourBitState state;
  state.shape = {384, 384};
  state.nested = true;
  state.nested_offset = 0.11392103135585785f;
  EXPECT_EQ(quant_state_text(state),
            R"({"quant_type": "nf4", "blocksize": 64, "dtype": "float32", "shape": [384, 384], )"
            R"("nested_blocksize": 256, "nested_dtype": "float32", "nested_offset": 0.11392103135585785})");
  state.nested = false;
  state.quant_type = "fp4";
  state.dtype = Dtype::F16;
  EXPECT_EQ(quant_state_text(state),
            R"({"quant_type": "fp4", "blocksize": 64, "dtype": "float16", "shape": [384, 384]})");
}

TEST_F(FourBitDirectory, TakesBytesOfAnyContainerAndOldShapes) {
  state_.shape = {6, 100};
  edit_state("6", "6");
  parts_["w.weight.absmax"].shape = {10};
  for (const auto& [dtype, shape] : std::map<Dtype, std::vector<int64_t>>{
           {Dtype::U8, {1, 300}}, {Dtype::BF16, {150, 1}}, {Dtype::F32, {75, 1}}, {Dtype::F16, {150, 1}}}) {
    parts_["w.weight"] = {dtype, shape};
    EXPECT_EQ(open().shape_of("w.weight"), (std::vector<int64_t>{6, 100})) << shape_text(shape);
  }
}

TEST_F(FourBitDirectory, RefusesAMissingPartByName) {
  for (const char* suffix : {"", ".absmax", ".quant_map", ".nested_absmax", ".nested_quant_map"}) {
    const auto kept = parts_;
    parts_.erase(std::string("w.weight") + suffix);
    EXPECT_EQ(refusal(),
              "model.safetensors: w.weight" + std::string(suffix) + ": is missing (a weight in four bits needs it)");
    parts_ = kept;
  }
  parts_.erase(kState);
  EXPECT_THAT(refusal(), HasSubstr("w.weight.quant_state.bitsandbytes__nf4: is missing"));
}

TEST_F(FourBitDirectory, RefusesPartsThatDisagree) {
  const auto refused = [&](const std::string& name, Part part) {
    const Part kept = parts_[name];
    parts_[name] = std::move(part);
    const std::string text = refusal();
    parts_[name] = kept;
    return text;
  };
  EXPECT_EQ(
      refused("w.weight", {Dtype::U8, {149, 1}}),
      "model.safetensors: w.weight: expected 150 bytes, as quant_state's shape and blocksize say, got U8 [149, 1]");
  EXPECT_THAT(refused("w.weight.absmax", {Dtype::U8, {4}}), HasSubstr("w.weight.absmax: expected 5 of U8, as"));
  EXPECT_THAT(refused("w.weight.absmax", {Dtype::F32, {5}}), HasSubstr("expected 5 of U8, as"));
  EXPECT_THAT(refused("w.weight.quant_map", {Dtype::F32, {256}}), HasSubstr("w.weight.quant_map: expected 16 of F32"));
  EXPECT_THAT(refused("w.weight.nested_absmax", {Dtype::F32, {2}}), HasSubstr("nested_absmax: expected 1 of F32"));
  EXPECT_THAT(refused("w.weight.nested_quant_map", {Dtype::F16, {256}}), HasSubstr("expected 256 of F32"));
  state_.nested = false;
  set_state(quant_state_text(state_));
  EXPECT_THAT(refusal(), HasSubstr("w.weight.absmax: expected 5 of F32"));
  parts_["w.weight.absmax"] = {Dtype::F32, {5}};
  EXPECT_THAT(refusal(), HasSubstr("w.weight.nested_absmax: is no part of a four-bit weight like this"));
}

TEST_F(FourBitDirectory, RefusesAStateThatSaysOtherThings) {
  const std::map<std::array<std::string, 2>, std::string> edits = {
      {{R"("nf4")", R"("fp4")"}, R"(quant_type: expected "nf4", as the tensor's name says, got "fp4")"},
      {{R"("blocksize": 64)", R"("blocksize": 48)"}, "blocksize: expected 32, 64, 128, ..., 4096, got 48"},
      {{R"("blocksize": 64)", R"("blocksize": 8192)"}, "blocksize: expected 32, 64, 128, ..., 4096, got 8192"},
      {{R"("blocksize": 64, )", ""}, "blocksize"},
      {{R"("bfloat16")", R"("int8")"}, R"(dtype: expected float32, bfloat16 or float16, got "int8")"},
      {{"[6, 50]", "[300]"}, "shape: expected two sizes, got [300]"},
      {{"[6, 50]", "[-6, 50]"}, "shape"},
      {{"[6, 50]", "[6, 5e1]"}, "shape"},
      {{"[6, 50]", "[2147483648, 2147483648]"}, "w.weight: expected"},
      {{R"("nested_blocksize": 256)", R"("nested_blocksize": 128)"}, "nested_blocksize: expected 256, got 128"},
      {{R"("nested_dtype": "float32")", R"("nested_dtype": "float16")"}, "nested_dtype: expected float32"},
      {{"0.375", "1e300"}, "nested_offset: is not a finite float32"},
      {{"0.375", "NaN"}, "bad JSON"},
      {{R"("shape")", R"("extra": 1, "shape")"}, "extra: unknown key"},
      {{R"("shape")", R"("blocksize": 64, "shape")"}, "duplicate key"}};
  for (const auto& [edit, message] : edits) {
    edit_state(edit[0], edit[1]);
    EXPECT_THAT(refusal(), AllOf(HasSubstr("model.safetensors"), HasSubstr("w.weight"), HasSubstr(message)));
  }
  const std::string text = quant_state_text(state_);
  for (size_t length = 0; length < text.size(); length += 5) {
    set_state(text.substr(0, length));
    EXPECT_THAT(refusal(), HasSubstr(kState)) << length;
  }
}

TEST_F(FourBitDirectory, RefusesUnknownAndDoubleKinds) {
  parts_["w.weight.quant_state.bitsandbytes__fp4"] = parts_[kState];
  EXPECT_THAT(refusal(), HasSubstr("w.weight.quant_state.bitsandbytes__"));
  parts_.erase("w.weight.quant_state.bitsandbytes__fp4");
  parts_["w.weight.quant_state.bitsandbytes__int4"] = parts_[kState];
  parts_.erase(kState);
  EXPECT_THAT(refusal(), HasSubstr("w.weight.quant_state.bitsandbytes__int4: is an unknown kind of quantisation "
                                   "(known: bitsandbytes__nf4, bitsandbytes__fp4)"));
}

TEST_F(FourBitDirectory, RefusesAConfigOfAnotherQuantisation) {
  const auto with = [&](const std::string& section) {
    config_ = R"({"quantization_config": )" + section + "}";
    return refusal();
  };
  EXPECT_THAT(with(R"({"quant_method": "gptq", "bits": 4})"),
              HasSubstr(R"(config.json: quantization_config.quant_method: expected bitsandbytes, got "gptq")"));
  EXPECT_THAT(with(R"({"load_in_8bit": true})"), HasSubstr("quantization_config.load_in_4bit: expected true"));
  EXPECT_THAT(with(R"({"load_in_4bit": "yes"})"), HasSubstr("quantization_config.load_in_4bit"));
  EXPECT_THAT(with("[]"), HasSubstr("config.json: quantization_config"));
  parts_ = {{"w.weight", {Dtype::F32, {6, 50}}}};
  EXPECT_THAT(with(R"({"load_in_4bit": true})"), HasSubstr("is true, but no weight is stored in four bits"));
}

TEST_F(FourBitDirectory, NeedsNoConfigSection) {
  config_ = "{}";
  EXPECT_EQ(open().four_bit_weights().size(), 1U);
}

}  // namespace
}  // namespace lathe::formats
