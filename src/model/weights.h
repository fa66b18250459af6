/* The weights of a model by their Hugging Face names, whatever file they stand in. */
#ifndef KF_MODEL_WEIGHTS_H
#define KF_MODEL_WEIGHTS_H

#include "model/config.h"

typedef struct kf_weights {
  kf_source *source;
  const kf_config *config; /* borrowed */
} kf_weights;

kf_status kf_weights_open(const char *path, const kf_config *config, kf_weights *out, kf_error *e);
void kf_weights_close(kf_weights *w);

/* name: "model.embed_tokens.weight", "model.layers.3.self_attn.q_proj.weight", ... A GGUF's names are translated and the
 * rows of its llama q and k un-permuted, so that what comes back is what Hugging Face holds. */
bool kf_weights_has(const kf_weights *w, const char *name);
/* The tensor as it is stored; NULL: it is not there, or its rows stand in another order. */
const kf_view *kf_weights_view(const kf_weights *w, const char *name);
/* All of a tensor as f32 [rows, columns] (columns 1 for a vector), freed with free(). Errors: missing, other shape. */
kf_status kf_weights_read(const kf_weights *w, const char *name, int64_t rows, int64_t columns, float **out, kf_error *e);
/* The same with a printf-style name; the usual call. */
kf_status kf_weights_readf(const kf_weights *w, int64_t rows, int64_t columns, float **out, kf_error *e, const char *format, ...)
    __attribute__((format(printf, 6, 7)));
/* One row (an embedding). to: [columns] */
kf_status kf_weights_row(const kf_weights *w, const kf_view *v, int64_t row, float *to, kf_error *e);
/* The embedding's view (embed_tokens, or lm_head when only that is stored); shape checked against the configuration. */
kf_status kf_weights_embedding(const kf_weights *w, const kf_view **out, kf_error *e);
/* The type most bytes have: what DST is written in when nothing else is asked (bf16 for a quantised source). */
kf_dtype kf_weights_dtype(const kf_weights *w);
/* Every tensor that the configuration needs, by its Hugging Face name; columns 1: a vector. */
typedef kf_status (*kf_weights_visit)(void *user, const char *name, int64_t rows, int64_t columns, kf_error *e);
kf_status kf_weights_each(const kf_config *c, kf_weights_visit visit, void *user, kf_error *e);
/* Name of the projection to latents below "model.layers.N.self_attn.": "kv_a_proj", or DeepSeek's. */
const char *kf_weights_kv_a(const kf_config *c);
/* Checks that every tensor that the configuration needs is there with its shape, and reports the first that is not. */
kf_status kf_weights_check(const kf_weights *w, kf_error *e);
int64_t kf_weights_parameters(const kf_weights *w);

#endif
