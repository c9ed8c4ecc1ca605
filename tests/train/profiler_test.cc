#include "lathe/train/profiler.h"

#include <map>

#include "lathe/nn/attention.h"
#include "lathe/nn/modules.h"
#include "tensor_expect.h"

namespace lathe::train {
namespace {

using at::Tensor;
using testing::ramp;

std::map<std::string, report::OperatorRow> recorded(const std::function<void()>& action) {
  Profiler profiler(1);
  {
    const Profiler::Recording recording(profiler, 7);
    action();
  }
  EXPECT_TRUE(profiler.is_done());
  std::map<std::string, report::OperatorRow> rows;
  for (const auto& row : report::operator_rows(profiler.take())) rows.emplace(row.name, row);
  return rows;
}

TEST(Profiler, CountsTheOperationsAndBytesOfAProduct) {
  const Tensor a = ramp({3, 5}), b = ramp({5, 7});
  const auto rows = recorded([&] { (void)a.mm(b); });
  EXPECT_EQ(rows.at("aten::mm").calls, 1);
  EXPECT_EQ(rows.at("aten::mm").flops, 2 * 3 * 5 * 7);
  EXPECT_EQ(rows.at("aten::mm").bytes, 4 * (3 * 5 + 5 * 7 + 3 * 7));
}

TEST(Profiler, CountsNoBytesForViewsAndReservedMemory) {
  const Tensor a = ramp({4, 4}), b = ramp({4, 4}, 0.3);
  const auto rows = recorded([&] {
    (void)a.t();
    (void)torch::empty({8});
    a.add_(b);
  });
  EXPECT_EQ(rows.at("aten::t").bytes, 0);
  EXPECT_EQ(rows.at("aten::empty").bytes, 0);
  EXPECT_EQ(rows.at("aten::add_").bytes, 3 * 16 * 4) << "a is read and written, b read";
}

// The products of a sample with T rows: q kᵀ and p v, each 2 T T W operations over all heads; the backward pass has
// five.
TEST(Profiler, CountsTheProductsInsideAnOwnKernel) {
  constexpr int64_t kRows = 6, kWidth = 8;
  const Tensor qkv = ramp({kRows, 3 * kWidth}).requires_grad_();
  const auto offsets = std::make_shared<std::vector<int64_t>>(std::vector<int64_t>{0, kRows});
  const auto rows = recorded([&] { nn::self_attention(qkv, offsets, {2, {}, true}).sum().backward(); });
  EXPECT_EQ(rows.at("lathe::attention").flops, 2 * 2 * kRows * kRows * kWidth);
  EXPECT_EQ(rows.at("lathe::attention_backward").flops, 5 * 2 * kRows * kRows * kWidth);
}

TEST(Profiler, SharesOutTheTimeOfTheStepWithoutRest) {
  Profiler profiler(1);
  {
    const Profiler::Recording recording(profiler, 7);
    const Tensor x = ramp({64, 64}).requires_grad_();
    (x.mm(x).relu() + x).sum().backward();
  }
  const report::Profile profile = profiler.take();
  int64_t sum = 0;
  for (const report::ProfileEvent& event : profile.events) {
    sum += event.self_cpu_ns;
    EXPECT_EQ(event.step, 7);
  }
  EXPECT_EQ(profile.names[profile.events.front().name], "step");
  EXPECT_EQ(sum, profile.events.front().cpu_ns);
}

TEST(Profiler, RecordsNothingOutside) {
  const auto rows = recorded([] {});
  (void)ramp({2, 2}).mm(ramp({2, 2}));
  EXPECT_EQ(rows.size(), 1u) << "the step itself";
}

}  // namespace
}  // namespace lathe::train
