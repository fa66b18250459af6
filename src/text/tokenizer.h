/* Tokenizers: byte-level BPE and SentencePiece-style BPE with byte fallback. The public part is in kvfold.h. */
#ifndef KF_TEXT_TOKENIZER_H
#define KF_TEXT_TOKENIZER_H

#include "tensor/gguf.h"

/* From tokenizer.json (+ tokenizer_config.json, special_tokens_map.json, chat_template.jinja) in a directory. */
kf_status kf_tokenizer_from_directory(const char *directory, kf_tokenizer **out, kf_error *e);
/* From tokenizer.ggml.* of a GGUF file (models gpt2 and llama), chat template included; copies what it needs. */
kf_status kf_tokenizer_from_gguf(const kf_gguf *g, kf_tokenizer **out, kf_error *e);
/* From memory: a tokenizer.json and, optionally, a tokenizer_config.json (fuzzing, tests). */
kf_status kf_tokenizer_parse(const char *name, const char *json, size_t bytes, const char *config, size_t config_bytes,
                             kf_tokenizer **out, kf_error *e);
/* Writes tokenizer.json, tokenizer_config.json (chat template within, as chat_template) that Hugging Face and kvfold load
 * back to the same ids. Used for models that came as GGUF; directories are copied file by file. */
kf_status kf_tokenizer_write(const kf_tokenizer *t, const char *directory, kf_error *e);

/* The chat template's source, NULL when there is none; owned by the tokenizer. */
const char *kf_tokenizer_chat_template(const kf_tokenizer *t);
/* Spelling of a special token ("bos_token", "eos_token", "pad_token", "unk_token"), NULL: none. */
const char *kf_tokenizer_special(const kf_tokenizer *t, const char *which);
/* A number that tells tokenizers (and their chat templates) apart: FNV-1a of the files that kf_tokenizer_write() writes. */
uint64_t kf_tokenizer_hash(const kf_tokenizer *t);

#endif
