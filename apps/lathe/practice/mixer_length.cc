// Question 1c: a Mixer's cost is linear in the number of patches, self-attention's is not.
#include <ATen/core/grad_mode.h>
#include <ATen/ops/linear.h>

#include <cmath>
#include <memory>

#include "lathe/nn/attention.h"
#include "practice/mixer.h"
#include "practice/working.h"

namespace lathe::app::practice {
namespace {

constexpr double kLengthWidth = 256;  // of the run; the exam's 1024 would only take longer

cost::MixerSizes sizes_at(double length, double tokens_hidden) {
  return {length, kLengthWidth, tokens_hidden, 4 * kLengthWidth, 1};
}

// The slope of log y over log x.
double fitted_exponent(const std::vector<double>& x, const std::vector<double>& y) {
  double mean_x = 0, mean_y = 0, above = 0, below = 0;
  const auto count = static_cast<double>(x.size());
  for (size_t i = 0; i < x.size(); ++i) {
    mean_x += std::log(x[i]) / count;
    mean_y += std::log(y[i]) / count;
  }
  for (size_t i = 0; i < x.size(); ++i) {
    above += (std::log(x[i]) - mean_x) * (std::log(y[i]) - mean_y);
    below += (std::log(x[i]) - mean_x) * (std::log(x[i]) - mean_x);
  }
  return above / below;
}

struct Measured {
  double flops = 0, seconds = 0;
};

Measured measure(const std::function<void()>& run) {
  Measured measured;
  measured.flops = static_cast<double>(counted_flops(run));
  measured.seconds = seconds_of(run);
  return measured;
}

Measured measure_block(double length, double tokens_hidden) {
  nn::MixerBlock block = make_block(sizes_at(length, tokens_hidden), "1c");
  const Tensor x = drawn({1, static_cast<int64_t>(length), static_cast<int64_t>(kLengthWidth)}, "1c.x");
  return measure([&] { block->forward(x); });
}

// Scores and weighted values alone, or with the four projections.
std::function<void()> attention(double length, double width, bool projections) {
  const auto s = static_cast<int64_t>(length), c = static_cast<int64_t>(width);
  const Tensor x = drawn({s, c}, "1c.rows"), out = drawn({c, c}, "1c.out") / std::sqrt(width);
  const Tensor joint = drawn({3 * c, c}, "1c.qkv") / std::sqrt(width), qkv = at::linear(x, joint);
  const auto rows = std::make_shared<const std::vector<int64_t>>(std::vector<int64_t>{0, s});
  return [=] {
    const Tensor y = nn::self_attention(projections ? at::linear(x, joint) : qkv, rows, {.num_heads = 4});
    if (projections) at::linear(y, out);
  };
}

Measured measure_attention(double length, bool projections) {
  return measure(attention(length, kLengthWidth, projections));
}

// The products of token mixing alone: W2 (W1 x) on each channel.
Amount counted_token_mixing(double length, double width, double hidden) {
  const auto s = static_cast<int64_t>(length), c = static_cast<int64_t>(width), d = static_cast<int64_t>(hidden);
  const Tensor x = drawn({c, s}, "1c.channels"), w1 = drawn({d, s}, "1c.w1"), w2 = drawn({s, d}, "1c.w2");
  return static_cast<Amount>(counted_flops([&] { at::linear(at::linear(x, w1), w2); }));
}

// At the exam's width.
void compare_attention(Working& working) {
  const Amount c = kExamMixer.width, hidden = kExamMixer.tokens_hidden_size;
  Table table{"The exam's width: self-attention against token mixing, counted",
              "Of one sample in one layer, c = 1024, d_s = 512. Attention has four projections, 8 s c^2, and scores "
              "and weighted values, 4 s^2 c.",
              {"s", "attention", "token mixing", "ratio"},
              {}};
  for (const double s : {49.0, 128.0, 196.0, 512.0, 1024.0, 4096.0}) {
    cost::MixerSizes sizes = kExamMixer;
    sizes.sequence_length = s;
    const Amount expected = working.derive(
        filled("At the exam's width, attention with its projections over token mixing, s = {}", {s}),
        filled("(8 s c^2 + 4 s^2 c) / (4 s c d_s) = (2 x {} + {}) / {}", {c, s, hidden}),
        (cost::attention_projection_flops(s, c) + cost::attention_score_flops(s, c)) / cost::token_mixing_flops(sizes));
    const auto attending = static_cast<Amount>(counted_flops(attention(s, c, /*projections=*/true)));
    const Amount mixing = counted_token_mixing(s, c, hidden);
    working.claim_close(filled("Ratio of the operations counted, c = {}, s = {}", {c, s}), expected, attending / mixing,
                        1e-12);
    table.rows.push_back(
        {amount_text(s), amount_text(attending), amount_text(mixing), short_number(attending / mixing)});
  }
  working.answer.tables.push_back(std::move(table));
}

struct DerivedLengths {
  Amount equal, block, attention, quadratic;
  Amount block_exponent, score_exponent;
};

DerivedLengths derive_lengths(Working& working) {
  const double hidden = kExamMixer.tokens_hidden_size, length = hidden;
  working.say(
      "Token mixing multiplies by W1 [d_s, s] and W2 [s, d_s] on each channel: 4 s c d_s FLOPs. The hidden width d_s "
      "is chosen, it does not grow with s. So the cost is linear in the number of patches (and so is that of channel "
      "mixing, 4 s c d_c). Self-attention compares every patch with every other: scores and weighted values cost 4 s^2 "
      "c.");
  DerivedLengths derived{};
  derived.equal =
      working.derive("Both cost the same at s = d_s; below, attention's products of patches are the cheaper ones",
                     filled("4 s^2 c = 4 s c d_s = 4 x {} x {} x {} at s = {}", {length, kLengthWidth, hidden, length}),
                     cost::attention_score_flops(length, kLengthWidth), Unit::Flops);
  derived.block = working.derive("A block of the run's width, c = 256, d_s = 512, d_c = 1024, per patch",
                                 filled("4 x {} x ({} + {})", {kLengthWidth, hidden, 4 * kLengthWidth}),
                                 cost::mixer_block_flops(sizes_at(1, hidden)), Unit::Flops);
  derived.attention = working.derive(
      "Attention with its projections, for s = 2048",
      filled("8 s c^2 + 4 s^2 c = 8 x {} x {}^2 + 4 x {}^2 x {}", {2048, kLengthWidth, 2048, kLengthWidth}),
      cost::attention_projection_flops(2048, kLengthWidth) + cost::attention_score_flops(2048, kLengthWidth),
      Unit::Flops);
  const auto exponent = [](Amount twice, Amount once) { return std::log2(twice / once); };
  derived.block_exponent = working.derive(
      "Exponent of s in a block's cost: of twice the patches over once",
      "log2(4 (2 s) c (d_s + d_c) / 4 s c (d_s + d_c))",
      exponent(cost::mixer_block_flops(sizes_at(2, hidden)), cost::mixer_block_flops(sizes_at(1, hidden))));
  derived.score_exponent = working.derive(
      "... in that of scores and weighted values", "log2(4 (2 s)^2 c / 4 s^2 c)",
      exponent(cost::attention_score_flops(2, kLengthWidth), cost::attention_score_flops(1, kLengthWidth)));
  derived.quadratic = working.derive(
      "The caveat: where d_s grows with s, as when a trained Mixer is moved to larger pictures, it is quadratic as "
      "well. With d_s = 4 s, token mixing at s = 512",
      filled("16 s^2 c = 16 x {}^2 x {}", {length, kLengthWidth}),
      cost::token_mixing_flops(sizes_at(length, 4 * length)), Unit::Flops);
  return derived;
}

std::vector<double> all_of(const std::vector<Measured>& runs, double Measured::*what) {
  std::vector<double> values;
  for (const Measured& run : runs) values.push_back(run.*what);
  return values;
}

// Of the block, attention, and attention's scores and values, by length.
void show_times(Working& working, const std::vector<double>& lengths,
                const std::vector<const std::vector<Measured>*>& runs) {
  const auto exponent = [&](size_t i) {
    return short_number(fitted_exponent(lengths, all_of(*runs[i], &Measured::seconds)));
  };
  Table table{"Times on this machine, forward, one sample (shown, not judged)",
              "Exponents of time fitted over all lengths: block " + exponent(0) + ", attention " + exponent(1) +
                  ", its scores and values " + exponent(2) + ".",
              {"s", "MixerBlock", "attention", "of it scores and values"},
              {}};
  report::Chart chart{.id = "length",
                      .title = "Time against the number of patches",
                      .note = "Forward, one sample, c = 256.",
                      .y_label = "ms",
                      .x_label = "patches",
                      .from_zero = true};
  for (const double length : lengths) table.rows.push_back({amount_text(length)});
  for (size_t curve = 0; curve < runs.size(); ++curve) {
    report::Series series{lengths, all_of(*runs[curve], &Measured::seconds)};
    for (size_t i = 0; i < lengths.size(); ++i) {
      series.y[i] *= 1000;
      table.rows[i].push_back(short_number(series.y[i]) + " ms");
    }
    chart.curves.push_back({.label = "ms", .run = curve, .kind = report::Curve::Kind::Points, .series = series});
  }
  working.answer.tables.push_back(std::move(table));
  working.answer.names = {"MixerBlock", "attention", "scores and values"};
  working.answer.charts.push_back(std::move(chart));
}

void measure_lengths(Working& working, const DerivedLengths& derived) {
  const at::NoGradGuard no_grad;
  const double hidden = kExamMixer.tokens_hidden_size;
  const std::vector<double> lengths = {128, 256, 512, 1024, 2048};
  std::vector<Measured> blocks, attentions, scores;
  for (const double length : lengths) {
    blocks.push_back(measure_block(length, hidden));
    attentions.push_back(measure_attention(length, true));
    scores.push_back(measure_attention(length, false));
  }
  for (const size_t i : {size_t{0}, size_t{4}})
    working.claim_equal(filled("MixerBlock, s = {}: the operations counted", {lengths[i]}), lengths[i] * derived.block,
                        blocks[i].flops, Unit::Flops);
  working.claim_equal("Attention, s = 2048: the operations counted", derived.attention, attentions[4].flops,
                      Unit::Flops);
  working.claim_equal("Scores and weighted values at s = d_s = 512", derived.equal, scores[2].flops, Unit::Flops);
  working.claim_equal("... as many as token mixing", derived.equal, counted_token_mixing(hidden, kLengthWidth, hidden),
                      Unit::Flops);
  working.claim_equal("Token mixing with d_s = 4 s at s = 512: a block, less its channel mixing", derived.quadratic,
                      measure_block(512, 4 * 512).flops - cost::channel_mixing_flops(sizes_at(512, 4 * 512)),
                      Unit::Flops);
  working.claim_close("Fitted to the counts, a block's cost grows with s to the power of", derived.block_exponent,
                      fitted_exponent(lengths, all_of(blocks, &Measured::flops)), 1e-12);
  working.claim_close("... and that of scores and weighted values to the power of", derived.score_exponent,
                      fitted_exponent(lengths, all_of(scores, &Measured::flops)), 1e-12);
  compare_attention(working);
  show_times(working, lengths, {&blocks, &attentions, &scores});
}

Answer answer_mixer_length(const Settings& settings) {
  Working working(settings);
  const DerivedLengths derived = derive_lengths(working);
  working.answer.in_short =
      "Token mixing has matrices of s by d_s with d_s chosen, so it costs 4 s c d_s: linear in s. Attention compares "
      "all pairs of patches: 4 s^2 c. If d_s grows with s, the Mixer is quadratic as well.";
  measure_lengths(working, derived);
  return std::move(working.answer);
}

}  // namespace

extern const Question kQuestion1c;
const Question kQuestion1c = {"1c", "Linear in the number of patches",
                              "Why does the cost of a Mixer grow linearly with the number of patches, while that of "
                              "self-attention grows with its square? When is that not so?",
                              answer_mixer_length};

}  // namespace lathe::app::practice
