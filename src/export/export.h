/* The two targets behind kf_export(). */
#ifndef KF_EXPORT_EXPORT_H
#define KF_EXPORT_EXPORT_H

#include "export/stock.h"
#include "text/tokenizer.h"

typedef struct kf_export_job {
  char path[KF_PATH], source_path[KF_PATH]; /* of the model, a directory, and of its source, a GGUF or "" */
  const char *out;
  int pad;
  bool f16_latents;
  kf_config config;
  kf_weights weights;
  kf_config source_config;
  kf_weights source;
  kf_dtype dtype;
  const kf_hooks *hooks;
  kf_export_result result;
  int64_t all; /* tensors, for the progress */
  bool check;  /* stop before anything is written */
} kf_export_job;

/* OUT as a directory in the layout of DeepseekV3ForCausalLM. */
kf_status kf_export_deepseek(kf_export_job *j, kf_error *e);
/* OUT as a GGUF file of architecture deepseek2. */
kf_status kf_export_gguf(kf_export_job *j, kf_error *e);

/* Counts a tensor and its bytes in j->result and tells the progress. */
kf_status kf_export_count(kf_export_job *j, const kf_stock_tensor *t, kf_dtype dtype, kf_error *e);

/* tokenizer.ggml.* and the chat template from the tokenizer of a directory. vocabulary: rows of the embedding. */
kf_status kf_export_tokenizer(const char *directory, int vocabulary, const kf_hooks *hooks, kf_gguf_writer *w, kf_error *e);
/* The name of a pre-tokenizer in GGUF by its tokenizer.json; NULL: it has none. */
const char *kf_export_pre(const json_t *tokenizer);

#endif
