/* A whole model in memory: the opaque kf_model of kvfold.h. */
#ifndef KF_MODEL_MODEL_H
#define KF_MODEL_MODEL_H

#include "model/layer.h"

struct kf_model {
  kf_config config;
  kf_weights weights;
  kf_model_info info;
  kf_device *device;
  kf_run *run;
  kf_layer *layer; /* [layers] */
  float *norm;     /* [hidden] final */
  kf_weight *head; /* [vocabulary, hidden] */
  const kf_view *embedding;
};

/* Opens what stands at a located path: the configuration and, unless NULL, the weight table (checked). */
kf_status kf_model_read(const char *path, kf_config *config, kf_weights *weights, kf_error *e);
/* Fills info from both. */
void kf_model_summarise(const char *path, const kf_config *c, const kf_weights *w, kf_model_info *out);

/* The final norm [hidden] (the device's memory) and the packed head, the embedding's own when they are tied. */
kf_status kf_head_load(const kf_weights *w, kf_device *d, float **norm, kf_weight **head, kf_error *e);
/* x [count, hidden] = embeddings of ids. */
kf_status kf_embed(const kf_weights *w, const kf_view *embedding, const int32_t *ids, int64_t count, float *x, kf_error *e);
/* Runs all layers over x [tokens, hidden] in place, appends to the caches and advances them. */
kf_status kf_model_forward(kf_model *m, float *x, const kf_span *spans, int count, kf_error *e);
/* logits [rows, vocabulary] of rows of hidden states [rows, hidden]: final norm and head. Both are the device's memory. */
kf_status kf_model_logits(kf_model *m, const float *x, int64_t rows, float *logits, kf_error *e);

/* The model whose sequences a batch holds. */
kf_model *kf_batch_model(const kf_batch *b);

#endif
