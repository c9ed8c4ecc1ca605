#pragma once

#include <cstdint>

namespace lathe::text {

/// The character classes of Hugging Face tokenizers' BERT pipeline: those of the Unicode versions that its crates
/// carry, which are older than ours in some places and newer in others.

/// Whether clean_text removes the code point (control, format, private use, U+FFFD).
bool bert_removes(int32_t code_point);
/// Whether strip_accents removes it after decomposition (nonspacing marks).
bool bert_strips(int32_t code_point);
/// Whether BertPreTokenizer makes it a word of its own (punctuation).
bool bert_isolates(int32_t code_point);
/// The lower case of capitals younger than Unicode 14; any other code point unchanged.
int32_t bert_newer_lower_case(int32_t code_point);

}  // namespace lathe::text
