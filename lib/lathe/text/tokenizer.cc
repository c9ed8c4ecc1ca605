#include "lathe/text/tokenizer.h"

#include <utf8proc.h>

#include <algorithm>
#include <utility>

#include "lathe/base/error.h"
#include "lathe/base/text.h"
#include "lathe/text/utf8.h"

namespace lathe::text {
namespace {

constexpr int64_t kMaxId = 1 << 24;
constexpr size_t kPieceBytes = 512;

bool is_ascii_blank(char c) { return c == ' ' || c == '\n' || c == '\t' || c == '\r'; }

int32_t first_code_point(std::string_view text) { return take_code_point(text); }

// The beginning of the last code point of `text`, which is not empty.
size_t last_code_point_at(std::string_view text) {
  size_t at = text.size() - 1;
  while (at > 0 && (static_cast<unsigned char>(text[at]) & 0xC0) == 0x80) --at;
  return at;
}

// A regular expression's \w: alphabetic code points, marks, decimal digits, connectors, joiners.
bool is_word(int32_t c) {
  switch (utf8proc_category(c)) {
    case UTF8PROC_CATEGORY_LU:
    case UTF8PROC_CATEGORY_LL:
    case UTF8PROC_CATEGORY_LT:
    case UTF8PROC_CATEGORY_LM:
    case UTF8PROC_CATEGORY_LO:
    case UTF8PROC_CATEGORY_NL:
    case UTF8PROC_CATEGORY_ND:
    case UTF8PROC_CATEGORY_MN:
    case UTF8PROC_CATEGORY_MC:
    case UTF8PROC_CATEGORY_ME:
    case UTF8PROC_CATEGORY_PC:
      return true;
    default:
      break;
  }
  const bool joiner = c == 0x200C || c == 0x200D;
  const bool letter_symbol = (c >= 0x24B6 && c <= 0x24E9) || (c >= 0x1F130 && c <= 0x1F149) ||
                             (c >= 0x1F150 && c <= 0x1F169) || (c >= 0x1F170 && c <= 0x1F189);
  return joiner || letter_symbol;
}

bool is_inside_word(std::string_view text, size_t begin, size_t end) {
  const std::string_view before = text.substr(0, begin), after = text.substr(end);
  return (!before.empty() && is_word(first_code_point(before.substr(last_code_point_at(before))))) ||
         (!after.empty() && is_word(first_code_point(after)));
}

size_t skip_white_space(std::string_view text, size_t at) {
  for (std::string_view rest = text.substr(at); !rest.empty() && is_white_space(take_code_point(rest));)
    at = text.size() - rest.size();
  return at;
}

size_t skip_white_space_back(std::string_view text, size_t at) {
  while (at > 0) {
    const size_t last = last_code_point_at(text.substr(0, at));
    if (!is_white_space(first_code_point(text.substr(last)))) break;
    at = last;
  }
  return at;
}

}  // namespace

Tokenizer Tokenizer::from_file(const std::string& path) {
  const Json json = read_json_file(path);
  const JsonObject root(json, path);
  Tokenizer tokenizer;
  tokenizer.model_ = make_model(root.object("model"));
  tokenizer.normalizer_ = make_normalizer(root.find("normalizer"), path);
  tokenizer.pre_tokenizer_ = make_pre_tokenizer(root.find("pre_tokenizer"), path);
  tokenizer.decoder_ = make_decoder(root.find("decoder"), path);
  tokenizer.vocab_size_ = tokenizer.model_->vocab_size();
  tokenizer.read_added_tokens(root);
  tokenizer.read_template(root);
  // Only the BERT pre-tokenizer drops spaces, so only there may a long text be taken in pieces that end at one.
  const Json* pre_tokenizer = root.find("pre_tokenizer");
  tokenizer.splits_at_spaces_ =
      pre_tokenizer != nullptr &&
      std::none_of(tokenizer.added_.begin(), tokenizer.added_.end(), [](const AddedToken& token) {
        return std::any_of(token.pattern.begin(), token.pattern.end(), is_ascii_blank);
      });
  return tokenizer;
}

void Tokenizer::read_added_tokens(const JsonObject& root) {
  const Json* list = root.find("added_tokens");
  if (list == nullptr) return;
  if (!list->is_array()) throw root.error("added_tokens", Diagnostic::expected("an array", describe(*list)));
  for (const Json& item : *list) {
    const JsonObject token(item, root.file(), "added_tokens");
    const bool special = token.boolean("special", false);
    added_.push_back({token.string("content"), "", token.integer("id", 0, kMaxId), token.boolean("single_word", false),
                      token.boolean("lstrip", false), token.boolean("rstrip", false),
                      token.boolean("normalized", !special)});
    AddedToken& added = added_.back();
    if (added.content.empty()) throw token.error("content", "is empty");
    added.pattern = added.normalized ? normalizer_->normalize(added.content) : added.content;
    if (added.pattern.empty()) throw token.error("content", quote(added.content) + " is normalized to nothing");
    const std::string_view holder = model_->token(added.id);
    if (!holder.empty() && holder != added.content) {
      throw token.error("id",
                        std::to_string(added.id) + " of " + quote(added.content) + " is taken by " + quote(holder));
    }
    vocab_size_ = std::max(vocab_size_, added.id + 1);
  }
  // The longest match wins where several begin, the first token among equals (where the peer's choice is random).
  std::stable_sort(added_.begin(), added_.end(),
                   [](const AddedToken& a, const AddedToken& b) { return a.pattern.size() > b.pattern.size(); });
}

void Tokenizer::read_template(const JsonObject& root) {
  template_ = {{{}, 0, true}};
  const Json* block = root.find("post_processor");
  if (block == nullptr) return;
  const JsonObject processor(*block, root.file(), "post_processor");
  const std::string type = processor.string("type");
  if (type != "TemplateProcessing")
    throw processor.error("type", quote(type) + " is not supported yet", "supported: TemplateProcessing");
  const JsonObject special_tokens = processor.object("special_tokens");
  const Json* single = processor.find("single");
  if (single == nullptr || !single->is_array()) throw processor.error("single", "expected an array");
  template_.clear();
  for (const Json& item : *single) {
    const JsonObject piece(item, root.file(), "post_processor.single");
    if (piece.find("Sequence") != nullptr) {
      template_.push_back({{}, piece.object("Sequence").integer("type_id", 0, kMaxId, 0), true});
      continue;
    }
    const JsonObject special = piece.object("SpecialToken");
    const JsonObject definition = special_tokens.object(special.string("id"));
    const Json* ids = definition.find("ids");
    if (ids == nullptr || !ids->is_array()) throw definition.error("ids", "expected an array");
    TemplatePiece added{{}, special.integer("type_id", 0, kMaxId, 0), false};
    for (const Json& id : *ids) {
      if (!id.is_number_unsigned() || id.get<uint64_t>() >= static_cast<uint64_t>(vocab_size_)) {
        throw definition.error("ids", Diagnostic::expected("ids of the vocabulary", describe(id)));
      }
      added.ids.push_back(id.get<int64_t>());
    }
    template_.push_back(std::move(added));
  }
  const auto sequences =
      std::count_if(template_.begin(), template_.end(), [](const TemplatePiece& piece) { return piece.is_sequence; });
  if (sequences != 1) throw processor.error("single", Diagnostic::expected("one Sequence", std::to_string(sequences)));
}

int64_t Tokenizer::type_vocab_size() const {
  int64_t size = 1;
  for (const TemplatePiece& piece : template_) size = std::max(size, piece.type_id + 1);
  return size;
}

int64_t Tokenizer::num_special_tokens() const {
  size_t count = 0;
  for (const TemplatePiece& piece : template_) count += piece.ids.size();
  return static_cast<int64_t>(count);
}

std::optional<int64_t> Tokenizer::token_id(std::string_view token) const {
  for (const AddedToken& added : added_) {
    if (added.content == token) return added.id;
  }
  const int64_t id = model_->token_id(token);
  return id < 0 ? std::nullopt : std::optional<int64_t>(id);
}

std::vector<Tokenizer::Match> Tokenizer::find_added(std::string_view text, bool normalized) const {
  std::vector<Match> matches;
  std::vector<size_t> places(added_.size(), 0);  // of each token's next occurrence, found once
  std::vector<bool> known(added_.size(), false);
  for (size_t from = 0, stripped = 0; from < text.size();) {
    Match match{nullptr, std::string_view::npos, 0};
    for (size_t i = 0; i < added_.size(); ++i) {
      if (added_[i].normalized != normalized) continue;
      if (!known[i] || (places[i] != std::string_view::npos && places[i] < from))
        places[i] = text.find(added_[i].pattern, from);
      known[i] = true;
      if (places[i] < match.begin) match = {&added_[i], places[i], 0};
    }
    if (match.token == nullptr) break;
    from = match.end = match.begin + match.token->pattern.size();
    // What stands inside a word is passed over whole.
    if (match.token->single_word && is_inside_word(text, match.begin, match.end)) continue;
    if (match.token->strip_left) match.begin = skip_white_space_back(text, match.begin);
    if (match.token->strip_right) match.end = skip_white_space(text, match.end);
    match.begin = std::max(match.begin, stripped);
    stripped = match.end;
    matches.push_back(match);
  }
  return matches;
}

void Tokenizer::encode_words(std::string_view normalized, std::vector<int64_t>& ids) const {
  std::vector<std::string_view> words;
  pre_tokenizer_->split(normalized, words);
  for (const std::string_view word : words) model_->encode(word, ids);
}

void Tokenizer::encode_segment(std::string_view text, std::vector<int64_t>& ids) const {
  // Tokens that are not normalized are found in the raw text, the others in what the normalizer leaves of the rest.
  const auto split = [&](std::string_view part, bool normalized, const auto& rest) {
    size_t from = 0;
    for (const Match& match : find_added(part, normalized)) {
      rest(part.substr(from, match.begin - from));
      ids.push_back(match.token->id);
      from = std::max(match.begin, match.end);
    }
    rest(part.substr(from));
  };
  split(text, false, [&](std::string_view raw) {
    if (raw.empty()) return;
    split(normalizer_->normalize(raw), true, [&](std::string_view normalized) { encode_words(normalized, ids); });
  });
}

Encoding Tokenizer::encode(std::string_view text, const EncodeOptions& options) const {
  const size_t num_special = options.special_tokens ? static_cast<size_t>(num_special_tokens()) : 0;
  const size_t room =
      options.max_length == 0 ? SIZE_MAX : options.max_length - std::min(options.max_length, num_special);
  std::vector<int64_t> ids;
  while (!text.empty()) {
    size_t end = text.size();
    if (splits_at_spaces_) {
      for (end = std::min(kPieceBytes, text.size()); end < text.size() && !is_ascii_blank(text[end]);) ++end;
    }
    encode_segment(text.substr(0, end), ids);
    text.remove_prefix(end);
    if (ids.size() > room && !options.keep_end) break;
  }
  Encoding encoding;
  encoding.truncated = ids.size() > room;
  if (encoding.truncated && options.keep_end) ids.erase(ids.begin(), ids.end() - static_cast<ptrdiff_t>(room));
  if (encoding.truncated) ids.resize(room);
  for (const TemplatePiece& piece : template_) {
    if (!piece.is_sequence && !options.special_tokens) continue;
    const std::vector<int64_t>& part = piece.is_sequence ? ids : piece.ids;
    encoding.ids.insert(encoding.ids.end(), part.begin(), part.end());
    encoding.type_ids.insert(encoding.type_ids.end(), part.size(), piece.type_id);
  }
  return encoding;
}

std::string Tokenizer::decode(const std::vector<int64_t>& ids) const {
  std::vector<std::string_view> tokens;
  for (const int64_t id : ids) {
    std::string_view token = model_->token(id);
    for (const AddedToken& added : added_) {
      if (added.id == id) token = added.content;
    }
    if (!token.empty()) tokens.push_back(token);
  }
  return decoder_->decode(tokens);
}

}  // namespace lathe::text
