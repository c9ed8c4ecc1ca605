#include "lathe/text/word_piece.h"

#include <algorithm>
#include <array>
#include <utility>

#include "lathe/base/error.h"
#include "lathe/base/text.h"

namespace lathe::text {
namespace {

constexpr int64_t kMaxTokens = 1 << 24;

bool is_continuation_byte(char c) { return (static_cast<unsigned char>(c) & 0xC0) == 0x80; }

void replace_all(std::string& text, std::string_view from, std::string_view to) {
  for (size_t at = text.find(from); at != std::string::npos; at = text.find(from, at + to.size()))
    text.replace(at, from.size(), to);
}

}  // namespace

WordPiece::WordPiece(const JsonObject& block)
    : max_input_chars_per_word_(block.integer("max_input_chars_per_word", 1, 1 << 20, 100)) {
  const std::string prefix = block.string("continuing_subword_prefix", "##");
  const JsonObject vocab = block.object("vocab");
  const size_t size = vocab.json().size();
  tokens_.resize(size);
  std::vector<bool> taken(size);
  for (const auto& [token, value] : vocab.json().items()) {
    const int64_t id = vocab.integer_of(token, value, 0, std::min<int64_t>(kMaxTokens, static_cast<int64_t>(size) - 1));
    if (taken[static_cast<size_t>(id)])
      throw vocab.error(printable(token),
                        "id " + std::to_string(id) + " is taken by " + quote(tokens_[static_cast<size_t>(id)]));
    taken[static_cast<size_t>(id)] = true;
    tokens_[static_cast<size_t>(id)] = token;
    longest_piece_ = std::max(longest_piece_, token.size());
    initial_.emplace(token, id);
    if (token.starts_with(prefix)) continuing_.emplace(token.substr(prefix.size()), id);
  }
  const std::string unknown = block.string("unk_token", "[UNK]");
  unknown_ = token_id(unknown);
  if (unknown_ < 0) throw block.error("unk_token", quote(unknown) + " is not in the vocabulary");
}

int64_t WordPiece::token_id(std::string_view token) const {
  const auto found = initial_.find(token);
  return found == initial_.end() ? -1 : found->second;
}

std::string_view WordPiece::token(int64_t id) const {
  return id >= 0 && id < vocab_size() ? std::string_view(tokens_[static_cast<size_t>(id)]) : std::string_view();
}

void WordPiece::encode(std::string_view word, std::vector<int64_t>& ids) const {
  const auto chars = word.size() - static_cast<size_t>(std::count_if(word.begin(), word.end(), is_continuation_byte));
  if (static_cast<int64_t>(chars) > max_input_chars_per_word_) {
    ids.push_back(unknown_);
    return;
  }
  const size_t first = ids.size();
  size_t start = 0;
  while (start < word.size()) {
    const auto& pieces = start == 0 ? initial_ : continuing_;
    size_t length = std::min(word.size() - start, longest_piece_);
    auto found = pieces.end();
    for (; length > 0; --length) {
      if (start + length < word.size() && is_continuation_byte(word[start + length])) continue;
      found = pieces.find(word.substr(start, length));
      if (found != pieces.end()) break;
    }
    if (length == 0) {
      ids.resize(first);
      ids.push_back(unknown_);
      return;
    }
    ids.push_back(found->second);
    start += length;
  }
}

WordPieceDecoder::WordPieceDecoder(const JsonObject& block)
    : prefix_(block.string("prefix", "##")), cleanup_(block.boolean("cleanup", true)) {}

std::string WordPieceDecoder::decode(const std::vector<std::string_view>& tokens) const {
  static constexpr std::array<std::pair<std::string_view, std::string_view>, 11> kCleanups = {{{" .", "."},
                                                                                               {" ?", "?"},
                                                                                               {" !", "!"},
                                                                                               {" ,", ","},
                                                                                               {" ' ", "'"},
                                                                                               {" n't", "n't"},
                                                                                               {" 'm", "'m"},
                                                                                               {" do not", " don't"},
                                                                                               {" 's", "'s"},
                                                                                               {" 've", "'ve"},
                                                                                               {" 're", "'re"}}};
  std::string text;
  for (size_t i = 0; i < tokens.size(); ++i) {
    std::string piece;
    if (i == 0) {
      piece = tokens[i];
    } else if (tokens[i].starts_with(prefix_)) {
      piece = tokens[i].substr(prefix_.size());
    } else {
      piece = " " + std::string(tokens[i]);
    }
    if (cleanup_) {
      for (const auto& [from, to] : kCleanups) replace_all(piece, from, to);
    }
    text += piece;
  }
  return text;
}

}  // namespace lathe::text
